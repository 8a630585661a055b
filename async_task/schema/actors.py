"""Who does something to an attempt: said once around the verbs, and written into the event of each."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from async_task.errors import ConfigurationError

LONGEST_ACTOR = 255
_acting: ContextVar[str | None] = ContextVar("async_task_actor", default=None)


@contextmanager
def acting(actor: str) -> Iterator[None]:
    """Inside of this, the verbs write `actor` into their events: `with acting("anna@host"): attempt.cancel()`.

    It holds in this thread and asyncio task, in the tasks begun here, and through `AsyncSession.run_sync`. Raises
    ConfigurationError unless `actor` is a printable text of 1 to 255 characters.
    """
    check_actor(actor)
    token = _acting.set(actor)
    try:
        yield
    finally:
        _acting.reset(token)


def current_actor() -> str | None:
    """Who acts here; None where nobody said so."""
    return _acting.get()


def check_actor(actor: object) -> None:
    """Raises ConfigurationError unless it is a printable text of 1 to 255 characters."""
    if not (isinstance(actor, str) and 0 < len(actor) <= LONGEST_ACTOR and actor.isprintable()):
        raise ConfigurationError(
            f"an actor is a printable text of 1 to {LONGEST_ACTOR} characters: acting('anna@host')"
        )
