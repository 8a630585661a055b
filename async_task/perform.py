"""Performing one claimed attempt: prepare the call, make it, decide what becomes of it, write that down.

1. Prepare: find the target, decrypt and check the arguments. What is missing here parks the attempt, uncharged.
2. Call: under the row's lock in the transaction of the outcome (locked), or with no transaction open (leased).
3. Decide, purely, from what the target answered.
4. Settle: the outcome, fenced, in the same transaction as the target's own writes.
"""

import datetime as dt
import inspect
import logging
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from sqlalchemy import Table
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from async_task import transactions
from async_task.answers import Again
from async_task.arguments import decode
from async_task.attempt import BaseAttempt
from async_task.claims import Claim
from async_task.current import CurrentAttempt, performing
from async_task.dialects import locks_rows
from async_task.encryption import NullEncryptor, context_of, encryptor_named, unseal
from async_task.engines import Source
from async_task.errors import AsyncTaskError, ClaimLost, ConfigurationError
from async_task.failures import describe, secrets_in
from async_task.fence import CommittedInside, Fence, passing_error
from async_task.lanes import Lane, Raised, is_unawaited
from async_task.outcomes import Canceled, Decision, Expired, Failed, Outcome, Parked, Retried, Standing, Succeeded, Superseded, decide
from async_task.policies import LOCKED_LIMIT
from async_task.status import Status
from async_task.targets import Method, target_named

logger = logging.getLogger("async_task")
T = TypeVar("T")
PATIENCE = 30.0


class Holding(Protocol):
    """What keeps a claim alive while its call is made: the process's heartbeat."""

    def __call__(self, attempt_id: Any, *, leased: bool) -> Any: ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call that can be made. `limit`: seconds it may take, None without a limit."""

    method: Method
    arguments: dict[str, Any]
    secrets: frozenset[str]
    locked: bool
    limit: float | None

    @property
    def session_class(self) -> type[Any] | None:
        return self.method.signature.session_class


class Performer:
    """Performs claimed attempts, one after the other, on one lane."""

    def __init__(self, source: Source, model: type[BaseAttempt], table: Table, lane: Lane, holding: Holding | None = None) -> None:
        self._source = source
        self._model = model
        self._table = table
        self._lane = lane
        self._holding = holding or (lambda attempt_id, *, leased: nullcontext())

    def perform(self, claim: Claim) -> Outcome:
        """Perform a claimed attempt to its outcome. Raises what the database raises when it stays away too long."""
        return self._lane.run(partial(self._perform, claim))

    def _perform(self, claim: Claim) -> Outcome:
        try:
            call = self._prepare(claim)
        except AsyncTaskError as error:
            return self._park(claim, f"{type(error).__name__}: {error}", _unready(), started=False)
        began = time.monotonic()
        limit = call.limit if call.limit is not None else LOCKED_LIMIT.total_seconds()
        fence = Fence(self._lane.engine, self._table, claim, limit, for_session=call.session_class is not None)
        try:
            with self._holding(claim.id, leased=not call.locked):
                answer = self._call(claim, call, fence)
                return self._settle(claim, call, fence, answer, dt.timedelta(seconds=time.monotonic() - began))
        except ClaimLost:
            return Superseded(claim.id)
        except _NotLocked as unlocked:
            return self._park(claim, unlocked.reason, _shaken(), started=False)
        finally:
            fence.close()

    def _prepare(self, claim: Claim) -> Prepared:
        method = target_named(claim.target).method(claim.method_name)
        text = unseal(claim.encoded_args, encryptor_named(claim.encryptor), context_of(claim.id, claim.target, claim.method_name))
        arguments = decode(text)
        method.signature.check(arguments)
        if method.signature.session_is_async and not self._source.is_async:
            raise ConfigurationError(f"{method.signature.label} asks for an AsyncSession: give AsyncTask an AsyncEngine")
        names = None if claim.encryptor != NullEncryptor.name else method.policy.redact or ()
        locked = method.mode == "locked" and locks_rows(self._lane.engine.dialect)
        limit = method.policy.timeout
        return Prepared(method, arguments, secrets_in(arguments, names), locked, None if limit is None else limit.total_seconds())

    def _call(self, claim: Claim, call: Prepared, fence: Fence) -> object:
        """What the target returned, or `Raised`."""
        if call.locked:
            self._lock(fence)
        token = performing.set(CurrentAttempt(claim.id, claim.number, self._deadline(claim, call)))
        try:
            return _checked(self._lane, self._made(call, fence))
        finally:
            performing.reset(token)

    def _lock(self, fence: Fence) -> None:
        try:
            fence.open()
        except DBAPIError as error:
            raise _NotLocked(f"its row could not be locked: {describe(error).summary}") from error

    def _made(self, call: Prepared, fence: Fence) -> object:
        method, arguments = call.method, call.arguments
        first: tuple[Any, ...] = ()
        if call.session_class is not None:
            first = (fence.session(call.session_class, self._source.session_class, self._source.session_options),)
        if method.signature.is_async:
            return self._lane.wait(_timed(method.callable, first, arguments, call.limit))
        if first:  # its session lives in this lane
            return Lane.call(self._lane, partial(method.callable, *first, **arguments))
        return self._lane.call(partial(method.callable, **arguments))

    def _settle(self, claim: Claim, call: Prepared, fence: Fence, answer: object, elapsed: dt.timedelta) -> Outcome:
        answer = self._kept_or_undone(fence, answer)
        if fence.is_lost:
            raise ClaimLost("its claim was lost before it wrote anything")
        if isinstance(answer, Raised) and isinstance(answer.error, CommittedInside):
            return self._committed_inside(claim, fence, answer.error)
        if isinstance(answer, Raised) and call.session_class and (fault := passing_error(answer.error)) and not _too_late(call, elapsed):
            fence.close()
            return self._park(claim, describe(fault, call.secrets).summary, _shaken(), started=True)
        decision = self._decide(claim, call, answer, elapsed)
        if not self._write(claim, call, fence, decision):
            return self._settle_anew(claim, call, fence, decision, elapsed)
        return self._after(claim, call, decision)

    def _kept_or_undone(self, fence: Fence, answer: object) -> object:
        """The answer, after the target's writes were kept (it returned) or undone (it raised, or they cannot be kept)."""
        if not isinstance(answer, Raised):
            try:
                fence.keep()
                return answer
            except CommittedInside as error:
                return Raised(error)
            except BaseException as error:
                answer = Raised(error)
        try:
            fence.undo()
        except CommittedInside as error:
            if passing_error(answer.error) is None:
                error.__cause__ = answer.error
                return Raised(error)
            fence.close()
        except DBAPIError:
            fence.close()
        return answer

    def _decide(self, claim: Claim, call: Prepared, answer: object, elapsed: dt.timedelta) -> Decision:
        left = None if claim.left is None else claim.left - elapsed
        standing = Standing(claim.age + elapsed, left, claim.num_errors, claim.max_attempts)
        raised = answer.error if isinstance(answer, Raised) else answer
        return decide(raised, standing, call.method.policy.retry_or_default)

    def _write(self, claim: Claim, call: Prepared, fence: Fence, decision: Decision) -> bool:
        """Write and commit the outcome. False when that failed, and it is not known whether it was committed.

        Raises ClaimLost when somebody else was first.
        """
        failure = None if decision.error is None else describe(decision.error, call.secrets)
        try:
            if fence.is_open:
                hit = transactions.write_outcome(fence.open(), self._table, claim, decision, failure)
                if hit:
                    fence.commit()
            else:
                hit = transactions.settle(self._lane.engine, self._table, claim, decision, failure)
        except Exception as error:
            logger.warning("the outcome of attempt %s could not be written at once: %s", claim.id, describe(error).summary)
            self._problem = error
            return False
        finally:
            # Returned before anything else is done: the next transaction may want this pool's last connection.
            fence.close()
        if not hit:
            raise ClaimLost("somebody else was first")
        return True

    def _settle_anew(self, claim: Claim, call: Prepared, fence: Fence, decision: Decision, elapsed: dt.timedelta) -> Outcome:
        """A failed COMMIT, or a lost connection, proves nothing: read the row again, and go on from there."""
        problem, had_writes = self._problem, call.session_class is not None and decision.error is None
        row = insist(lambda: transactions.standing(self._lane.engine, self._table, claim.id))
        if row is None or row.claim_id != claim.claim_id:
            is_ours = row is not None and row.num_attempts == claim.number and row.status == decision.status
            return self._after(claim, call, decision) if is_ours else Superseded(claim.id)
        if had_writes and passing_error(problem) is not None and not _too_late(call, elapsed):
            return self._park(claim, describe(problem, call.secrets).summary, _shaken(), started=True)
        if had_writes:
            error = TimeoutError(_too_long(call, elapsed)) if _too_late(call, elapsed) else problem
            decision = self._decide(claim, call, Raised(error), elapsed)
        failure = None if decision.error is None else describe(decision.error, call.secrets)
        hit = insist(lambda: transactions.settle(self._lane.engine, self._table, claim, decision, failure))
        return self._after(claim, call, decision) if hit else Superseded(claim.id)

    def _committed_inside(self, claim: Claim, fence: Fence, error: CommittedInside) -> Outcome:
        """Part of its effects may be committed: a retry could repeat them, so a person must look."""
        fence.close()
        reason = "committed_inside: the target ended the attempt's transaction itself; look what it did before a retry"
        decision = Decision(Status.FAILED, reason, charged=True)
        failure = None if error.__cause__ is None else describe(error.__cause__)
        hit = insist(lambda: transactions.settle(self._lane.engine, self._table, claim, decision, failure))
        return Failed(claim.id, reason) if hit else Superseded(claim.id)

    def _after(self, claim: Claim, call: Prepared, decision: Decision) -> Outcome:
        if decision.error is not None:
            said = describe(decision.error, call.secrets).summary
            logger.info("attempt %s: try %d raised %s", claim.id, claim.number, type(decision.error).__qualname__)
            changed = self._hook(claim, call, decision)
            return changed or _outcome(claim, decision, said)
        return _outcome(claim, decision, None)

    def _hook(self, claim: Claim, call: Prepared, decision: Decision) -> Outcome | None:
        """Run the user's `handle_perform_error`; the outcome that it led to, None when it changed nothing."""
        if not _overrides_hook(self._model):
            return None
        assert decision.error is not None
        maker: Any = self._source.session_class if issubclass(self._source.session_class, Session) else Session
        options = self._source.session_options if maker is not Session else {}
        try:
            with maker(self._lane.engine, **options) as session, session.begin():
                attempt = session.get(self._model, claim.id)
                if attempt is None:
                    return None
                attempt.handle_perform_error(decision.error)
                session.flush()
                status, reason = attempt.status, attempt.last_error or ""
        except BaseException as error:
            logger.error("handle_perform_error of attempt %s raised %s", claim.id, describe(error, call.secrets).summary)
            return None
        return _by_hook(claim, reason)[status](claim.id) if status is not decision.status and status in _by_hook(claim, reason) else None

    def _park(self, claim: Claim, reason: str, after: dt.timedelta, *, started: bool) -> Outcome:
        logger.warning("attempt %s is parked: %s", claim.id, reason)
        hit = insist(lambda: transactions.park(self._lane.engine, self._table, claim, after, reason, started=started))
        return Parked(claim.id, after, reason) if hit else Superseded(claim.id)

    def _deadline(self, claim: Claim, call: Prepared) -> dt.datetime | None:
        limit = call.limit if call.limit is not None or not call.locked else LOCKED_LIMIT.total_seconds()
        return None if limit is None else claim.taken_at + dt.timedelta(seconds=limit)


class _NotLocked(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, reason: str) -> None:
        self.reason = reason


def insist(work: Callable[[], T], patience: float = PATIENCE) -> T:
    """Do `work`, again while the infrastructure fails, with jittered backoff, for `patience` seconds; then raise."""
    until, pause = time.monotonic() + patience, 0.05
    while True:
        try:
            return work()
        except DBAPIError as error:
            if passing_error(error) is None and not isinstance(error, OperationalError):
                raise
            if time.monotonic() + pause > until:
                raise
        time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter is no secret
        pause = min(2 * pause, 2.0)


async def _timed(function: Callable[..., Any], first: tuple[Any, ...], arguments: dict[str, Any], limit: float | None) -> Any:
    import asyncio

    async with asyncio.timeout(limit):
        return await function(*first, **arguments)


def _checked(lane: Lane, answer: object) -> object:
    """The answer, when it is one: a coroutine is awaited, and what is known never to have run is an error."""
    if is_unawaited(answer):
        answer = lane.wait(answer)  # type: ignore[arg-type]
    if inspect.isgenerator(answer) or inspect.isasyncgen(answer) or inspect.isawaitable(answer):
        return Raised(TypeError(f"the target answered a {type(answer).__name__}, which nobody has run"))
    if isinstance(answer, BaseException) or answer is Again:
        return Raised(TypeError(f"the target returned {type(answer).__name__}: raise an exception, return Again(after=...)"))
    return answer


def _unready() -> dt.timedelta:
    """How long an attempt waits for a target, a key or a setting that this process lacks."""
    return dt.timedelta(seconds=random.uniform(20, 40))  # noqa: S311 - jitter is no secret


def _shaken() -> dt.timedelta:
    """How long an attempt waits when the database failed it."""
    return dt.timedelta(seconds=random.uniform(1, 3))  # noqa: S311 - jitter is no secret


def _too_late(call: Prepared, elapsed: dt.timedelta) -> bool:
    limit = call.limit if call.limit is not None else LOCKED_LIMIT.total_seconds()
    return elapsed.total_seconds() >= limit


def _too_long(call: Prepared, elapsed: dt.timedelta) -> str:
    limit = call.limit if call.limit is not None else LOCKED_LIMIT.total_seconds()
    return f"the call took {elapsed.total_seconds():.1f} s in its transaction, and its limit is {limit:g} s (timeout=, or mode='leased')"


def _overrides_hook(model: type[BaseAttempt]) -> bool:
    mapped = [mapper.class_ for mapper in inspect_mapper(model).self_and_descendants]
    return any(cls.handle_perform_error is not BaseAttempt.handle_perform_error for cls in mapped)


def inspect_mapper(model: type[BaseAttempt]) -> Any:
    """The mapper at the root of the model's inheritance."""
    mapper: Any = model.__mapper__  # type: ignore[attr-defined]
    return mapper.base_mapper


def _by_hook(claim: Claim, reason: str) -> dict[Status, Callable[[Any], Outcome]]:
    return {
        Status.FAILED: lambda attempt_id: Failed(attempt_id, reason),
        Status.EXPIRED: lambda attempt_id: Expired(attempt_id, reason),
        Status.CANCELED: Canceled,
    }


def _outcome(claim: Claim, decision: Decision, said: str | None) -> Outcome:
    match decision.status:
        case Status.SUCCEEDED:
            return Succeeded(claim.id)
        case Status.FAILED:
            return Failed(claim.id, ": ".join(part for part in (decision.reason, said) if part))
        case Status.EXPIRED:
            return Expired(claim.id, decision.reason)
        case _:
            assert decision.after is not None
            return Retried(claim.id, decision.after, said)
