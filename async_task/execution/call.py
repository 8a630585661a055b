"""The call itself: prepared from a row, run on a lane. Its answer is what the target returned, or `Raised`."""

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
    """Where an attempt is performed. `calling`: a context manager around the call itself."""

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
"""Seconds in which a canceled coroutine must end, before it is closed."""


class PreparedCall(NamedTuple):
    """A call that is ready to run. `hidden`: names of the arguments that must not be shown, None: all of them.
    `timeout`: the policy's, or None. `known_secrets`: texts that must not be shown, where the call can change them.

    There may be thousands a second: what few calls need (secrets, deadline, `current_attempt()`) is computed on demand.
    """

    method: Method
    arguments: dict[str, Any]
    hidden: Collection[str] | None
    is_locked: bool
    timeout: dt.timedelta | None
    known_secrets: frozenset[str] | None = None

    @property
    def secrets(self) -> frozenset[str]:
        """Texts that must not be shown."""
        return secrets_in(self.arguments, self.hidden) if self.known_secrets is None else self.known_secrets

    @property
    def session_class(self) -> type[Any] | None:
        """The class of the session that the target takes, None if it takes none."""
        return self.method.signature.session_class

    @property
    def limit(self) -> dt.timedelta:
        """How long a transaction may stay open for this call."""
        return self.timeout or LOCKED_LIMIT

    def current(self, claim: Claim) -> CurrentAttempt:
        """What `current_attempt()` returns in this call."""
        limit = _time_limit(self.is_locked, self.timeout)
        return CurrentAttempt(claim.id, claim.number, None if limit is None else claim.claimed_at + limit)


def prepare(context: ExecutionContext, claim: Claim) -> PreparedCall:
    """Find the target, decrypt and decode the arguments, and check that they still fit.

    Raises UnknownTarget, UnknownMethod, UnknownEncryptor, DecryptionFailed, InvalidArguments, ConfigurationError. The
    call is not charged for any of them.
    """
    method = target_named(claim.target).method(claim.method_name)
    # Without only_encrypted, plain rows are accepted: those written before the target got its encryptor stay readable.
    if method.policy.only_encrypted and claim.encryptor == NullEncryptor.name:
        raise DecryptionFailed(
            f"{method.signature.label} takes encrypted arguments only, and these are plain text: if you know who wrote "
            "them, `async-task rotate-keys --to-policy` encrypts them"
        )
    arguments = decode(_decrypted_arguments(claim))
    method.signature.check(arguments)
    if method.signature.session_is_async and not context.source.is_async:
        raise ConfigurationError(f"{method.signature.label} asks for an AsyncSession: give AsyncTask an AsyncEngine")
    hidden = None if claim.encryptor != NullEncryptor.name else method.policy.redact or ()
    # Secrets are collected when an error is described; before the call only if the target can change the arguments.
    can_change = hidden != () and not all(type(value) in PLAIN for value in arguments.values())
    secrets = secrets_in(arguments, hidden) if can_change else None
    return PreparedCall(method, arguments, hidden, _is_locked(context, method), method.policy.timeout, secrets)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What must be known of a call before it is prepared. `is_isolated`: it runs in a process of its own. `limit`: how
    long it may take, None for ever."""

    is_isolated: bool = False
    limit: dt.timedelta | None = None


def bounds_of(context: ExecutionContext, claim: Claim) -> Bounds:
    """The bounds of a claimed call, without decrypting or decoding it. A call that this process does not know has none:
    it is parked when it is prepared."""
    try:
        method = target_named(claim.target).method(claim.method_name)
    except (UnknownTarget, UnknownMethod, ConfigurationError):
        return Bounds()
    limit = _time_limit(_is_locked(context, method), method.policy.timeout)
    return Bounds(bool(method.policy.isolate), limit)


def timeout_error(limit: dt.timedelta, how: str) -> TimeoutError:
    """The error of a call that exceeded its limit; `how` it was ended."""
    return TimeoutError(f"the call took longer than its limit, {limit.total_seconds():g} s, and {how}")


def _is_locked(context: ExecutionContext, method: Method) -> bool:
    return method.mode == "locked" and locks_rows(context.engine.dialect)


def _time_limit(is_locked: bool, timeout: dt.timedelta | None) -> dt.timedelta | None:
    return timeout or (LOCKED_LIMIT if is_locked else None)


def _decrypted_arguments(claim: Claim) -> str:
    if claim.encryptor == NullEncryptor.name:
        return claim.encoded_args
    context = context_of(claim.id, claim.target, claim.method_name)
    return unseal(claim.encoded_args, encryptor_named(claim.encryptor), context)


def run_call(
    context: ExecutionContext, claim: Claim, call: PreparedCall, transaction: CallTransaction | None
) -> object:
    """Run the call and return its answer. A target that takes a session gets one of `transaction`."""
    token = performing.set(partial(call.current, claim))
    try:
        with context.calling():
            answer = _invoke(context, call, transaction)
            return _checked_answer(context.lane.run_coroutine(answer) if inspect.iscoroutine(answer) else answer)
    finally:
        performing.reset(token)


async def run_coroutine(claim: Claim, call: PreparedCall) -> object:
    """Run a coroutine function that takes no session, on this event loop, and return its answer."""
    performing.set(partial(call.current, claim))  # in this task only
    answer = await returned_or_raised(_within_timeout(partial(call.method.callable, **call.arguments), call.timeout))
    while inspect.iscoroutine(answer):
        answer = await returned_or_raised(answer)
    task = asyncio.current_task()
    if task is not None and task.cancelling() and not isinstance(answer, Raised):
        answer = Raised(asyncio.CancelledError())  # it canceled its own task and returned: the same as on a lane
    return _checked_answer(answer)


def _invoke(context: ExecutionContext, call: PreparedCall, transaction: CallTransaction | None) -> object:
    function: Callable[..., Any] = partial(call.method.callable, **call.arguments)
    if call.session_class is not None:
        assert transaction is not None
        session = transaction.session(call.session_class, context.source.session_class, context.source.session_options)
        function = partial(call.method.callable, session, **call.arguments)
    if call.method.signature.is_async:
        return context.lane.run_coroutine(_within_timeout(function, call.timeout))
    # A session's connection lives on this lane's loop. Any other plain function may want to start a loop of its own.
    return context.lane.call_with_session(function) if call.session_class is not None else context.lane.call(function)


async def _within_timeout(function: Callable[..., Any], timeout: dt.timedelta | None) -> Any:
    """What the coroutine returns. After `timeout` it is canceled, and a TimeoutError is raised, unless it then returns
    Again, or raises RetryAfter or Discard. Any other result is dropped: the call was interrupted, and would be lost if
    we recorded a success. Not `asyncio.timeout`, which lets the return value through."""
    if timeout is None:
        return await function()
    coroutine = function()
    task = asyncio.ensure_future(returned_or_raised(coroutine))
    try:
        if (await asyncio.wait({task}, timeout=timeout.total_seconds()))[0]:
            return _unwrap(task.result())
    except asyncio.CancelledError:
        task.cancel()
        raise
    await _cancel(task, coroutine)
    answer = task.result() if task.done() and not task.cancelled() else None
    if isinstance(answer, Again) or (isinstance(answer, Raised) and isinstance(answer.error, Discard | RetryAfter)):
        return _unwrap(answer)
    late = timeout_error(timeout, "was canceled")
    late.__cause__ = answer.error if isinstance(answer, Raised) else None
    raise late


def _unwrap(answer: object) -> object:
    if isinstance(answer, Raised):
        raise answer.error
    return answer


async def _cancel(task: "asyncio.Future[Any]", coroutine: Coroutine[Any, Any, Any]) -> None:
    """Cancel the task and wait for its end. If it ignores that, close the coroutine. If it ignores that too, leave it
    running: the lane has other work."""
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
        return  # nothing refers to it any more, and Python destroys it
    task.cancel()
    await asyncio.wait({task}, timeout=CLEAN_UP)


def _checked_answer(answer: object) -> object:
    """The answer; `Raised` if it is something that has not run, or an error that was returned instead of raised."""
    if answer is None:
        return None
    if inspect.isgenerator(answer) or inspect.isasyncgen(answer) or inspect.isawaitable(answer):
        return Raised(TypeError(f"the target returned a {type(answer).__name__}, which was never run"))
    if isinstance(answer, BaseException) or answer is Again:
        name = getattr(answer, "__name__", type(answer).__name__)
        return Raised(
            TypeError(f"the target returned {name}: exceptions are raised, and a poll returns Again(after=...)")
        )
    return answer
