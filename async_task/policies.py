"""How a target's calls are performed: settings of `@target(...)` for all its methods, of `@policy(...)` for one."""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from async_task.encryption import Encryptor, know
from async_task.errors import ConfigurationError
from async_task.retry import DEFAULT_RETRY, Duration, Retry, duration

Mode = Literal["locked", "leased"]
F = TypeVar("F", bound=Callable[..., Any])
MARK = "__async_task_policy__"
LOCKED_LIMIT = dt.timedelta(seconds=60)


class Settings(TypedDict, total=False):
    """What `@target` and `@policy` take.

    `retry`: the retry policy. `mode`: "locked" (default of `def`) or "leased" (default of `async def`). `timeout`: how
    long a call may take (locked: 60 s unless said). `max_age`: how long after it was due it may still start.
    `encryptor`: an encryptor or its name. `redact`: arguments never shown. `queue`, `priority`: where its attempts
    wait, and how urgent (0 first, 9 last). `settle_within`, `batch`: how late, and how many together, outcomes may be
    written. `isolate`: in a process of its own.
    """

    retry: Retry
    mode: Mode
    timeout: Duration
    max_age: Duration
    encryptor: Encryptor | str
    redact: Sequence[str]
    queue: str
    priority: int
    settle_within: Duration
    batch: int
    isolate: bool


@dataclass(frozen=True, slots=True)
class Policy:
    """Settings, checked; None where nothing was said."""

    retry: Retry | None = None
    mode: Mode | None = None
    timeout: dt.timedelta | None = None
    max_age: dt.timedelta | None = None
    encryptor: str | None = None
    redact: frozenset[str] | None = None
    queue: str | None = None
    priority: int | None = None
    settle_within: dt.timedelta | None = None
    batch: int | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Policy":
        """Raises ConfigurationError for a setting that is unknown, of a wrong kind or out of range."""
        known = {field.name for field in fields(cls)} | {"isolate"}
        for name in settings:
            if name not in known:
                raise ConfigurationError(f"{name!r} is no setting of a target: there are {', '.join(sorted(known))}")
        if settings.get("isolate"):
            raise ConfigurationError(
                "isolate=True, a process for each call, comes with the worker: leave it out until then"
            )
        values: dict[str, Any] = {name: value for name, value in settings.items() if name != "isolate"}
        for name in ("timeout", "max_age", "settle_within"):
            if name in values:
                values[name] = duration(values[name], name=name)
        _check(values)
        return cls(**values)

    def over(self, general: "Policy") -> "Policy":
        """This policy, with what it leaves unsaid taken from `general`."""
        mine = {field.name: getattr(self, field.name) for field in fields(self)}
        return Policy(**{name: getattr(general, name) if value is None else value for name, value in mine.items()})

    @property
    def retry_or_default(self) -> Retry:
        return self.retry or DEFAULT_RETRY


def policy(**settings: Unpack[Settings]) -> Callable[[F], F]:
    """Settings for one method of a target, over those of the target. Raises ConfigurationError for a bad one."""
    checked = Policy.of(settings)

    def mark(method: F) -> F:
        setattr(getattr(method, "__func__", method), MARK, checked)
        return method

    return mark


def policy_of(callable_: object) -> Policy:
    """What `@policy` said of this function or method; empty when it said nothing."""
    found = getattr(callable_, MARK, None)
    return found if isinstance(found, Policy) else Policy()


def _check(values: dict[str, Any]) -> None:
    if "retry" in values and not isinstance(values["retry"], Retry):
        raise ConfigurationError("retry takes a Retry: Retry.exponential(...), .every(...), .schedule(...) or .never()")
    if values.get("mode", "locked") not in ("locked", "leased"):
        raise ConfigurationError(f"mode is 'locked' or 'leased', not {values['mode']!r}")
    if "timeout" in values and not values["timeout"]:
        raise ConfigurationError("timeout is longer than 0 s")
    if "encryptor" in values and not isinstance(values["encryptor"], str):
        values["encryptor"] = know(values["encryptor"]).name
    if "redact" in values:
        if isinstance(values["redact"], str):
            raise ConfigurationError("redact takes a list of argument names, not one text")
        values["redact"] = frozenset(values["redact"])
    check_queue(values.get("queue"))
    check_priority(values.get("priority"))
    if "batch" in values and not 1 <= values["batch"] <= 50:
        raise ConfigurationError(f"batch is 1 to 50 (a SAVEPOINT each): it was {values['batch']}")


def check_queue(queue: object) -> None:
    """Raises ConfigurationError unless it is None or a name of 1 to 64 characters."""
    if queue is not None and not (isinstance(queue, str) and 0 < len(queue) <= 64):
        raise ConfigurationError("queue is a name of 1 to 64 characters")


def check_priority(priority: object) -> None:
    """Raises ConfigurationError unless it is None or 0 (first) to 9."""
    if priority is not None and (type(priority) is not int or not 0 <= priority <= 9):
        raise ConfigurationError(f"priority is a whole number from 0 (first) to 9, not {priority!r}")
