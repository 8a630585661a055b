"""How a target's calls are performed: `@target(...)` sets it for all methods, `@policy(...)` for one."""

import datetime as dt
import inspect
import re
import types
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, TypedDict, TypeVar, Unpack, get_args
from weakref import WeakSet

from async_task.encryption.encryptors import Encryptor, register_encryptor
from async_task.errors import ConfigurationError
from async_task.targets.error_kinds import ErrorKinds, ErrorType, Types, error_types
from async_task.targets.keeping import Ages, Keep, ages_of
from async_task.targets.retry import DEFAULT_RETRY, Duration, Retry, duration

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Limit:
    """What limits a queue, on all machines together. None: no such limit.

    `max_running`: calls at a time. `rate`: starts per second, on average.
    """

    max_running: int | None = None
    rate: float | None = None

    @property
    def burst(self) -> int | None:
        """How many calls may start at once: a second's worth, and at least one."""
        return None if self.rate is None else max(1, int(self.rate))

    def __bool__(self) -> bool:
        return self.max_running is not None or self.rate is not None


def rate_of(given: Any) -> float:
    """Starts per second, from "10/s", "100/m", "500/h", or a number. Raises ConfigurationError."""
    if isinstance(given, (int, float)) and not isinstance(given, bool) and 0 < given < float("inf"):
        return float(given)
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*/\s*([smh])\s*", given) if isinstance(given, str) else None
    if found is None or not float(found[1]):
        raise ConfigurationError(f'rate is "10/s", "100/m", "500/h" or a number of starts per second, not {given!r}')
    return float(found[1]) / UNITS[found[2]]


Mode = Literal["locked", "leased"]
Isolation = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
F = TypeVar("F", bound=Callable[..., Any])
ATTRIBUTE = "__async_task_policy__"
MAX_BATCH = 50
"""Calls in one transaction. With more than 64 SAVEPOINTs in one, PostgreSQL slows down for everybody."""

_in_use: "WeakSet[types.FunctionType]" = WeakSet()
"""Functions whose policy was read already: a `@policy` above their `@target` comes too late."""


class Settings(TypedDict, total=False):
    """The settings of `@target` and `@policy`. Durations are seconds or a timedelta.

    - `retry`: when a failed call is tried again (a `Retry`).
    - `retry_on`: a class of exceptions, or a list: only these errors are retried, subclasses too; any other ends the
      attempt `failed` at once. `discard_on`: these errors end it at once, as `raise Discard` does. If both name an
      error, the class nearer to it decides, else `discard_on`. Both judge what the target raises: not RetryAfter, nor
      what the library says about a call, as that its `timeout` is over, unless `discard_on` names exactly its class.
    - `mode`: "locked" (default of `def`) or "leased" (default of `async def`).
    - `timeout`: how long a call may take; without it, a locked call may take 60 s.
    - `max_age`: how long after it was due an attempt may still start.
    - `encryptor`: an encryptor, or its name.
    - `only_encrypted`: refuse plain arguments, also of rows written before.
    - `store_messages`: where arguments are encrypted, store the messages of errors too, without whole arguments. By
      default only the class of an error and its place are stored, because a message may quote a part of a secret.
    - `redact`: arguments that are never shown; those of the target and the method together.
    - `queue`, `priority`: where attempts wait, and how urgent they are (0 first, 9 last).
    - `isolate`: call a `def` in a child process. `timeout` then ends that process with all that the call has started.
    - `isolation`: the isolation level of the session that the target takes: "READ COMMITTED", "REPEATABLE READ" or
      "SERIALIZABLE". Without it, the level that your engine sets, else the one that is set in the database (`ALTER
      DATABASE ... SET default_transaction_isolation`, a role's, a server's), else READ COMMITTED; the REPEATABLE READ
      that MySQL has by itself does not count. A serialization failure is retried, uncharged. On SQLite all transactions
      are serializable.
    - `settle_within`: how long a worker may wait to commit a finished call together with others, at most 1 s. 0: each
      call has a commit of its own.
    - `batch`: how many calls of a `def` with a session may share a transaction, 1 to 50.
    - `max_running`: the maximum number of calls at a time, on all machines together.
    - `rate`: the maximum number of starts: "10/s", "100/m", "500/h", or a number per second.
    - `keep`: how long a worker keeps attempts that have ended: "30d" or a timedelta for those that succeeded, expired
      or were canceled; or by status: `{"succeeded": "30d", "failed": "1y"}`. Without it, as `AsyncTask(keep=...)` says.

    `keep`, `max_running` and `rate` are for a whole target. The last two are limits of its queue: of the one that
    `queue` names, else of a queue of the target's own.
    """

    retry: Retry
    retry_on: Types
    discard_on: Types
    mode: Mode
    timeout: Duration
    max_age: Duration
    encryptor: Encryptor | str
    only_encrypted: bool
    store_messages: bool
    redact: Sequence[str]
    queue: str
    priority: int
    isolate: bool
    isolation: Isolation
    settle_within: Duration
    batch: int
    max_running: int
    rate: str | float
    keep: Keep


@dataclass(frozen=True, slots=True)
class Policy:
    """Checked settings; None where one is not set."""

    retry: Retry | None = None
    retry_on: tuple[ErrorType, ...] | None = None
    discard_on: tuple[ErrorType, ...] | None = None
    mode: Mode | None = None
    timeout: dt.timedelta | None = None
    max_age: dt.timedelta | None = None
    encryptor: str | None = None
    only_encrypted: bool | None = None
    store_messages: bool | None = None
    redact: frozenset[str] | None = None
    queue: str | None = None
    priority: int | None = None
    isolate: bool | None = None
    isolation: Isolation | None = None
    settle_within: dt.timedelta | None = None
    batch: int | None = None
    max_running: int | None = None
    rate: float | None = None
    keep: Ages | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Policy":
        """The policy with these settings. Raises ConfigurationError for an unknown, wrong or out-of-range one."""
        known = [field.name for field in fields(cls)]
        values: dict[str, Any] = dict(settings)
        for name in values:
            if name not in known:
                raise ConfigurationError(
                    f"{name!r} is not a setting of a target; the settings are {', '.join(sorted(known))}"
                )
        for name in ("timeout", "max_age", "settle_within"):
            if name in values:
                values[name] = duration(values[name], name=name)
        _check(values)
        return cls(**values)

    def over(self, general: "Policy") -> "Policy":
        """This policy, with what it does not set taken from `general`. What either of them redacts is redacted."""
        mine = {field.name: getattr(self, field.name) for field in fields(self)}
        both = {name: getattr(general, name) if value is None else value for name, value in mine.items()}
        if self.redact is not None and general.redact is not None:
            both["redact"] = self.redact | general.redact
        return Policy(**both)

    @property
    def limit(self) -> Limit:
        return Limit(self.max_running, self.rate)

    @property
    def error_kinds(self) -> ErrorKinds:
        return ErrorKinds(self.retry_on, self.discard_on or ())

    @property
    def retry_or_default(self) -> Retry:
        return self.retry or DEFAULT_RETRY


def policy(**settings: Unpack[Settings]) -> Callable[[F], F]:
    """Set how the calls of one method are performed, over the settings of its target. See `Settings`.

        @target(priority=5)
        class Till:
            @staticmethod
            @policy(retry=Retry.never(), priority=0)
            def charge(order: int) -> None: ...

    Raises ConfigurationError for a bad setting, and where it would have no effect: on a class, or above `@target`.
    """
    checked = Policy.of(settings)
    if checked.keep is not None:
        raise ConfigurationError("keep is for a whole target: set it in @target(...)")
    if checked.limit:
        raise ConfigurationError("max_running and rate are for a whole target: set them in @target(...)")

    def mark(method: F) -> F:
        function = getattr(method, "__func__", method)
        if inspect.isclass(function):
            raise ConfigurationError(
                f"@policy is for one method, and {function.__qualname__} is a class: put @policy below @target, on the "
                "method, and give @target(...) what is meant for all of them"
            )
        if isinstance(function, types.FunctionType) and function in _in_use:
            raise ConfigurationError(
                f"{function.__qualname__} is registered already: put @policy below @target, on the method"
            )
        setattr(function, ATTRIBUTE, checked)
        return method

    return mark


def policy_of(callable_: object) -> Policy:
    """What `@policy` has set for this function or method; empty without one. A later `@policy` is refused."""
    function = getattr(callable_, "__func__", callable_)
    if isinstance(function, types.FunctionType):
        _in_use.add(function)
    found = getattr(callable_, ATTRIBUTE, None)
    return found if isinstance(found, Policy) else Policy()


def _check(values: dict[str, Any]) -> None:
    if "retry" in values and not isinstance(values["retry"], Retry):
        raise ConfigurationError("retry takes a Retry: Retry.exponential(...), .every(...), .schedule(...) or .never()")
    if values.get("mode", "locked") not in ("locked", "leased"):
        raise ConfigurationError(f"mode is 'locked' or 'leased', not {values['mode']!r}")
    if values.get("isolation", "SERIALIZABLE") not in get_args(Isolation):
        raise ConfigurationError(f"isolation is one of {', '.join(get_args(Isolation))}, not {values['isolation']!r}")
    if "timeout" in values and not values["timeout"]:
        raise ConfigurationError("timeout must be longer than 0 s")
    if "settle_within" in values and values["settle_within"] > dt.timedelta(seconds=1):
        raise ConfigurationError(
            "settle_within is at most 1 s: after a crash, calls that were not committed yet are made again"
        )
    if "encryptor" in values and not isinstance(values["encryptor"], str):
        values["encryptor"] = register_encryptor(values["encryptor"]).name
    for name in ("only_encrypted", "store_messages", "isolate"):
        if not isinstance(values.get(name, False), bool):
            raise ConfigurationError(f"{name} is True or False")
    for name, convert in _CONVERTED.items():
        if name in values:
            values[name] = convert(values[name])
    batch = values.get("batch", 1)
    if type(batch) is not int or not 1 <= batch <= MAX_BATCH:
        raise ConfigurationError(f"batch is a whole number from 1 to {MAX_BATCH}, not {batch!r}")
    maximum = values.get("max_running", 1)
    if type(maximum) is not int or not 1 <= maximum <= 2**31 - 1:
        raise ConfigurationError(f"max_running is a whole number of at least 1, not {maximum!r}")
    check_queue(values.get("queue"))
    check_priority(values.get("priority"))


def _names(redact: object) -> frozenset[str]:
    if isinstance(redact, str):
        raise ConfigurationError("redact takes a list of argument names, not one text")
    if not isinstance(redact, Collection) or not all(isinstance(name, str) for name in redact):
        raise ConfigurationError("redact takes a list of argument names")
    return frozenset(redact)


_CONVERTED: dict[str, Callable[[Any], Any]] = {
    "redact": _names, "rate": rate_of, "keep": ages_of,
    "retry_on": partial(error_types, name="retry_on"), "discard_on": partial(error_types, name="discard_on"),
}  # fmt: skip


def check_queue(queue: object) -> None:
    """Raise ConfigurationError unless `queue` is None or a printable name of 1 to 64 characters."""
    if queue is not None and not (isinstance(queue, str) and 0 < len(queue) <= 64 and queue.isprintable()):
        raise ConfigurationError("queue is a printable name of 1 to 64 characters")


def check_priority(priority: object) -> None:
    """Raise ConfigurationError unless `priority` is None or a whole number from 0 (first) to 9."""
    if priority is not None and (type(priority) is not int or not 0 <= priority <= 9):
        raise ConfigurationError(f"priority is a whole number from 0 (first) to 9, not {priority!r}")
