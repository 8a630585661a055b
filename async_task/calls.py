"""The call itself: prepared from a row, made on a lane, answered with what it returned or raised."""

import asyncio
import datetime as dt
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from async_task.answers import Again
from async_task.claims import Claim
from async_task.current import CurrentAttempt, performing
from async_task.decoding import decode
from async_task.dialects import locks_rows
from async_task.encryption import NullEncryptor, context_of, encryptor_named, unseal
from async_task.errors import ConfigurationError, DecryptionFailed
from async_task.failures import secrets_in
from async_task.fence import Fence
from async_task.lanes import Lane, Raised, kept
from async_task.policies import LOCKED_LIMIT
from async_task.signatures import PLAIN
from async_task.site import Site
from async_task.targets import Method, target_named


@dataclass(frozen=True, slots=True)
class PreparedCall:
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

    def deadline(self, claim: Claim) -> dt.datetime | None:
        """By the database's clock; None without a limit."""
        limit = self.limit if self.is_locked else self.timeout
        return None if limit is None else claim.taken_at + limit


def prepare(site: Site, claim: Claim) -> PreparedCall:
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
    if method.signature.session_is_async and not site.source.is_async:
        raise ConfigurationError(f"{method.signature.label} asks for an AsyncSession: give AsyncTask an AsyncEngine")
    hidden = None if claim.encryptor != NullEncryptor.name else method.policy.redact or ()
    is_locked = method.mode == "locked" and locks_rows(site.engine.dialect)
    # What the target can change is looked at before it is called; the rest only when something went wrong.
    can_change = hidden != () and not all(type(value) in PLAIN for value in arguments.values())
    seen = secrets_in(arguments, hidden) if can_change else None
    return PreparedCall(method, arguments, hidden, is_locked, method.policy.timeout, seen)


def _text_of(claim: Claim) -> str:
    if claim.encryptor == NullEncryptor.name:
        return claim.encoded_args
    context = context_of(claim.id, claim.target, claim.method_name)
    return unseal(claim.encoded_args, encryptor_named(claim.encryptor), context)


def make(site: Site, claim: Claim, call: PreparedCall, fence: Fence | None) -> object:
    """Make the call, with a fence where it wants a session: what the target returned, or `Raised`. What is known never
    to have run is an error."""
    token = performing.set(CurrentAttempt(claim.id, claim.number, call.deadline(claim)))
    try:
        return _checked(site.lane, _made(site, call, fence))
    finally:
        performing.reset(token)


async def make_coroutine(claim: Claim, call: PreparedCall) -> object:
    """The same on an event loop, for a coroutine function that wants no session of ours."""
    performing.set(CurrentAttempt(claim.id, claim.number, call.deadline(claim)))  # of this task alone
    answer = await kept(_timed(partial(call.method.callable, **call.arguments), call.timeout))
    while inspect.iscoroutine(answer):
        answer = await kept(answer)
    return _refused(answer)


def _made(site: Site, call: PreparedCall, fence: Fence | None) -> object:
    function: Callable[..., Any] = partial(call.method.callable, **call.arguments)
    if call.session_class is not None:
        assert fence is not None
        session = fence.session(call.session_class, site.source.session_class, site.source.session_options)
        function = partial(call.method.callable, session, **call.arguments)
    if call.method.signature.is_async:
        return site.lane.wait(_timed(function, call.timeout))
    # A session of ours lives on this lane's loop; any other plain function may want to start one of its own.
    return site.lane.call_here(function) if call.session_class is not None else site.lane.call(function)


async def _timed(function: Callable[..., Any], timeout: dt.timedelta | None) -> Any:
    async with asyncio.timeout(None if timeout is None else timeout.total_seconds()):
        return await function()


def _checked(lane: Lane, answer: object) -> object:
    return _refused(lane.wait(answer) if inspect.iscoroutine(answer) else answer)


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
