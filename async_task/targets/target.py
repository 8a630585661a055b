"""A registered object, and its methods that attempts may call."""

import contextlib
import datetime as dt
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any
from weakref import WeakKeyDictionary

from async_task.error_text import quotes_nothing
from async_task.errors import ConfigurationError, UnknownMethod, near
from async_task.targets.definition import definition_of
from async_task.targets.originals import Originals
from async_task.targets.policies import Policy, policy_of
from async_task.targets.signatures import Signature

CALL = "__call__"
"""The method name of a target that is called itself: a function, or a callable instance."""


def call_name(target: str, method_name: str) -> str:
    """A call as people write it: `shop.orders.fulfill`, or the target alone where that is what is called."""
    return target if method_name == CALL else f"{target}.{method_name}"


class Target:
    """A registered class, module, function or instance (`thing`).

    A method's signature is read when the method is first asked for.
    """

    def __init__(self, name: str, thing: object, policy: Policy, aliases: Sequence[str]) -> None:
        self.name = name
        self.thing = thing
        self.policy = policy
        self.aliases = tuple(aliases)
        self.names = (name, *self.aliases)
        self._originals = Originals(thing)
        self._definition = definition_of(thing)
        self._methods: dict[str, Method] = {}

    def method(self, name: str | None) -> "Method":
        """The method of that name; None for a target that is called itself.

        Raises UnknownMethod if there is no such method or it may not be called, ConfigurationError if its signature
        cannot be stored.
        """
        name = name or CALL
        return self._methods.get(name) or self._made(name)

    def _made(self, name: str) -> "Method":
        made = self._methods.setdefault(name, Method(self, name, self._callable(name)))
        if made.signature.is_async:
            _coroutines[made] = None
        return made

    def own_callables(self) -> Iterator[str]:
        """The names of the methods that the target defines itself, without inherited and imported ones."""
        if inspect.isroutine(self.thing):
            yield CALL
        elif inspect.isclass(self.thing):
            yield from (
                name
                for name, kind in vars(self.thing).items()
                if isinstance(kind, (staticmethod, classmethod)) and name[0] != "_"
            )

    def callables(self) -> Iterator[Callable[..., Any]]:
        """Everything that may be called, inherited methods included."""
        for name in (CALL, *dir(self.thing)):
            with contextlib.suppress(UnknownMethod):
                yield self._callable(name)

    @property
    def current(self) -> Any:
        """`thing`, or what a test has put in its place."""
        return self.thing if self._definition is None else self._definition.current()

    def note_definition(self) -> None:
        """Note what its module has under its name now, before a test puts anything in its place."""
        if self._definition is not None:
            self._definition.note()

    def has(self, name: str, function: object) -> bool:
        """Whether `function` is its attribute `name`, now or when it was registered."""
        if inspect.isroutine(self.thing):
            return False
        return bool(getattr(self.thing, name, None) == function or self._originals.value(name) == function)

    def replaced_by(self, function: object) -> Iterator[str | None]:
        """The names of the methods in whose place a test has put `function`; None for the whole target."""
        current = self.current
        if current is function and current is not self.thing:
            yield None
        yield from self._originals.names(function, current)

    def _callable(self, name: str) -> Callable[..., Any]:
        thing = self.thing
        if name == CALL:
            if inspect.isclass(thing) or inspect.ismodule(thing) or not callable(thing):
                raise UnknownMethod(f"{self.name} is called by one of its methods: name it with method_name=")
            return thing
        if name.startswith("_"):
            raise UnknownMethod(f"{self.name}.{name}: a name beginning with _ is never called")
        if inspect.isroutine(thing):
            raise UnknownMethod(f"{self.name} is a function: it has no method {name!r}, leave method_name out")
        if inspect.isclass(thing) and isinstance(self._originals.static(name), types.FunctionType):
            raise UnknownMethod(f"{self.name}.{name} needs an instance: make it a staticmethod or a classmethod")
        value = self._originals.value(name)
        if value is None or inspect.isclass(value) or not callable(value):
            raise UnknownMethod(f"{self.name} has no method {name!r}{_suggestion(thing, name)}")
        if inspect.ismodule(thing) and not _offers(thing, name, value):
            raise UnknownMethod(f"{self.name}.{name} is only imported there: name it in __all__, or register it itself")
        return value  # type: ignore[no-any-return]


class Method:
    """A function that attempts may call.

    `signature`: the parameters of the function that was registered, and `policy` the settings of its target under those
    of the method, whatever a test puts in its place. `replacement`: what `async_task.testing.replaced` has put there.
    Raises ConfigurationError for a signature that cannot be stored and for settings that contradict each other.
    """

    __slots__ = ("__weakref__", "name", "policy", "replacement", "signature", "target")

    def __init__(self, target: "Target", name: str, callable_: Callable[..., Any]) -> None:
        self.target = target
        self.name = name
        self.replacement: Callable[..., Any] | None = None
        self.signature = Signature(callable_, label=f"{target.name}.{name}" if name != CALL else target.name)
        own = policy_of(callable_)
        refuse_unknown_redactions(own, self.signature.label, [callable_])
        self.policy = own.over(target.policy)
        self._refuse_bad_isolation()
        self.refuse_endless_timeout(self.policy.timeout)
        self._refuse_bad_batch()

    @property
    def callable(self) -> Callable[..., Any]:
        """What is called: read for each call, as Python does, so that a patched method is what is called. Never raises:
        what has been put there and cannot be read or called is an error of the call."""
        if self.replacement is not None:
            return self.replacement
        found: Any = self.target.current
        try:
            found = found if self.name == CALL else getattr(found, self.name)
        except Exception as error:
            return partial(_raise, error)
        return found if callable(found) else partial(_raise, self._uncallable(found))

    def _uncallable(self, found: object) -> TypeError:
        said = f"{self.signature.label} cannot be called: a {type(found).__name__} has been put in its place"
        return quotes_nothing(TypeError(said))

    @property
    def mode(self) -> str:
        """ "locked" or "leased". An `async def` is leased unless its policy says otherwise."""
        return self.policy.mode or ("leased" if self.signature.is_async else "locked")

    def _refuse_bad_isolation(self) -> None:
        if self.signature.is_async and self.policy.isolate:
            raise ConfigurationError(
                f"{self.signature.label}: isolate=True is for a plain def. An async def is canceled at its timeout=; "
                "@policy(isolate=False) exempts a method"
            )

    def refuse_endless_timeout(self, timeout: dt.timedelta | None) -> None:
        """Raise ConfigurationError for a time limit that nothing can enforce: a leased `def` runs in a thread, which
        cannot be ended from outside."""
        signature, policy = self.signature, self.policy
        can_end = signature.is_async or signature.session_class or policy.isolate or self.mode == "locked"
        if timeout is not None and not can_end:
            raise ConfigurationError(
                f"{signature.label}: nothing can end a plain def in mode='leased' at its timeout=. With isolate=True "
                "it runs in a child process, which can be ended"
            )

    def _refuse_bad_batch(self) -> None:
        """A batch shares the lane's transaction, so each call must run in that transaction."""
        if (self.policy.batch or 1) == 1:
            return
        signature = self.signature
        reasons = {
            "an async def runs beside others, each in its own transaction": signature.is_async,
            "a target that takes no session shares commits anyway (settle_within=)": signature.session_class is None,
            "with isolate=True each call has a process of its own": self.policy.isolate,
            "with mode='leased' no transaction is open during the call": self.mode == "leased",
        }
        for reason, applies in reasons.items():
            if applies:
                raise ConfigurationError(
                    f"{signature.label}: batch= is for a plain def with a session, in mode='locked': {reason}; "
                    "@policy(batch=1) exempts a method"
                )


def _raise(error: Exception, /, *_session: Any, **_arguments: Any) -> None:
    raise error


_coroutines: "WeakKeyDictionary[Method, None]" = WeakKeyDictionary()


def coroutine_methods() -> list[Method]:
    """The coroutine functions among the methods that were used so far."""
    found = (reference() for reference in _coroutines.keyrefs())
    return [method for method in found if method is not None]


def _offers(module: types.ModuleType, name: str, value: object) -> bool:
    """Whether a callable belongs to the module, to its package, or to its `__all__`.

    A module that imports `subprocess.run` does not allow `run` to be called."""
    home = getattr(value, "__module__", None) or getattr(type(value), "__module__", None) or ""
    return home.partition(".")[0] == module.__name__.partition(".")[0] or name in getattr(module, "__all__", ())


def _suggestion(thing: object, name: str) -> str:
    return near(name, [one for one in dir(thing) if not one.startswith("_")])


def refuse_uncallable(thing: Any) -> None:
    """Raise ConfigurationError for what can never be called: a descriptor, or a method without its instance."""
    if isinstance(thing, (staticmethod, classmethod, property, cached_property)):
        kind = type(thing).__name__
        raise ConfigurationError(
            f"@target stands above @{kind}, which makes no function: put @target on the class, or below @staticmethod"
        )
    if isinstance(thing, types.FunctionType) and _needs_instance(thing):
        raise ConfigurationError(
            f"{thing.__qualname__} needs an instance, which no row can hold: make it a staticmethod or a classmethod "
            "and put @target on the class, or register an instance with target(instance, name=...)"
        )
    if inspect.isclass(thing) and not _has_callables(thing):
        raise ConfigurationError(
            f"{thing.__qualname__} has methods, and all need an instance: make them staticmethods or classmethods, or "
            "register an instance with target(instance, name=...)"
        )


def _needs_instance(function: types.FunctionType) -> bool:
    """Whether a function that is written in a class takes `self` or `cls`."""
    names = list(inspect.signature(function).parameters)
    is_in_class = function.__qualname__.rpartition(".")[0].rpartition(".")[2] not in ("", "<locals>")
    return is_in_class and names[:1] in (["self"], ["cls"])


def _has_callables(cls: type) -> bool:
    """Whether a class has a method that can be called without an instance, or no method yet."""
    held = [inspect.getattr_static(cls, name) for name in dir(cls) if not name.startswith("_")]
    plain = [one for one in held if isinstance(one, types.FunctionType)]
    return not plain or len(plain) < sum(callable(one) or isinstance(one, classmethod) for one in held)


def refuse_unknown_redactions(policy: Policy, label: str, callables: Sequence[Callable[..., Any]]) -> None:
    """Raise ConfigurationError for a name in `redact` that no callable has as a parameter.

    It is a typing error, and the argument that was meant would be shown."""
    if not policy.redact:
        return
    taken = {name for one in callables for name in _parameter_names(one)}
    for name in sorted(policy.redact - taken):
        raise ConfigurationError(f"redact: {label} takes no argument named {name!r}{near(name, taken)}")


def _parameter_names(callable_: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(callable_).parameters)
    except (TypeError, ValueError):
        return []  # its use is refused anyway
