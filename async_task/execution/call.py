"""The call itself: prepared from a row, made on a lane, answered with what it returned or raised."""

import asyncio
import datetime as dt
import inspect
import logging
from collections.abc import Callable, Collection, Coroutine
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Engine, Table

from async_task.arguments.decoding import decode
from async_task.attempts.attempt import BaseAttempt
from async_task.database.dialects import locks_rows
from async_task.database.engines import Source
from async_task.database.lanes import LOCKED_LIMIT, Lane, Raised, returned_or_raised
from async_task.encryption.encryptors import NullEncryptor, context_of, encryptor_named, unseal
from async_task.error_text import secrets_in
from async_task.errors import ConfigurationError, DecryptionFailed, UnknownMethod, UnknownTarget
from async_task.execution.transaction import CallTransaction
from async_task.queue.claim import Claim
from async_task.targets.context import Again, CurrentAttempt, Discard, RetryAfter, current_attempt, performing
from async_task.targets.parameter_types import PLAIN
from async_task.targets.registry import target_named
from async_task.targets.target import Method


@dataclass(frozen=True, slots=True)
class ExecutionContext:
    """What all steps of one performing have in common. `calling`: entered for the time of the call itself."""

    source: Source
    model: type[BaseAttempt]
    table: Table
    lane: Lane
    calling: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def engine(self) -> Engine:
        return self.lane.engine


logger = logging.getLogger("async_task")
CLEAN_UP = 5.0
"""Seconds that a canceled coroutine has for its own end, before it is closed."""


class PreparedCall(NamedTuple):
    """A call that can be made. `hidden`: the arguments that nothing may show, None: all. `timeout`: what the policy
    says, or None."""

    method: Method
    arguments: dict[str, Any]
    hidden: Collection[str] | None
    is_locked: bool
    timeout: dt.timedelta | None
    seen: frozenset[str] | None = None

    @property
    def secrets(self) -> frozenset[str]:
        """Texts that nothing may show."""
        return secrets_in(self.arguments, self.hidden) if self.seen is None else self.seen

    @property
    def session_class(self) -> type[Any] | None:
        """The class of the session that the target asks for, None when it asks for none."""
        return self.method.signature.session_class

    @property
    def limit(self) -> dt.timedelta:
        """How long a transaction may be held for this call."""
        return self.timeout or LOCKED_LIMIT

    def current(self, claim: Claim) -> CurrentAttempt:
        """What `current_attempt` answers while this call is made."""
        limit = _time_limit(self.is_locked, self.timeout)
        return CurrentAttempt(claim.id, claim.number, None if limit is None else claim.taken_at + limit)


def prepare(context: ExecutionContext, claim: Claim) -> PreparedCall:
    """Find the target, decrypt and decode the arguments, and check that they still fit.

    Raises UnknownTarget, UnknownMethod, UnknownEncryptor, DecryptionFailed, InvalidArguments, ConfigurationError: none
    of them is the call's fault.
    """
    method = target_named(claim.target).method(claim.method_name)
    if method.policy.only_encrypted and claim.encryptor == NullEncryptor.name:
        raise DecryptionFailed(
            f"{method.signature.label} takes encrypted arguments only, and these are plain text: if you know who wrote "
            "them, `async-task rotate-keys --to-policy` encrypts them"
        )
    arguments = decode(_text_of(claim))
    method.signature.check(arguments)
    if method.signature.session_is_async and not context.source.is_async:
        raise ConfigurationError(f"{method.signature.label} asks for an AsyncSession: give AsyncTask an AsyncEngine")
    hidden = None if claim.encryptor != NullEncryptor.name else method.policy.redact or ()
    # What the target can change is looked at before it is called; the rest only when something went wrong.
    can_change = hidden != () and not all(type(value) in PLAIN for value in arguments.values())
    seen = secrets_in(arguments, hidden) if can_change else None
    return PreparedCall(method, arguments, hidden, _is_locked(context, method), method.policy.timeout, seen)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What must be known of a call before it is prepared. `is_isolated`: it asks for a process. `limit`: how long it
    may take, None without an end."""

    is_isolated: bool = False
    limit: dt.timedelta | None = None


def bounds_of(context: ExecutionContext, claim: Claim) -> Bounds:
    """Nothing is decrypted or decoded for it. What this process does not know is parked wherever it is prepared."""
    try:
        method = target_named(claim.target).method(claim.method_name)
    except (UnknownTarget, UnknownMethod, ConfigurationError):
        return Bounds()
    limit = _time_limit(_is_locked(context, method), method.policy.timeout)
    return Bounds(bool(method.policy.isolate), limit)


def too_long(limit: dt.timedelta, how: str) -> TimeoutError:
    """What is recorded of a call that was past its limit; `how` it was ended."""
    return TimeoutError(f"the call took longer than its limit, {limit.total_seconds():g} s, and {how}")


def _is_locked(context: ExecutionContext, method: Method) -> bool:
    return method.mode == "locked" and locks_rows(context.engine.dialect)


def _time_limit(is_locked: bool, timeout: dt.timedelta | None) -> dt.timedelta | None:
    return timeout or (LOCKED_LIMIT if is_locked else None)


def _text_of(claim: Claim) -> str:
    if claim.encryptor == NullEncryptor.name:
        return claim.encoded_args
    context = context_of(claim.id, claim.target, claim.method_name)
    return unseal(claim.encoded_args, encryptor_named(claim.encryptor), context)


def make(context: ExecutionContext, claim: Claim, call: PreparedCall, transaction: CallTransaction | None) -> object:
    """Make the call, with a fence where it wants a session: what the target returned, or `Raised`. What is known never
    to have run is an error."""
    token = performing.set(partial(call.current, claim))
    try:
        with context.calling():
            return _checked(context.lane, _made(context, call, transaction))
    finally:
        performing.reset(token)


async def make_coroutine(claim: Claim, call: PreparedCall) -> object:
    """The same on an event loop, for a coroutine function that wants no session of ours."""
    performing.set(partial(call.current, claim))  # of this task alone
    answer = await returned_or_raised(_timed(partial(call.method.callable, **call.arguments), call.timeout))
    while inspect.iscoroutine(answer):
        answer = await returned_or_raised(answer)
    task = asyncio.current_task()
    if task is not None and task.cancelling() and not isinstance(answer, Raised):
        answer = Raised(asyncio.CancelledError())  # it has canceled its own task and returned: the same as on a lane
    return _refused(answer)


def _made(context: ExecutionContext, call: PreparedCall, transaction: CallTransaction | None) -> object:
    function: Callable[..., Any] = partial(call.method.callable, **call.arguments)
    if call.session_class is not None:
        assert transaction is not None
        session = transaction.session(call.session_class, context.source.session_class, context.source.session_options)
        function = partial(call.method.callable, session, **call.arguments)
    if call.method.signature.is_async:
        return context.lane.run_coroutine(_timed(function, call.timeout))
    # A session of ours lives on this lane's loop; any other plain function may want to start one of its own.
    return context.lane.call_with_session(function) if call.session_class is not None else context.lane.call(function)


async def _timed(function: Callable[..., Any], timeout: dt.timedelta | None) -> Any:
    """What it returns. Past the limit it is canceled: then whatever it makes of that is a TimeoutError, unless it says
    itself when to come again, or never."""
    if timeout is None:
        return await function()
    coroutine = function()
    task = asyncio.ensure_future(returned_or_raised(coroutine))
    try:
        if (await asyncio.wait({task}, timeout=timeout.total_seconds()))[0]:
            return _unpacked(task.result())
    except asyncio.CancelledError:
        task.cancel()
        raise
    await _canceled(task, coroutine)
    answer = task.result() if task.done() and not task.cancelled() else None
    if isinstance(answer, Again) or (isinstance(answer, Raised) and isinstance(answer.error, Discard | RetryAfter)):
        return _unpacked(answer)
    late = too_long(timeout, "was canceled")
    late.__cause__ = answer.error if isinstance(answer, Raised) else None
    raise late


def _unpacked(answer: object) -> object:
    if isinstance(answer, Raised):
        raise answer.error
    return answer


async def _canceled(task: "asyncio.Future[Any]", coroutine: Coroutine[Any, Any, Any]) -> None:
    """Until it has ended; or, if it does not mind being canceled, until it is closed, which it cannot but mind unless
    it swallows everything. Then it is left to itself: the lane has other things to do."""
    task.cancel()
    if (await asyncio.wait({task}, timeout=CLEAN_UP))[0]:
        return
    logger.warning(
        "attempt %s: its coroutine did not end within %g s of being canceled, and is closed",
        current_attempt().id, CLEAN_UP,
    )  # fmt: skip
    try:
        coroutine.close()
    except BaseException:
        return  # nothing refers to it any more, so that Python throws it away
    task.cancel()
    await asyncio.wait({task}, timeout=CLEAN_UP)


def _checked(lane: Lane, answer: object) -> object:
    return _refused(lane.run_coroutine(answer) if inspect.iscoroutine(answer) else answer)


def _refused(answer: object) -> object:
    """The answer; `Raised` where it is none that can be brought to an outcome."""
    if answer is None:
        return None
    if inspect.isgenerator(answer) or inspect.isasyncgen(answer) or inspect.isawaitable(answer):
        return Raised(TypeError(f"the target answered a {type(answer).__name__}, which nobody has run"))
    if isinstance(answer, BaseException) or answer is Again:
        name = getattr(answer, "__name__", type(answer).__name__)
        return Raised(
            TypeError(f"the target returned {name}: exceptions are raised, and a poll returns Again(after=...)")
        )
    return answer
