"""A call that is prepared from its row: the target is found, and its arguments are decrypted, decoded and checked."""

import contextlib
import datetime as dt
from collections.abc import Callable, Collection, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import Engine, Table

from async_task.arguments.decoding import decode, read_stored
from async_task.attempts.attempt import BaseAttempt
from async_task.database.dialects import locks_rows
from async_task.database.engines import Source
from async_task.database.lanes import LOCKED_LIMIT, Lane
from async_task.encryption.encryptors import NullEncryptor, context_of, encryptor_named, unseal
from async_task.error_text import (
    Failure,
    describe,
    describe_place,
    of_library,
    one_line_without,
    quotes_nothing,
    secrets_in,
)
from async_task.errors import ConfigurationError, DecryptionFailed, InvalidArguments, UnknownMethod, UnknownTarget
from async_task.execution.parked_reasons import ParkedReasons
from async_task.execution.starts import NO_STARTS, Starts
from async_task.queue.claim import Claim
from async_task.queue.hooks import NO_HOOKS, Hooks
from async_task.targets.call_settings import settings_of
from async_task.targets.context import CurrentAttempt
from async_task.targets.parameter_types import PLAIN
from async_task.targets.registry import target_named
from async_task.targets.retry import Retry
from async_task.targets.target import Method


@dataclass(frozen=True, slots=True)
class ExecutionContext:
    """Where an attempt is performed. `calling`: a context manager around the call itself. `starts`: notes that the call
    runs. `parked_reasons`: what was logged about parked attempts. `is_abandoned`: whether the outcomes of calls are no
    longer to be written, because somebody else releases their claims. `hooks`: of the application. `heard`: is told of
    each error that a call raised, once its outcome is written. `released`: is told of the queues in which the next
    attempts of order keys may have been released, and returns those whose workers are to be notified. `following`:
    chooses the claim whose row is to be locked with the commit of a call that takes a session and has succeeded; None
    if there is none."""

    source: Source
    model: type[BaseAttempt]
    table: Table
    lane: Lane
    calling: Callable[[], AbstractContextManager[None]] | None = None
    starts: Starts = NO_STARTS
    parked_reasons: ParkedReasons = field(default_factory=ParkedReasons)
    is_abandoned: Callable[[], bool] = lambda: False
    hooks: Hooks = NO_HOOKS
    heard: Callable[[Claim, BaseException], object] = lambda claim, error: None
    released: Callable[[Set[str]], Set[str]] = lambda queues: queues
    following: Callable[[Claim, "PreparedCall"], Claim | None] = lambda claim, call: None

    @property
    def engine(self) -> Engine:
        return self.lane.engine

    def isolation_of(self, call: "PreparedCall") -> str | None:
        """The isolation level of the call's transaction: the target's, else that of the user's engine. None for READ
        COMMITTED, for a call that takes no session, and on SQLite, where all transactions are serializable."""
        if call.session_class is None or not locks_rows(self.source.dialect):
            return None
        level = call.method.policy.isolation or self.source.isolation
        return None if level == "READ COMMITTED" else level


class PreparedCall(NamedTuple):
    """A call that is ready to run. `hidden`: names of the arguments that must not be shown, None: all of them.
    `timeout`: its own, else the policy's, or None. `known_secrets`: texts that must not be shown, where the call can
    change them. `own_retry`: the one that the call was written with.

    There may be thousands a second: what few calls need (secrets, deadline, `current_attempt()`) is computed on demand.
    """

    method: Method
    arguments: dict[str, Any]
    hidden: Collection[str] | None
    is_locked: bool
    timeout: dt.timedelta | None
    known_secrets: frozenset[str] | None = None
    own_retry: Retry | None = None

    @property
    def retry(self) -> Retry:
        """When it is tried again."""
        return self.own_retry or self.method.policy.retry_or_default

    def describe(self, error: BaseException) -> Failure:
        """An error of this call as text to store and to log, without secrets. If its arguments are encrypted, without
        the message too, unless the target stores messages."""
        if self.hidden is None and not self.method.policy.store_messages:
            return describe_place(error)
        secrets = secrets_in(self.arguments, self.hidden) if self.known_secrets is None else self.known_secrets
        return describe(error, secrets)

    def describe_for_log(self, error: BaseException) -> Failure:
        """The same without the value of any argument: logs go further than the table."""
        if self.hidden is None and not self.method.policy.store_messages:
            return describe_place(error)
        return describe(error, secrets_in(self.arguments, None))

    def reason_for_log(self, reason: str) -> str:
        """A reason that the user gave, likewise: empty if the target stores no messages."""
        if self.hidden is None and not self.method.policy.store_messages:
            return ""
        return one_line_without(reason, secrets_in(self.arguments, None))

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
        deadline = None if limit is None else claim.claimed_at + limit
        return CurrentAttempt(claim.id, claim.number, deadline, claim.target, claim.method_name, claim.queue)


class Unfit(Exception):
    """The stored arguments do not fit the call any more, or a validator of the user's failed. The call is charged with
    `error`. `call`: the call without its arguments."""

    def __init__(self, call: PreparedCall, error: InvalidArguments) -> None:
        super().__init__("the stored arguments do not fit")
        self.call = call
        self.error = of_library(error)


def prepare(context: ExecutionContext, claim: Claim) -> PreparedCall:
    """Find the target, decrypt and decode the arguments, and check that they still fit.

    Raises UnknownTarget, UnknownMethod, UnknownEncryptor, DecryptionFailed, ConfigurationError, for which the call is
    not charged; and Unfit.
    """
    method = target_named(claim.target).method(claim.method_name)
    # Without only_encrypted, plain rows are accepted: those written before the target got its encryptor stay readable.
    if method.policy.only_encrypted and claim.encryptor == NullEncryptor.name:
        raise DecryptionFailed(
            f"{method.signature.label} takes encrypted arguments only, and these are plain text: if you know who wrote "
            "them, `async-task rotate-keys --to-policy` encrypts them"
        )
    method.signature.check_session(engine_is_async=context.source.is_async)
    own = settings_of(claim.call_settings)
    if own.timeout is not None:  # the target may have changed since it was written
        method.refuse_endless_timeout(own.timeout)
    text = _decrypted_arguments(claim)
    hidden = None if claim.encryptor != NullEncryptor.name else method.policy.redact or ()
    timeout = own.timeout or method.policy.timeout
    is_locked = _is_locked(context, method)

    def made(arguments: dict[str, Any], secrets: frozenset[str] | None = None) -> PreparedCall:
        return PreparedCall(method, arguments, hidden, is_locked, timeout, secrets, own.retry)

    try:
        arguments = decode(text)
        method.signature.check(arguments, may_change=True)
        # Secrets are collected when an error is described; before the call only if the target can change the arguments.
        can_change = hidden != () and not all(type(value) in PLAIN for value in arguments.values())
        secrets = secrets_in(arguments, hidden) if can_change else None
    except ConfigurationError:
        raise
    except InvalidArguments as error:
        _refuse_garbage(claim, text)
        raise Unfit(made({}), error) from None
    except BaseException as error:  # of a validator of the user's: its text may quote the arguments
        label, kind = method.signature.label, type(error).__name__
        raise Unfit(made({}), InvalidArguments(f"{label}: a validator raised {kind}")) from None
    return made(arguments, secrets)


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
        own = settings_of(claim.call_settings)
    except (UnknownTarget, UnknownMethod, ConfigurationError):
        return Bounds()
    limit = _time_limit(_is_locked(context, method), own.timeout or method.policy.timeout)
    return Bounds(bool(method.policy.isolate), limit)


def is_coroutine_call(claim: Claim) -> bool:
    """Whether a coroutine function is called; False for a call that this process does not know."""
    try:
        return target_named(claim.target).method(claim.method_name).signature.is_async
    except (UnknownTarget, UnknownMethod, ConfigurationError):
        return False


def timeout_error(limit: dt.timedelta, how: str) -> TimeoutError:
    """The error of a call that exceeded its limit; `how` it was ended."""
    return quotes_nothing(TimeoutError(f"the call took longer than its limit, {limit.total_seconds():g} s, and {how}"))


def _is_locked(context: ExecutionContext, method: Method) -> bool:
    return method.mode == "locked" and locks_rows(context.engine.dialect)


def _time_limit(is_locked: bool, timeout: dt.timedelta | None) -> dt.timedelta | None:
    return timeout or (LOCKED_LIMIT if is_locked else None)


def _decrypted_arguments(claim: Claim) -> str:
    if claim.encryptor == NullEncryptor.name:
        return claim.encoded_args
    context = context_of(claim.id, claim.target, claim.method_name)
    return unseal(claim.encoded_args, encryptor_named(claim.encryptor), context)


def _refuse_garbage(claim: Claim, text: str) -> None:
    """Raises DecryptionFailed if an encryptor made garbage of the arguments: it did not notice a wrong key, for which
    the call is not to blame."""
    if claim.encryptor == NullEncryptor.name:
        return
    with contextlib.suppress(InvalidArguments):
        read_stored(text)
        return
    raise DecryptionFailed(f"the encryptor {claim.encryptor!r} returned no JSON object: a wrong key, or a broken text")
