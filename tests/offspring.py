"""Child processes that are made without a runtime or a database, and inspected from outside."""

import datetime as dt
import os
import pathlib
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from async_task import Outcome
from async_task.queue.claim import Claim
from async_task.worker.processes.child_life import Calling, Opened
from async_task.worker.processes.parent import Children
from async_task.worker.processes.pool import Isolation

NOW = dt.datetime(2026, 3, 29, 1, 59, 59, 999_999, tzinfo=dt.UTC)


def claim(arguments: str = "{}") -> Claim:
    return Claim(
        id=uuid.uuid4(), claim_id=uuid.uuid4(), target="t", method_name="m", encoded_args=arguments, encryptor="null",
        queue="default", order_key=None, number=2, num_errors=3, num_crashes=1, num_losses=2, max_attempts=None,
        scheduled_at=None, created_at=NOW - dt.timedelta(days=1, microseconds=1), attempted_at=NOW,
        expires_at=NOW - dt.timedelta(seconds=1), last_error="said ß", priority=0, due_at=NOW, trace_context=None,
        call_settings=None,
    )  # fmt: skip


@contextmanager
def children(opened: Opened) -> Iterator[Isolation]:
    """Performs claims in children that open themselves with `opened`."""
    made = Children(opened)
    isolation = Isolation(made)
    try:
        yield isolation
    finally:
        isolation.close()
        made.close()


def performing(perform: Callable[[Claim], Outcome]) -> Opened:
    """Children that have nothing to open."""

    @contextmanager
    def opened(calling: Calling) -> Iterator[Callable[[Claim], Outcome]]:
        yield perform

    return opened


def _status_of(pid: int) -> list[str]:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def parent_of(pid: int) -> int:
    return int(_status_of(pid)[1])


def is_there(pid: int) -> bool:
    try:
        return _status_of(pid)[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def num_descriptors() -> int:
    return len(list(pathlib.Path("/proc/self/fd").iterdir()))


def num_children() -> int:
    return len(pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
