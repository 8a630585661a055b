"""Checks of what a program gives to `AsyncTask` and its methods.

Each raises ConfigurationError for a bad value, and UnknownTarget for an unknown target.
"""

import datetime as dt
import importlib
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args

from sqlalchemy import inspect as inspect_database

from async_task.attempts.attempt import BaseAttempt
from async_task.errors import ConfigurationError
from async_task.queue.backlog import Scope
from async_task.targets.policies import check_queue
from async_task.targets.registry import own_queue, registered_coroutines, registered_targets, target_of
from async_task.targets.retry import Duration, duration
from async_task.worker.worker import WorkerSettings

T = TypeVar("T")
Overlap = Literal["allow", "skip", "fail"]
"""What a batch does while another one runs."""


def check_coroutines(*, engine_is_async: bool) -> None:
    """No coroutine function of this process takes a Session that its AsyncEngine cannot give it. One that takes an
    AsyncSession may belong to another application of this process, with another engine."""
    for method in registered_coroutines() if engine_is_async else ():
        method.signature.check_session(engine_is_async=True)


def check_model(model: type[Any]) -> None:
    """A mapped subclass of BaseAttempt."""
    check_class(model, BaseAttempt, "model")
    if inspect_database(model, raiseerr=False) is None:
        raise ConfigurationError(f"model: {model.__name__} is mapped to no table: give a mapped subclass of it")


def module_names(modules: Iterable[str]) -> list[str]:
    """A list of names, not of modules."""
    names = listed(modules, "modules takes a list of names: modules=['shop.outbox']")
    if not all(isinstance(name, str) for name in names):
        raise ConfigurationError("modules takes names, not the modules themselves: modules=['shop.outbox']")
    return names


def listed(given: Iterable[T], otherwise: str) -> list[T]:
    """The items of `given`, which is no single text. `otherwise` begins the error's text."""
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise ConfigurationError(f"{otherwise}, not {type(given).__name__}")
    return list(given)


def check_numbers(limit: object, concurrency: object) -> None:
    """`limit`: None, or 0 and more. `concurrency`: 1 and more."""
    if limit is not None and (type(limit) is not int or limit < 0):
        raise ConfigurationError(f"limit is a whole number of at least 0, not {limit!r}")
    if type(concurrency) is not int or concurrency < 1:
        raise ConfigurationError(f"concurrency is a whole number of at least 1, not {concurrency!r}")


def at_least(least: int, given: object, name: str) -> int:
    """`given`, a whole number of at least `least`. `name` is the option that the error's text names."""
    if type(given) is not int or given < least:
        raise ConfigurationError(f"{name} is a whole number of at least {least}, not {given!r}")
    return given


def flag(given: object, name: str) -> bool:
    """`given`, which is True or False. `name` is the option that the error's text names."""
    if not isinstance(given, bool):
        raise ConfigurationError(f"{name} is True or False, not {given!r}")
    return given


def check_function(given: object, name: str, example: str) -> None:
    """None, or something that can be called. `example` is a call of it."""
    if given is not None and not callable(given):
        raise ConfigurationError(f"{name} takes a function, called as {example}, not {given!r}")


def check_event(given: object, name: str) -> None:
    """None, or an event like threading's."""
    if given is not None and not callable(getattr(given, "is_set", None)):
        raise ConfigurationError(f"{name} takes a threading.Event, which stops it once it is set, not {given!r}")


def check_text(given: object, name: str) -> None:
    """None, or a text."""
    if given is not None and not isinstance(given, str):
        raise ConfigurationError(f"{name} is a text, not {given!r}")


def worker_settings(
    lease: dt.timedelta, *, concurrency: int, queues: Iterable[str] | Mapping[str, int | None], async_concurrency: int,
    settle_within: Duration, poll: Duration, grace: Duration, listen: bool,
) -> WorkerSettings:  # fmt: skip
    """The settings of a worker whose claims have this lease."""
    served = _served(queues)
    own = _own_queues(served)
    settings = WorkerSettings(
        concurrency=at_least(1, concurrency, "concurrency"),
        queues=served | dict.fromkeys(own),
        own_queues=frozenset(own),
        async_concurrency=at_least(1, async_concurrency, "async_concurrency"),
        settle_within=duration(settle_within, name="settle_within").total_seconds(),
        poll=duration(poll, name="poll").total_seconds(),
        grace=duration(grace, name="grace").total_seconds(),
        listen=flag(listen, "listen"),
    )
    longest = lease.total_seconds() / 2
    if not 0.01 <= settings.poll <= 3600:
        raise ConfigurationError(f"poll is from 0.01 s to an hour: it was {settings.poll:g} s")
    if settings.settle_within > longest:
        raise ConfigurationError(f"settle_within is at most half of the lease, {longest:g} s")
    return settings


def _own_queues(served: Mapping[str, int | None]) -> list[str]:
    """The further queues of a worker: it serves the own queues of the targets of its queues too, as the attempts of a
    paused target are moved there."""
    targets = (one for one in registered_targets() if (one.policy.queue or "default") in served)
    return [own for one in targets if (own := own_queue(one.name)) not in served]


def _served(queues: Iterable[str] | Mapping[str, int | None]) -> dict[str, int | None]:
    """The maximum number of lanes for each queue; None: all lanes."""
    if not isinstance(queues, Mapping):
        queues = dict.fromkeys(scope_of(queues, ()).queues)
    for name, number in queues.items():
        check_queue(name)
        if number is not None:
            at_least(1, number, f"the number of lanes for queue {name!r}")
    return dict(queues)


def check_overlap(overlap: object) -> None:
    if overlap not in get_args(Overlap):
        raise ConfigurationError(f"overlap is one of 'allow', 'skip' and 'fail', not {overlap!r}")


def scope_of(queues: Iterable[str], targets: Iterable[object]) -> Scope:
    """The attempts of these queues and targets; without either, all."""
    names: list[Any] = listed(queues, "queues takes a list of names: queues=['default']")
    if not all(isinstance(name, str) and name for name in names):
        raise ConfigurationError("queues takes the names of queues, each with at least one character")
    wanted = [target_of(one) for one in listed(targets, "targets takes a list: targets=['shop.orders']")]
    # Rows that were written before a target was renamed hold a former name of it.
    stored = (name for one in wanted for name in one.names)
    return Scope(tuple(dict.fromkeys(names)), tuple(dict.fromkeys(stored)))


def queue_meant(queue: str | None, target: object) -> str:
    """The named queue, or the target's own queue; exactly one of the two is given."""
    if (queue is None) is (target is None):
        raise ConfigurationError("give one of the two: the name of a queue, or target=")
    if queue is not None:
        check_queue(queue)
        return queue
    return own_queue(target_of(target).name)


def from_now(length: dt.timedelta) -> float:
    """The instant `length` from now, by the monotonic clock, in seconds."""
    return time.monotonic() + length.total_seconds()


def check_class(given: object, kind: type[Any], name: str) -> None:
    """A subclass of `kind`."""
    if not isinstance(given, type) or not issubclass(given, kind):
        found = given.__name__ if isinstance(given, type) else f"an instance of {type(given).__name__}"
        raise ConfigurationError(f"{name} takes a class that derives from {kind.__name__}, not {found}")


def check_instance(given: object, kind: type[T], name: str) -> T:
    """`given`, an instance of `kind`."""
    if not isinstance(given, kind):
        raise ConfigurationError(f"{name} takes a {kind.__name__}, not {given!r}")
    return given


def import_module(module: str) -> None:
    """Import it, so that its targets are registered. What its code raises is raised."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise
        raise ConfigurationError(f"modules: there is no module {module!r} on this process's path") from None


def uuid_of(given: uuid.UUID | str) -> uuid.UUID:
    """The id of an attempt, given as a UUID or as its text."""
    if isinstance(given, uuid.UUID):
        return given
    try:
        return uuid.UUID(given)
    except (ValueError, AttributeError, TypeError):
        raise ConfigurationError("an attempt's id is a UUID, or its text") from None
