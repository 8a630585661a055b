"""The allow-list: what may be called because a row says so, by name. Nothing is ever imported for a row."""

import contextlib
import hashlib
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, TypeVar, Unpack, overload

from async_task.errors import AsyncTaskError, ConfigurationError, UnknownMethod, UnknownTarget, near
from async_task.targets.policies import Limit, Policy, Settings, policy_of
from async_task.targets.signatures import Signature

T = TypeVar("T")
CALL = "__call__"
"""The method name of a target that is itself called: a function, or a callable instance."""


class Method:
    """One thing that can be called: `callable`, its `signature`, and the `policy` in force."""

    __slots__ = ("callable", "name", "policy", "signature", "target")

    def __init__(self, target: "Target", name: str, callable_: Callable[..., Any]) -> None:
        self.target = target
        self.name = name
        self.callable = callable_
        self.signature = Signature(callable_, label=f"{target.name}.{name}" if name != CALL else target.name)
        own = policy_of(callable_)
        _refuse_unknown(own, self.signature.label, [callable_])
        self.policy = own.over(target.policy)
        self._refuse_what_nothing_ends()
        self._refuse_to_share_nothing()

    @property
    def mode(self) -> str:
        """ "locked" unless it says otherwise or is an `async def`."""
        return self.policy.mode or ("leased" if self.signature.is_async else "locked")

    def _refuse_what_nothing_ends(self) -> None:
        """Raises ConfigurationError for a limit that nothing would keep, and for a process where none is needed."""
        label, policy = self.signature.label, self.policy
        if self.signature.is_async and policy.isolate:
            raise ConfigurationError(
                f"{label}: isolate=True is for a plain def. An async def is canceled at its timeout=; "
                "@policy(isolate=False) exempts a method"
            )
        is_endless = not (self.signature.is_async or self.signature.session_class or policy.isolate)
        if is_endless and self.mode == "leased" and policy.timeout is not None:
            raise ConfigurationError(
                f"{label}: nothing can end a plain def in mode='leased' at its timeout=: with isolate=True it is "
                "called in a process, and that can be ended"
            )

    def _refuse_to_share_nothing(self) -> None:
        """Raises ConfigurationError for a batch of calls that have no transaction of their lane's to share."""
        signature = self.signature
        reasons = {
            "an async def runs beside others, each in a transaction of its own": signature.is_async,
            "what takes no session is written together as it is (settle_within=)": signature.session_class is None,
            "with isolate=True each call has a process of its own": self.policy.isolate,
            "with mode='leased' no transaction is open during the call": self.mode == "leased",
        }
        if (self.policy.batch or 1) > 1:
            for reason in (reason for reason, is_so in reasons.items() if is_so):
                raise ConfigurationError(
                    f"{signature.label}: batch= is for a plain def with a session, in mode='locked': {reason}; "
                    "@policy(batch=1) exempts a method"
                )


class Target:
    """A registered object and the methods of it that may be called. Methods are looked at when first asked for."""

    def __init__(self, name: str, thing: object, policy: Policy, aliases: Sequence[str]) -> None:
        self.name = name
        self.thing = thing
        self.policy = policy
        self.aliases = tuple(aliases)
        self._methods: dict[str, Method] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Its name, and its former ones that rows may still hold."""
        return (self.name, *self.aliases)

    def method(self, name: str | None) -> Method:
        """The method of that name; None for a target that is called itself.

        Raises UnknownMethod when it is not there or may not be called, ConfigurationError when its signature cannot be
        written down.
        """
        name = name or CALL
        if name not in self._methods:
            self._methods[name] = Method(self, name, self._callable(name))
        return self._methods[name]

    @property
    def coroutine_methods(self) -> list[str]:
        """Those of its methods that were looked at, and are coroutine functions."""
        return [name for name, method in tuple(self._methods.items()) if method.signature.is_async]

    def own_callables(self) -> Iterator[str]:
        """The names of the methods that the target itself defines, without those it inherits or imports."""
        if inspect.isroutine(self.thing):
            yield CALL
        elif inspect.isclass(self.thing):
            yield from (
                name
                for name, kind in vars(self.thing).items()
                if isinstance(kind, (staticmethod, classmethod)) and name[0] != "_"
            )

    def callables(self) -> Iterator[Callable[..., Any]]:
        """All that may be called of it, inherited or not."""
        for name in (CALL, *dir(self.thing)):
            with contextlib.suppress(UnknownMethod):
                yield self._callable(name)

    def _callable(self, name: str) -> Callable[..., Any]:
        thing = self.thing
        if name == CALL:
            if inspect.isclass(thing) or inspect.ismodule(thing) or not callable(thing):
                raise UnknownMethod(f"{self.name} is called by one of its methods: say which with method_name=")
            return thing
        if name.startswith("_"):
            raise UnknownMethod(f"{self.name}.{name}: a name beginning with _ is never called")
        if inspect.isroutine(thing):
            raise UnknownMethod(f"{self.name} is a function: it has no method {name!r}, leave method_name out")
        found = inspect.getattr_static(thing, name, None)
        if inspect.isclass(thing) and isinstance(found, types.FunctionType):
            raise UnknownMethod(f"{self.name}.{name} needs an instance: make it a staticmethod or a classmethod")
        # A property is not asked: that alone would run code because a row says so.
        value = None if isinstance(found, (property, cached_property)) else getattr(thing, name, None)
        if value is None or inspect.isclass(value) or not callable(value):
            raise UnknownMethod(f"{self.name} has no method {name!r}{_suggest(thing, name)}")
        if inspect.ismodule(thing) and not _offers(thing, name, value):
            raise UnknownMethod(f"{self.name}.{name} is only imported there: name it in __all__, or register it itself")
        return value  # type: ignore[no-any-return]


_registered: dict[str, Target] = {}


def coroutine_calls() -> list[tuple[str, str]]:
    """Target and method, by all names of the target, of the coroutine functions among what was looked at so far."""
    return [(name, method) for name, one in tuple(_registered.items()) for method in one.coroutine_methods]


@overload
def target(
    thing: str | None = None, /, *, aliases: Sequence[str] = (), **settings: Unpack[Settings]
) -> Callable[[T], T]: ...
@overload
def target(thing: T, /, *, name: str | None = None, aliases: Sequence[str] = (), **settings: Unpack[Settings]) -> T: ...
def target(
    thing: Any = None, /, *, name: str | None = None, aliases: Sequence[str] = (), **settings: Unpack[Settings]
) -> Any:
    """Put a class, module, function or instance on the allow-list, as decorator or as a call.

    `@target` registers it as "module:qualname"; `@target("name")` or `target(thing, name="name")` under a name that
    survives a rename; `aliases` are former names that rows may still hold. `settings`: see `Settings`.

    Raises ConfigurationError for a name that is taken, something in `__main__` without a name, or a signature that
    cannot be written down: `*args`, positional-only parameters, names beginning with `_`, generators, annotations that
    cannot be resolved; or a name in `redact` that none of its methods takes. `target(thing, name=...)`, for what you do
    not own, looks at a method when it is first used.
    """
    if thing is None or isinstance(thing, str):
        return lambda decorated: _register(decorated, thing or name, aliases, settings, eager=True)
    return _register(thing, name, aliases, settings, eager=name is None)


def target_named(name: str) -> Target:
    """The target registered under this name or alias. Raises UnknownTarget."""
    if name not in _registered:
        raise UnknownTarget(
            f"no target is registered as {name!r} in this process{near(name, _registered)}: "
            "decorate it with @target, and import its module here (AsyncTask(modules=[...]))"
        )
    return _registered[name]


def encryptor_of_policy(target_name: str, method_name: str) -> str | None:
    """The name of the encryptor that the policy of this call asks for; None without one, or where it is unknown."""
    try:
        return target_named(target_name).method(method_name).policy.encryptor
    except AsyncTaskError:
        return None


def target_of(thing: object) -> Target:
    """The target that this object, or this name, is. Raises UnknownTarget."""
    if isinstance(thing, str):
        return target_named(thing)
    for registered in _registered.values():
        if registered.thing is thing:
            return registered
    label = _label(thing)
    if isinstance(thing, partial) or label.endswith("<lambda>"):
        raise UnknownTarget(_NAMELESS)
    for owner, name in _owners(thing) if callable(thing) else ():
        known = _label(owner.thing) if hasattr(owner.thing, "__name__") else repr(owner.name)
        raise UnknownTarget(
            f"{label} is a method of a target: say target={known}, method_name={name!r}, or Attempt.call({label}, ...)"
        )
    raise UnknownTarget(f"{label} is not registered: decorate it with @target, or call target({label}, name=...)")


def method_of(function: Callable[..., Any]) -> Method:
    """The method of a registered target that `function` is: `OrderClient.fulfill`, or a registered function.

    Raises UnknownTarget when it belongs to none, or to several.
    """
    found = _owners(function)
    if len(found) == 1:
        ((one, method_name),) = found
        return one.method(method_name)
    label = getattr(function, "__qualname__", repr(type(function)))
    if found:
        names = ", ".join(sorted(one.name for one, _ in found))
        raise UnknownTarget(f"{label} belongs to several targets ({names}): say which with Attempt.create(target=...)")
    if not callable(function):
        raise UnknownTarget(f"{label} cannot be called: pass the function itself, without calling it")
    if isinstance(function, partial) or label.endswith("<lambda>"):
        raise UnknownTarget(_NAMELESS)
    raise UnknownTarget(f"{label} is no method of a registered target: decorate it, or its class, with @target")


_NAMELESS = "a lambda or partial has no name that a row could hold: give it a name, def ... with @target"


def _owners(function: Any) -> list[tuple[Target, str | None]]:
    """The targets that `function` is, or else is a method of, with the method's name."""
    name = getattr(function, "__name__", "")
    known = {id(one): one for one in _registered.values()}.values()
    if isinstance(function, (types.MethodType, types.BuiltinMethodType)):
        found: list[tuple[Target, str | None]] = [(one, name) for one in known if one.thing is function.__self__]
        if found:
            return found[:1]
    found = [(one, None) for one in known if one.thing is function]
    return found or [(one, name) for one in known if _holds(one.thing, name, function)]


def registered_targets() -> list[Target]:
    """All targets of this process, by name."""
    return [one for name, one in sorted(_registered.items()) if one.name == name]


def _register(thing: Any, name: str | None, aliases: Sequence[str], settings: Settings, *, eager: bool) -> Any:
    label = name or _default_name(thing)
    made = Target(label, thing, _in_its_queue(label, Policy.of(settings)), aliases)
    for one in made.names:
        if not 0 < len(one) <= 255:
            raise ConfigurationError(f"a target's name has 1 to 255 characters: {one[:40]!r}... has {len(one)}")
        taken = _registered.get(one)
        if taken is not None and taken.thing is not thing and not _is_redefinition(taken.thing, thing):
            raise ConfigurationError(
                f"another target is already registered as {one!r}: give this one a name of its own"
            )
    if eager:
        for method_name in made.own_callables():
            made.method(method_name)
    if made.policy.redact:
        _refuse_unknown(made.policy, made.name, list(made.callables()))
    _refuse_contradiction(made)
    _registered.update(dict.fromkeys(made.names, made))
    return thing


def own_queue(name: str) -> str:
    """The queue that is a target's own: its name, or the begin of a long one with what tells it from others."""
    known = _registered.get(name)
    full = name if known is None else known.name
    return full if len(full) <= 64 else f"{full[:51]}-{hashlib.sha256(full.encode()).hexdigest()[:12]}"


def limits() -> dict[str, Limit]:
    """The limits of queues, as the targets of this process say them."""
    known = tuple(_registered.values())  # at each claim: without an order
    return {one.policy.queue: one.policy.limit for one in known if one.policy.limit and one.policy.queue}


def _in_its_queue(name: str, policy: Policy) -> Policy:
    """What is limited waits in a queue of its own, unless it says in which."""
    return replace(policy, queue=own_queue(name)) if policy.limit and policy.queue is None else policy


def _refuse_contradiction(made: Target) -> None:
    """Raises ConfigurationError where another target says another limit for the same queue."""
    for other in registered_targets():
        is_same_queue = other.policy.queue == made.policy.queue and other.name not in made.names
        if made.policy.limit and other.policy.limit and is_same_queue and made.policy.limit != other.policy.limit:
            raise ConfigurationError(
                f"the queue {made.policy.queue!r} has one limit, and {made.name} says another than {other.name}: "
                "give both the same max_running= and rate=, or one of them a queue= of its own"
            )


def _default_name(thing: Any) -> str:
    if inspect.ismodule(thing):
        return thing.__name__
    module, qualname = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if module is None or qualname is None:
        raise ConfigurationError(f"an instance has no name of its own: target(this_{type(thing).__name__}, name=...)")
    if module == "__main__" or "<" in qualname:
        raise ConfigurationError(
            f"{qualname} is defined in {'__main__' if module == '__main__' else 'a function'}, where no worker can "
            "find it under that name: give it one, @target('name'), and import its module in the worker"
        )
    return f"{module}:{qualname}"


def _refuse_unknown(policy: Policy, label: str, callables: Sequence[Callable[..., Any]]) -> None:
    """Raises ConfigurationError for a name in `redact` that none of these takes: the one meant would be shown."""
    if not policy.redact:
        return
    taken = {name for one in callables for name in _taken_by(one)}
    unknown = sorted(policy.redact - taken)
    if unknown and ANY not in taken:
        raise ConfigurationError(f"redact: {label} takes no argument named {unknown[0]!r}{near(unknown[0], taken)}")


ANY = "**"


def _taken_by(callable_: Callable[..., Any]) -> Iterator[str]:
    """The names of its parameters; ANY where it takes names of any kind, or cannot be read."""
    try:
        parameters = inspect.signature(callable_).parameters.values()
    except (TypeError, ValueError):
        yield ANY
        return
    for one in parameters:
        yield ANY if one.kind is one.VAR_KEYWORD else one.name


def _label(thing: object) -> str:
    return getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None) or f"this {type(thing).__name__}"


def _is_redefinition(old: Any, new: Any) -> bool:
    """Whether `new` is `old` after its module was loaded again."""
    place = [(getattr(one, "__module__", None), getattr(one, "__qualname__", None)) for one in (old, new)]
    return place[0] == place[1] and None not in place[0] and "<" not in str(place[0][1])


def _holds(owner: object, name: str, function: object) -> bool:
    return not inspect.isroutine(owner) and bool(name) and getattr(owner, name, None) == function


def _offers(module: types.ModuleType, name: str, value: object) -> bool:
    """Whether a module's callable is its own, its package's, or in its `__all__`: `run` of a module that imports
    `subprocess.run` is not what was put on the allow-list."""
    home = getattr(value, "__module__", None) or getattr(type(value), "__module__", None) or ""
    return home.partition(".")[0] == module.__name__.partition(".")[0] or name in getattr(module, "__all__", ())


def _suggest(thing: object, name: str) -> str:
    return near(name, [one for one in dir(thing) if not one.startswith("_")])
