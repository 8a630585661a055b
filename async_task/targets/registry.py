"""The allow-list: what attempts may call, by name. Nothing is ever imported because a row names it."""

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, Unpack, overload

from async_task.errors import AsyncTaskError, ConfigurationError, UnknownMethod, UnknownTarget, near
from async_task.targets.allow_list import AllowList, is_limited
from async_task.targets.policies import Limit, Policy, Settings
from async_task.targets.target import Method, Target, coroutine_methods, refuse_uncallable, refuse_unknown_redactions

T = TypeVar("T")


@overload
def target(
    thing: str | None = None, /, *, aliases: Sequence[str] = (), **settings: Unpack[Settings]
) -> Callable[[T], T]: ...
@overload
def target(thing: T, /, *, name: str | None = None, aliases: Sequence[str] = (), **settings: Unpack[Settings]) -> T: ...
def target(
    thing: Any = None, /, *, name: str | None = None, aliases: Sequence[str] = (), **settings: Unpack[Settings]
) -> Any:
    """Put a class, module, function or instance on the allow-list, so that attempts may call it.

    `@target` registers it as "module:qualname"; `@target("name")`, or `target(thing, name="name")` for what you do not
    own, under a name that survives a rename. `aliases`: former names that rows may still hold. `settings`: see
    `Settings`.

        @target(timeout=10, redact=["card"])
        class Till:
            @staticmethod
            def charge(order: int, card: str) -> None: ...

        target(stripe.Refund, name="stripe.refund")

    Raises ConfigurationError for a name in use, for something in `__main__` or in a function without a name, for a
    bad setting, for a method that needs an instance, and for a signature that cannot be stored: `*args`, `**kwargs`,
    positional-only parameters, names beginning with `_`, generators, annotations that cannot be resolved or whose
    values can never be stored. With `name=` a method's signature is checked
    when the method is first used.
    """
    if thing is None or isinstance(thing, str):
        return lambda decorated: _register(decorated, thing or name, aliases, settings, eager=True)
    return _register(thing, name, aliases, settings, eager=name is None)


def target_named(name: str) -> Target:
    """The target registered under this name or alias. Raises UnknownTarget."""
    found = _allowed.by_name.get(name)
    if found is None:
        raise UnknownTarget(f"no target is registered as {name!r} in this process{_advice(name)}")
    return found


def _advice(name: str) -> str:
    """What to do about a name that no target has; it may be that of a call."""
    owner, _, method = name.rpartition(".")
    if owner in _allowed.by_name:
        return f": give target={owner!r}, method_name={method!r}"
    return (
        f"{near(name, _allowed.by_name)}: decorate it with @target, and import its module here "
        "(AsyncTask(modules=[...]), or --module)"
    )


def target_of(thing: object) -> Target:
    """The target that this object, or this name, is. Raises UnknownTarget."""
    if isinstance(thing, str):
        return target_named(thing)
    if found := _allowed.by_thing.get(id(thing)):
        return found[0].target
    if replaced := [one for one in registered_targets() if one.current is thing]:
        return replaced[0]
    label = _label(thing)
    if isinstance(thing, partial) or label.endswith("<lambda>"):
        raise UnknownTarget(_NAMELESS)
    for owner, name in _allowed.owners(thing) if callable(thing) else ():
        known = _label(owner.thing) if hasattr(owner.thing, "__name__") else repr(owner.name)
        raise UnknownTarget(
            f"{label} is a method of a target: use target={known}, method_name={name!r}, or Attempt.call({label}, ...)"
        )
    raise UnknownTarget(f"{label} is not registered: decorate it with @target, or call target({label}, name=...)")


def method_of(function: Callable[..., Any]) -> Method:
    """The method of a registered target that `function` is: `OrderClient.fulfill`, or a registered function.

    Raises UnknownTarget when it belongs to no target, or to several.
    """
    found = _allowed.owners(function)
    if len(found) == 1:
        ((one, method_name),) = found
        return one.method(method_name)
    label = getattr(function, "__qualname__", None)
    label = label if isinstance(label, str) else repr(type(function))  # that of a mock may be a mock
    if found:
        names = ", ".join(sorted(one.target.name for one in found))
        raise UnknownTarget(f"{label} belongs to several targets ({names}): choose one with Attempt.create(target=...)")
    if not callable(function):
        raise UnknownTarget(f"{label} cannot be called: pass the function itself, without calling it")
    if isinstance(function, partial) or label.endswith("<lambda>"):
        raise UnknownTarget(_NAMELESS)
    raise UnknownTarget(f"{label} is no method of a registered target: decorate it, or its class, with @target")


_NAMELESS = "a lambda or partial has no name that a row could hold: give it a name, def ... with @target"


def registered_targets() -> list[Target]:
    """All targets of this process, sorted by name."""
    return [one for name, one in sorted(_allowed.by_name.items()) if one.name == name]


def note_definitions() -> None:
    """Note what the modules of the targets have under their names now, before a test puts anything in their place."""
    for one in registered_targets():
        one.note_definition()


def limits() -> Mapping[str, Limit]:
    """The limits of queues, as the targets of this process set them."""
    return _allowed.limits


def registered_coroutines() -> list[Method]:
    """The coroutine functions of registered targets that were used so far."""
    return [one for one in coroutine_methods() if _allowed.by_name.get(one.target.name) is one.target]


def coroutine_calls(which: Callable[[Method], bool]) -> list[tuple[str, str]]:
    """Target and method of each coroutine function that was used so far, under each name of its target; of those for
    which `which` is true."""
    return [
        (name, method.name)
        for method in filter(which, coroutine_methods())
        for name in method.target.names
        if _allowed.by_name.get(name) is method.target
    ]


def problem_with(target_name: str, method_name: str) -> UnknownTarget | UnknownMethod | None:
    """Why a call is unknown in this process; None where it is known."""
    try:
        target_named(target_name).method(method_name)
    except (UnknownTarget, UnknownMethod) as problem:
        return problem
    except ConfigurationError:  # it is known, and cannot be called: no reason to leave it to others
        return None
    return None


def is_known(target_name: str, method_name: str) -> bool:
    """The same in short: without a message, which takes long to find what is meant."""
    return target_name in _allowed.by_name and problem_with(target_name, method_name) is None


def encryptor_of_policy(target_name: str, method_name: str) -> str | None:
    """The name of the encryptor that this call's policy sets; None without one, and for an unknown call."""
    try:
        return target_named(target_name).method(method_name).policy.encryptor
    except AsyncTaskError:
        return None


def own_queue(name: str) -> str:
    """The name of a target's own queue: the target's name, shortened with a digest if it is longer than 64."""
    known = _allowed.by_name.get(name)
    full = name if known is None else known.name
    return full if len(full) <= 64 else f"{full[:51]}-{hashlib.sha256(full.encode()).hexdigest()[:12]}"


_allowed = AllowList()


def _register(thing: Any, name: str | None, aliases: Sequence[str], settings: Settings, *, eager: bool) -> Any:
    refuse_uncallable(thing)
    _check_aliases(aliases)
    label = name or _default_name(thing)
    made = Target(label, thing, _with_own_queue(label, Policy.of(settings)), aliases)
    _refuse_names_in_use(made)
    if eager:
        for method_name in made.own_callables():
            made.method(method_name)
    if made.policy.redact:
        refuse_unknown_redactions(made.policy, made.name, list(made.callables()))
    _refuse_second_limit(made)
    _allowed.add(made)
    return thing


def _check_aliases(aliases: Any) -> None:
    if isinstance(aliases, str) or not all(isinstance(one, str) for one in aliases):
        raise ConfigurationError(f"aliases takes a list of names, such as ['shop:Old'], not {aliases!r}")


def _default_name(thing: Any) -> str:
    if inspect.ismodule(thing):
        return thing.__name__
    module, qualname = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if module is None or qualname is None:
        raise ConfigurationError(f"an instance has no name of its own: target(this_{type(thing).__name__}, name=...)")
    if module == "__main__" or "<" in qualname:
        raise ConfigurationError(
            f"{qualname} is defined in {'__main__' if module == '__main__' else 'a function'}, where no worker can "
            "find it under that name: give it a name, @target('name'), and import its module in the worker"
        )
    return f"{module}:{qualname}"


def _with_own_queue(name: str, policy: Policy) -> Policy:
    """A limited target waits in a queue of its own unless it names one."""
    return replace(policy, queue=own_queue(name)) if policy.limit and policy.queue is None else policy


def _refuse_names_in_use(made: Target) -> None:
    for name in made.names:
        if not 0 < len(name) <= 255:
            raise ConfigurationError(f"a target's name has 1 to 255 characters: {name[:40]!r}... has {len(name)}")
        other = _allowed.by_name.get(name)
        if other is not None and other.thing is not made.thing and not _is_redefinition(other.thing, made.thing):
            raise ConfigurationError(
                f"another target is already registered as {name!r}: give this one a name of its own"
            )


def _is_redefinition(old: Any, new: Any) -> bool:
    """Whether `new` is `old` after its module was loaded again."""
    place = [(getattr(one, "__module__", None), getattr(one, "__qualname__", None)) for one in (old, new)]
    return place[0] == place[1] and None not in place[0] and "<" not in str(place[0][1])


def _refuse_second_limit(made: Target) -> None:
    """Raise ConfigurationError if another target sets a different limit for the same queue."""
    if not is_limited(made):
        return
    sharing = _allowed.by_limited_queue.get(made.policy.queue, ())
    other = next((owner.target for owner in sharing if owner.target.name not in made.names), None)
    if other is not None and other.policy.limit != made.policy.limit:
        raise ConfigurationError(
            f"the queue {made.policy.queue!r} has one limit, and {made.name} and {other.name} set different ones: "
            "give both the same max_running= and rate=, or one of them a queue= of its own"
        )


def _label(thing: object) -> str:
    names = (getattr(thing, name, None) for name in ("__qualname__", "__name__"))
    return next((name for name in names if name and isinstance(name, str)), f"this {type(thing).__name__}")
