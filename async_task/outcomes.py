"""How performing an attempt ends, and the pure decision about it from what the target returned or raised."""

import datetime as dt
import random
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from async_task.error_text import quotes_nothing
from async_task.errors import ConfigurationError
from async_task.schema.states import Status
from async_task.targets.context import Again, GivenUp, Restarted, RetryAfter
from async_task.targets.error_kinds import ANY, NOT_NAMED, ErrorKinds, leaves
from async_task.targets.retry import DEFAULT_RETRY, Retry, duration


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `outbox.perform` returns: one of the classes below."""

    attempt_id: uuid.UUID


@dataclass(frozen=True, slots=True)
class Succeeded(Outcome):
    """The call returned, and `succeeded` is committed."""


@dataclass(frozen=True, slots=True)
class Retried(Outcome):
    """Still pending, due again `after` from now. `error`: what was raised; None for a poll (`Again`)."""

    after: dt.timedelta
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Failed(Outcome):
    """Failed for good; `reason` says why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Expired(Outcome):
    """Past its `expires_at`, or its next try would have been."""

    reason: str


@dataclass(frozen=True, slots=True)
class Canceled(Outcome):
    """Canceled in `handle_perform_error`, after a failed try."""


@dataclass(frozen=True, slots=True)
class NotDue(Outcome):
    """Not performed: due at `due_at`, and not before the attempt `behind`, an earlier one of its order key, is at rest
    (None: it waits for no other). Nothing about the attempt changed."""

    due_at: dt.datetime
    behind: uuid.UUID | None = None


@dataclass(frozen=True, slots=True)
class NotPending(Outcome):
    """Not performed: at rest in `status`; None: there is no such attempt."""

    status: Status | None


@dataclass(frozen=True, slots=True)
class Busy(Outcome):
    """Not performed: claimed `by` a worker `since` an instant; both None if its row is locked for a change."""

    by: str | None
    since: dt.datetime | None


@dataclass(frozen=True, slots=True)
class Superseded(Outcome):
    """Somebody else claimed or changed the attempt meanwhile: no outcome was written."""


@dataclass(frozen=True, slots=True)
class Parked(Outcome):
    """Released uncharged, due again `after` from now: the fault is not the call's. `reason` says what to mend."""

    after: dt.timedelta
    reason: str


KINDS = (Succeeded, Retried, Failed, Expired, Canceled, NotDue, NotPending, Busy, Superseded, Parked)


@dataclass(frozen=True, slots=True)
class Decision:
    """The new state of a performed attempt. `reason`: why, or what is broken. `after`: set exactly when it stays
    pending. `charged`: an error is counted. `error`: what was raised, or None. `given_up`: why the operation that it
    polls was given up just now. `expires_at`: a new one, of a job that was restarted.
    """

    status: Status
    reason: str = ""
    after: dt.timedelta | None = None
    charged: bool = False
    error: BaseException | None = None
    given_up: str | None = None
    expires_at: dt.datetime | None = None


SUCCESS = Decision(Status.SUCCEEDED)


@dataclass(frozen=True, slots=True)
class Standing:
    """What a decision needs to know of the attempt; in durations, so that no two clocks are ever compared.

    `age`: since `scheduled_at`, or else `created_at`. `left`: until `expires_at`; None without one. `errors`: counted
    before this call. `max_attempts`: the row's own maximum, which goes before the policy's.
    """

    age: dt.timedelta
    left: dt.timedelta | None
    errors: int
    max_attempts: int | None


def decide(
    answer: object, standing: Standing, retry: Retry, draw: Callable[[], float] = random.random,
    kinds: ErrorKinds = ANY,
) -> Decision:  # fmt: skip
    """Decide about an attempt whose call returned `answer`, or raised it (a BaseException)."""
    if isinstance(answer, BaseException):
        return _after_error(answer, standing, retry, draw, kinds)
    if isinstance(answer, Restarted):
        return Decision(Status.PENDING, after=answer.after, expires_at=answer.expires_at)
    if isinstance(answer, Again):
        after, problem = _checked(lambda: duration(answer.after, name="after"))
        if after is None:
            error = quotes_nothing(TypeError(f"the target returned an Again whose {problem}"))
            return _after_error(error, standing, retry, draw, kinds)
        decision = _pending_after(after, standing, error=None)
        return replace(decision, given_up=answer.reason) if isinstance(answer, GivenUp) else decision
    return SUCCESS


def _after_error(
    error: BaseException, standing: Standing, retry: Retry, draw: Callable[[], float], kinds: ErrorKinds
) -> Decision:
    reason = kinds.ending(error)
    if reason is not None:
        return _failed(reason, error)  # without one its own text becomes it later, when secrets in it are hidden
    errors = standing.errors + 1
    most = standing.max_attempts if standing.max_attempts is not None else retry.max_attempts
    if most is not None and errors >= most:
        return _failed(f"max_attempts used up: {errors} of {most}", error)
    after, problem = _checked(lambda: retry.delay(errors, draw))
    if problem:
        problem = f"its retry policy is broken, so the default one decided: {problem}"
        after, _ = _checked(lambda: DEFAULT_RETRY.delay(errors, draw))
    if after is None:
        return _failed(f"no further try in its retry policy ({retry.name})", error)
    own, broken = _asked_wait(error)
    problem, after = broken or problem, after if own is None else own
    until = DEFAULT_RETRY.until if problem and retry.until is None else retry.until
    if until is not None and standing.age + after > until:
        return _failed(f"the next try would be later than until = {until} allows", error)
    return _pending_after(after, standing, error=error, problem=problem)


def _asked_wait(error: BaseException) -> tuple[dt.timedelta | None, str]:
    """The wait that a RetryAfter asks for, of several in a group the longest; and what is wrong with
    it if none is valid."""
    longest: dt.timedelta | None = None
    problem = ""
    for asking in (one for one in leaves(error) if isinstance(one, RetryAfter)):
        own, broken = _checked(partial(_own_wait, asking))
        if own is None:
            problem = f"its {type(asking).__name__} is broken, so its retry policy decided: {broken}"
        else:
            longest = own if longest is None else max(longest, own)
    return longest, problem if longest is None else ""


def _own_wait(asking: RetryAfter) -> dt.timedelta:
    return duration(asking.after, name="after")


def _checked(wait: Callable[[], dt.timedelta | None]) -> tuple[dt.timedelta | None, str]:
    """A wait that the user's code decides, and what is wrong with it: it may raise, and answer anything."""
    try:
        return wait(), ""
    except ConfigurationError as error:
        return None, str(error)
    except BaseException as error:
        return None, f"raised {type(error).__name__}"


def _pending_after(
    after: dt.timedelta, standing: Standing, error: BaseException | None, problem: str = ""
) -> Decision:  # fmt: skip
    charged = error is not None
    if standing.left is not None and after >= standing.left:
        return Decision(Status.EXPIRED, "its next try would fall past expires_at", charged=charged, error=error)
    return Decision(Status.PENDING, problem, after, charged=charged, error=error)


def error_alone(text: str) -> str:
    """A stored error without the reason why nothing more is tried, which stands before it in the row and behind it in
    the event: what differs between tries is not the error."""
    return _REASON_BEHIND.sub("", _REASON_BEFORE.sub("", text, count=1), count=1)


_REASON = (
    r"max_attempts used up: \d+ of \d+|no further try in its retry policy \([^()]*\)|"
    r"the next try would be later than until = [^()]* allows|its next try would fall past expires_at|"
    rf"{NOT_NAMED}"
)
_REASON_BEFORE = re.compile(rf"^(?:{_REASON}): (?=.)")
_REASON_BEHIND = re.compile(rf" \((?:{_REASON})\)$")


def _failed(reason: str, error: BaseException) -> Decision:
    return Decision(Status.FAILED, reason, charged=True, error=error)
