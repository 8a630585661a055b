"""The hooks round a call: `AsyncTask(around=...)`. One body serves plain functions and coroutine functions.

1. Each hook is given the facts of the call, and makes a context manager. They are entered, the first one outermost.
2. If one cannot be entered, what it raised is the answer, and the target is not called.
3. On leaving, each sees what was raised inside of it. What the target raised stays the answer: a hook observes.
"""

import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Self

from async_task.database.answers import Raised
from async_task.error_text import quotes_nothing
from async_task.queue.claim import Claim
from async_task.queue.hooks import Around, CallFacts, Hooks, facts_of
from async_task.targets.context import Discard, RetryAfter

logger = logging.getLogger("async_task")


async def answer_within(
    hooks: Sequence[Around], facts: CallFacts, answer: Callable[[], Awaitable[object]], *, is_async: bool
) -> object:
    """`answer()`, the answer of the target, inside of what the hooks make, at least one; or `Raised`. `is_async`: the
    target is a coroutine function. If not, this waits for nothing, and `completed` runs it."""
    hook, *others = hooks
    try:
        manager: Any = hook(facts)
        is_awaited = _is_awaited(manager, hook, facts, is_async=is_async)
        kind: Any = type(manager)
        if is_awaited:
            await kind.__aenter__(manager)
        else:
            kind.__enter__(manager)
    except BaseException as problem:
        return Raised(problem)
    inner = await (answer_within(others, facts, answer, is_async=is_async) if others else answer())
    error = inner.error if isinstance(inner, Raised) else None
    given = (None, None, None) if error is None else (type(error), error, error.__traceback__)
    try:
        if is_awaited:
            await kind.__aexit__(manager, *given)
        else:
            kind.__exit__(manager, *given)
    except BaseException as raised:
        return _answer_after(raised, error, hook, facts)
    return inner


class Watched:
    """A try, as telemetry watches it: outside of the hooks and of the time limit, so that it is told what counts."""

    def __init__(self, hooks: Hooks, claim: Claim) -> None:
        self._manager = None if hooks.performing is None else hooks.performing(facts_of(claim))
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        if self._manager is not None:
            self._manager.__enter__()
        return self

    def answered(self, answer: object) -> object:
        """Note the answer of the call, and return it."""
        self._error = answer.error if isinstance(answer, Raised) else None
        return answer

    def __exit__(self, kind: object, raised: BaseException | None, trace: object) -> None:
        if self._manager is not None:
            error = raised or self._error
            if error is None:
                self._manager.__exit__(None, None, None)
            else:
                self._manager.__exit__(type(error), error, error.__traceback__)


def completed(work: Coroutine[Any, Any, object]) -> object:
    """What a coroutine returns that waits for nothing, without an event loop."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits for something")


def _is_awaited(manager: object, hook: Around, facts: CallFacts, *, is_async: bool) -> bool:
    """Whether it is entered as an asynchronous context manager: where both are possible, a coroutine function does so.
    Raises TypeError for what cannot be entered."""
    kind = type(manager)
    can_await = hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__")
    if is_async and can_await:
        return True
    if hasattr(kind, "__enter__") and hasattr(kind, "__exit__"):
        return False
    if inspect.iscoroutine(manager):
        manager.close()
    if can_await:
        raise quotes_nothing(TypeError(
            f"the hook {_name(hook)} (around=) returned an asynchronous context manager, and {facts.call} is a plain "
            "def, which cannot await it: return one that has __enter__ and __exit__, as @contextmanager makes it"
        ))  # fmt: skip
    raise quotes_nothing(TypeError(
        f"the hook {_name(hook)} (around=) returned a {kind.__name__}, which is no context manager: return one, as "
        "functions with @contextmanager or @asynccontextmanager do, or nullcontext() for nothing"
    ))  # fmt: skip


def _answer_after(raised: BaseException, error: BaseException | None, hook: Around, facts: CallFacts) -> Raised:
    """The answer after a hook `raised` on leaving; `error` was raised inside of it. Only RetryAfter and Discard, which
    say what becomes of the attempt, take the place of another error."""
    answers = (RetryAfter, Discard)
    if error is None or (isinstance(raised, answers) and not isinstance(error, answers)):
        return Raised(raised)
    if raised is not error:  # without its text, which may quote the arguments
        logger.error(
            "the hook %s (around=) raised %s after try %d of attempt %s had raised %s, which counts",
            _name(hook), type(raised).__qualname__, facts.number, facts.id, type(error).__qualname__,
        )  # fmt: skip
    return Raised(error)


def _name(hook: Around) -> str:
    return str(getattr(hook, "__qualname__", type(hook).__qualname__))
