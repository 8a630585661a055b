"""How a target's calls are performed: settings of `@target(...)` for all its methods, of `@policy(...)` for one."""

import datetime as dt
import inspect
import re
import types
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, TypeVar, Unpack
from weakref import WeakSet

from async_task.encryption.encryptors import Encryptor, register_encryptor
from async_task.errors import ConfigurationError
from async_task.targets.retry import DEFAULT_RETRY, Duration, Retry, duration

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Limit:
    """`max_running`: calls at a time, on all machines together. `rate`: starts in a second, in the long run; a second's
    worth of them, and at least one, may start at once. None: no such limit."""

    max_running: int | None = None
    rate: float | None = None

    @property
    def burst(self) -> int | None:
        return None if self.rate is None else max(1, int(self.rate))

    def __bool__(self) -> bool:
        return self.max_running is not None or self.rate is not None


def rate_of(given: Any) -> float:
    """Starts in a second, from "10/s", "100/m", "500/h", or a number of them. Raises ConfigurationError."""
    if isinstance(given, (int, float)) and not isinstance(given, bool) and 0 < given < float("inf"):
        return float(given)
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*/\s*([smh])\s*", given) if isinstance(given, str) else None
    if found is None or not float(found[1]):
        raise ConfigurationError(f'rate is "10/s", "100/m", "500/h" or a number of starts in a second, not {given!r}')
    return float(found[1]) / UNITS[found[2]]


Mode = Literal["locked", "leased"]
F = TypeVar("F", bound=Callable[..., Any])
MARK = "__async_task_policy__"
MOST_TOGETHER = 50
"""Calls in one transaction: PostgreSQL slows for everybody past 64 SAVEPOINTs in one."""

_settled: "WeakSet[types.FunctionType]" = WeakSet()
"""Functions whose policy is in force: a `@policy` above their `@target` would come too late to mean anything."""


class Settings(TypedDict, total=False):
    """What `@target` and `@policy` take.

    `retry`: the retry policy. `mode`: "locked" (default of `def`) or "leased" (default of `async def`). `timeout`: how
    long a call may take (locked: 60 s unless said). `max_age`: how long after it was due it may still start.
    `encryptor`: an encryptor or its name. `only_encrypted`: refuse what lies in a row as plain text, also what was
    written there before. `redact`: arguments never shown, the target's and the method's together. `queue`, `priority`:
    where its attempts wait, and how urgent (0 first, 9 last). `isolate`: call a `def` in a child process, which
    `timeout` ends with all that the call has started. `settle_within`: how long a worker may keep an outcome to write
    it with others, at most 1 s; 0: each by itself. `batch`: how many calls of a `def` with a session a worker may make
    in one transaction, 1 to 50. `max_running`: calls at a time, on all machines together; `rate`: starts in a time,
    "10/s", "100/m", or a number of them in a second. Both are of a whole target, which then waits in a queue of its own
    unless `queue` names one, and are that queue's.
    """

    retry: Retry
    mode: Mode
    timeout: Duration
    max_age: Duration
    encryptor: Encryptor | str
    only_encrypted: bool
    redact: Sequence[str]
    queue: str
    priority: int
    isolate: bool
    settle_within: Duration
    batch: int
    max_running: int
    rate: str | float


@dataclass(frozen=True, slots=True)
class Policy:
    """Settings, checked; None where nothing was said."""

    retry: Retry | None = None
    mode: Mode | None = None
    timeout: dt.timedelta | None = None
    max_age: dt.timedelta | None = None
    encryptor: str | None = None
    only_encrypted: bool | None = None
    redact: frozenset[str] | None = None
    queue: str | None = None
    priority: int | None = None
    isolate: bool | None = None
    settle_within: dt.timedelta | None = None
    batch: int | None = None
    max_running: int | None = None
    rate: float | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Policy":
        """Raises ConfigurationError for a setting that is unknown, of a wrong kind or out of range."""
        known = [field.name for field in fields(cls)]
        values: dict[str, Any] = dict(settings)
        for name in values:
            if name not in known:
                raise ConfigurationError(f"{name!r} is no setting of a target: there are {', '.join(sorted(known))}")
        for name in ("timeout", "max_age", "settle_within"):
            if name in values:
                values[name] = duration(values[name], name=name)
        _check(values)
        return cls(**values)

    def over(self, general: "Policy") -> "Policy":
        """This policy, with what it leaves unsaid taken from `general`; what either redacts is redacted."""
        mine = {field.name: getattr(self, field.name) for field in fields(self)}
        both = {name: getattr(general, name) if value is None else value for name, value in mine.items()}
        if self.redact is not None and general.redact is not None:
            both["redact"] = self.redact | general.redact
        return Policy(**both)

    @property
    def limit(self) -> Limit:
        return Limit(self.max_running, self.rate)

    @property
    def retry_or_default(self) -> Retry:
        return self.retry or DEFAULT_RETRY


def policy(**settings: Unpack[Settings]) -> Callable[[F], F]:
    """Settings for one method of a target, over those of the target: below its `@target`, on the method.

    Raises ConfigurationError for a bad setting, and where it would mean nothing: on a class, above `@target`.
    """
    checked = Policy.of(settings)
    if checked.limit:
        raise ConfigurationError("max_running and rate are for a whole target: say them in @target(...)")

    def mark(method: F) -> F:
        function = getattr(method, "__func__", method)
        if inspect.isclass(function):
            raise ConfigurationError(
                f"@policy is for one method, and {function.__qualname__} is a class: put @policy below @target, on the "
                "method, and what is meant for all of them into @target(...)"
            )
        if isinstance(function, types.FunctionType) and function in _settled:
            raise ConfigurationError(
                f"{function.__qualname__} is registered already: put @policy below @target, on the method"
            )
        setattr(function, MARK, checked)
        return method

    return mark


def policy_of(callable_: object) -> Policy:
    """What `@policy` said of this function or method, and can say no more; empty when it said nothing."""
    function = getattr(callable_, "__func__", callable_)
    if isinstance(function, types.FunctionType):
        _settled.add(function)
    found = getattr(callable_, MARK, None)
    return found if isinstance(found, Policy) else Policy()


def _check(values: dict[str, Any]) -> None:
    if "retry" in values and not isinstance(values["retry"], Retry):
        raise ConfigurationError("retry takes a Retry: Retry.exponential(...), .every(...), .schedule(...) or .never()")
    if values.get("mode", "locked") not in ("locked", "leased"):
        raise ConfigurationError(f"mode is 'locked' or 'leased', not {values['mode']!r}")
    if "timeout" in values and not values["timeout"]:
        raise ConfigurationError("timeout is longer than 0 s")
    if "settle_within" in values and values["settle_within"] > dt.timedelta(seconds=1):
        raise ConfigurationError("settle_within is at most 1 s: what is not written yet is called again after a crash")
    if "encryptor" in values and not isinstance(values["encryptor"], str):
        values["encryptor"] = register_encryptor(values["encryptor"]).name
    for name in ("only_encrypted", "isolate"):
        if not isinstance(values.get(name, False), bool):
            raise ConfigurationError(f"{name} is True or False")
    if "redact" in values:
        values["redact"] = _names(values["redact"])
    if "rate" in values:
        values["rate"] = rate_of(values["rate"])
    together = values.get("batch", 1)
    if type(together) is not int or not 1 <= together <= MOST_TOGETHER:
        raise ConfigurationError(f"batch is a whole number from 1 to {MOST_TOGETHER}, not {together!r}")
    most = values.get("max_running", 1)
    if type(most) is not int or not 1 <= most <= 2**31 - 1:
        raise ConfigurationError(f"max_running is a whole number of at least 1, not {most!r}")
    check_queue(values.get("queue"))
    check_priority(values.get("priority"))


def _names(redact: object) -> frozenset[str]:
    if isinstance(redact, str):
        raise ConfigurationError("redact takes a list of argument names, not one text")
    if not isinstance(redact, Collection) or not all(isinstance(name, str) for name in redact):
        raise ConfigurationError("redact takes a list of argument names")
    return frozenset(redact)


def check_queue(queue: object) -> None:
    """Raises ConfigurationError unless it is None or a name of 1 to 64 characters."""
    if queue is not None and not (isinstance(queue, str) and 0 < len(queue) <= 64 and queue.isprintable()):
        raise ConfigurationError("queue is a printable name of 1 to 64 characters")


def check_priority(priority: object) -> None:
    """Raises ConfigurationError unless it is None or 0 (first) to 9."""
    if priority is not None and (type(priority) is not int or not 0 <= priority <= 9):
        raise ConfigurationError(f"priority is a whole number from 0 (first) to 9, not {priority!r}")
