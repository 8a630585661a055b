"""Work at the end of a worker that may wait for the database, and must not keep the process from ending."""

import logging
import threading
from collections.abc import Callable

from async_task.error_text import describe

logger = logging.getLogger("async_task")


def finish_within(seconds: float, name: str, work: Callable[[], object]) -> bool:
    """Do `work` on a thread of its own, and wait for it for at most `seconds`. Returns whether it was done; an error is
    logged. What is not done by then goes on, and ends with the process."""
    done: list[bool] = []

    def live() -> None:
        try:
            work()
            done.append(True)
        except Exception as error:
            logger.warning("%s: %s", name, describe(error).summary)

    thread = threading.Thread(target=live, name=f"async-task-{name}", daemon=True)
    thread.start()
    thread.join(timeout=max(0.0, seconds))
    return bool(done)
