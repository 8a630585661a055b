"""The call itself, run on a lane or an event loop. Its answer is what the target returned, or `Raised`."""

import asyncio
import contextvars
import datetime as dt
import inspect
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from async_task.attempts.ambient import handed
from async_task.database.answers import Raised, called, returned_or_raised
from async_task.database.lanes import Lane
from async_task.execution.around import Watched, answer_within, completed
from async_task.execution.prepared_call import ExecutionContext, PreparedCall, timeout_error
from async_task.execution.starts import Starts
from async_task.execution.transaction import CallTransaction
from async_task.queue.claim import Claim
from async_task.queue.hooks import NO_HOOKS, Around, Hooks, facts_of
from async_task.targets.answers import checked_answer
from async_task.targets.context import Again, Discard, RetryAfter, current_attempt, performing

logger = logging.getLogger("async_task")
CLEAN_UP = 5.0
"""Seconds in which a canceled coroutine must end, before it is closed."""


def run_call(
    context: ExecutionContext, claim: Claim, call: PreparedCall, transaction: CallTransaction | None
) -> object:
    """Run the call and return its answer. A target that takes a session gets one of `transaction`.

    Raises NotStarted."""
    context.starts.begin(claim)
    token = performing.set(partial(call.current, claim))
    try:
        if context.calling is None and context.hooks.performing is None:  # most calls: two context managers cost 0.7 us
            return _lane_answer(context, claim, call, transaction)
        with (context.calling or nullcontext)(), Watched(context.hooks, claim) as watched:
            return watched.answered(_lane_answer(context, claim, call, transaction))
    finally:
        context.starts.returned(claim)
        performing.reset(token)


def _lane_answer(
    context: ExecutionContext, claim: Claim, call: PreparedCall, transaction: CallTransaction | None
) -> object:
    """The answer of the call, also of a coroutine that a plain function returns."""
    answer = _invoke(context, claim, call, transaction)
    answer = context.lane.run_coroutine(answer) if inspect.iscoroutine(answer) else answer
    return checked_answer(answer)


async def run_coroutine(claim: Claim, call: PreparedCall, starts: Starts, hooks: Hooks = NO_HOOKS) -> object:
    """Run a coroutine function that takes no session, on this event loop and inside of the hooks round calls, and
    return its answer. Raises NotStarted."""
    starts.begin(claim)
    performing.set(partial(call.current, claim))  # in this task only
    try:
        function: Callable[..., Any] = partial(call.method.callable, **call.arguments)
        if hooks.around:
            function = _coroutine_within(hooks.around, claim, function)
        with Watched(hooks, claim) as watched:
            return watched.answered(await _answer(function, call.timeout))
    finally:
        starts.returned(claim)


async def _answer(function: Callable[..., Any], timeout: dt.timedelta | None) -> object:
    answer = await _last_returned(_within_timeout(function, timeout))
    task = asyncio.current_task()
    if task is not None and task.cancelling() and not isinstance(answer, Raised):
        answer = Raised(asyncio.CancelledError())  # it canceled its own task and returned: the same as on a lane
    return checked_answer(answer)


async def _last_returned(work: Coroutine[Any, Any, Any]) -> object:
    """What a coroutine returns, or `Raised`. A coroutine that it returns is awaited, too."""
    answer = await returned_or_raised(work)
    while inspect.iscoroutine(answer):
        answer = await returned_or_raised(answer)
    return answer


def _invoke(context: ExecutionContext, claim: Claim, call: PreparedCall, transaction: CallTransaction | None) -> object:
    around = context.hooks.around
    function: Callable[..., Any] = partial(call.method.callable, **call.arguments)
    if call.session_class is not None:
        assert transaction is not None
        source = context.source
        session = transaction.session.make(
            call.session_class, source.session_class, source.session_options, transaction.open
        )
        function = partial(function, session)
        function = _with_ambient(session, function, call, flushes=context.hooks.are_round_calls)
    if call.method.signature.is_async:
        function = _coroutine_within(around, claim, function) if around else function
        return context.lane.run_coroutine(_within_timeout(function, call.timeout))
    function = _plain_within(around, claim, function, context.lane) if around else function
    # A session's connection lives on this lane's loop. Any other plain function may want to start a loop of its own.
    return context.lane.call_with_session(function) if call.session_class is not None else context.lane.call(function)


def _with_ambient(
    session: Any, function: Callable[..., Any], call: PreparedCall, *, flushes: bool
) -> Callable[..., Any]:
    """`function`, in which calls that are written down without `session=` go into the session that it was handed.
    `flushes`: its writes are sent inside of the hooks, so that listeners to a flush see what these have set."""
    own = session if isinstance(session, Session) else session.sync_session
    flush: Any = session.flush

    def plain() -> Any:
        with handed(own):
            answer = function()
        if flushes:
            flush()
        return answer

    async def awaited() -> Any:  # in the task that runs the target, which a timeout makes
        with handed(own):
            answer = await _ended(function())
        if flushes:
            await flush()
        return answer

    return awaited if call.method.signature.is_async else plain


def _plain_within(
    around: Sequence[Around], claim: Claim, function: Callable[..., Any], lane: Lane
) -> Callable[[], object]:
    """`function` inside of the hooks, which begin and end with it: also if it returns a coroutine, which is run here.
    What they set in contextvars ends with the call."""

    async def answer() -> object:
        returned = called(function)
        return checked_answer(lane.run_from_call(returned) if inspect.iscoroutine(returned) else returned)

    def within() -> object:
        return _unwrap(completed(answer_within(around, facts_of(claim), answer, is_async=False)))

    return lambda: contextvars.copy_context().run(within)


def _coroutine_within(
    around: Sequence[Around], claim: Claim, function: Callable[..., Any]
) -> Callable[[], Coroutine[Any, Any, object]]:
    """The same for a coroutine function. It runs in a task of its own, with which contextvars end."""

    async def answer() -> object:
        return checked_answer(await _last_returned(_within_timeout(function, None)))

    async def within() -> object:
        return _unwrap(await answer_within(around, facts_of(claim), answer, is_async=True))

    return within


async def _within_timeout(function: Callable[..., Any], timeout: dt.timedelta | None) -> Any:
    """What the coroutine returns. After `timeout` it is canceled, and a TimeoutError is raised, unless it then returns
    Again, or raises RetryAfter or Discard. Any other result is dropped: the call was interrupted, and would be lost if
    we recorded a success. Not `asyncio.timeout`, which lets the return value through."""
    if timeout is None:
        return await _ended(function())
    started = function()
    if not inspect.isawaitable(started):
        return started
    coroutine: Any = started
    own = contextvars.copy_context()
    task = asyncio.get_running_loop().create_task(returned_or_raised(coroutine), context=own)
    try:
        if (await asyncio.wait({task}, timeout=timeout.total_seconds()))[0]:
            return _unwrap(task.result())
    except asyncio.CancelledError:
        task.cancel()
        raise
    await _cancel(task, coroutine, own)
    answer = task.result() if task.done() and not task.cancelled() else None
    if isinstance(answer, Again) or (isinstance(answer, Raised) and isinstance(answer.error, Discard | RetryAfter)):
        return _unwrap(answer)
    late = timeout_error(timeout, "was canceled")
    late.__cause__ = answer.error if isinstance(answer, Raised) else None
    raise late


async def _ended(answer: Any) -> Any:
    """What an `async def` returns in the end. What a test has put in its place may be a plain `def`."""
    return await answer if inspect.isawaitable(answer) else answer


def _unwrap(answer: object) -> object:
    if isinstance(answer, Raised):
        raise answer.error
    return answer


async def _cancel(task: "asyncio.Task[Any]", coroutine: Coroutine[Any, Any, Any], own: contextvars.Context) -> None:
    """Cancel the task and wait for its end. If it ignores that, close the coroutine, in its `own` context, as what it
    leaves then resets contextvars. If it ignores that too, leave it running: the lane has other work."""
    task.cancel()
    if (await asyncio.wait({task}, timeout=CLEAN_UP))[0]:
        return
    logger.warning(
        "attempt %s: its coroutine did not end within %g s of being canceled, and is closed",
        current_attempt().id, CLEAN_UP,
    )  # fmt: skip
    try:
        own.run(coroutine.close)
    except BaseException:
        return  # nothing refers to it any more, and Python destroys it
    task.cancel()
    await asyncio.wait({task}, timeout=CLEAN_UP)
