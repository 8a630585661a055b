"""Names of queues that may be typing errors."""

from collections.abc import Iterable

from async_task import AsyncTask, ConfigurationError
from async_task_cli.faults import one_line
from async_task_cli.terminal import say


def why_unknown(app: AsyncTask, queue: str | None) -> str | None:
    """Why a queue of this name may be a typing error; None for one that something knows."""
    try:
        if queue is not None:
            app.attempts.list(queue=queue, limit=1)
    except ConfigurationError as error:
        return str(error)
    return None


def warn_of_unknown(app: AsyncTask, queues: Iterable[str]) -> None:
    """Say on standard error which of these nothing knows."""
    for queue in queues:
        if (why := why_unknown(app, queue)) is not None:
            say(f"async-task: {one_line(why)}")
