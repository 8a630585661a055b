"""What telemetry raises is said once, and goes no further: a tracer or a meter fails no call."""

import logging
from types import TracebackType

from async_task.error_text import describe_place
from async_task.queue.hooks import is_interrupt

logger = logging.getLogger("async_task")


class Tolerated:
    """A context manager, for any number of threads: what is raised in it is logged with its class and its place, once
    for each class, and is swallowed. `what`: begins the sentence in the log."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._known: set[type[BaseException]] = set()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        if kind is None or raised is None or is_interrupt(raised):
            return False
        if kind not in self._known:
            self._known.add(kind)
            said = describe_place(raised).summary
            logger.error(
                "%s raised %s. The calls go on; further %s are not logged", self._what, said, kind.__qualname__
            )
        return True
