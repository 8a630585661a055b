"""The ledger of a process that performs attempts: which of their calls run, and which have returned.

It is a small file in memory, named after the worker, which outlives its process. So whoever recovers the claims of a
process that has died charges only the calls that ran then: a claim that had not begun, or whose call had returned, has
killed nobody. It also tells that a process lives which cannot reach the database.
"""

import contextlib
import functools
import mmap
import os
import socket
import stat
import struct
import tempfile
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

PLACES = 8192
"""How many calls can be noted at once; of a ledger that was full, nothing is concluded."""
HEADER = struct.Struct("<d?")
ENTRY = struct.Struct("<16sB")
SIZE = HEADER.size + PLACES * ENTRY.size
KEPT_FOR = 86_400.0
"""Seconds after which the ledger of a process that has ended is removed, if nobody has recovered its claims."""


NONE, RUNNING, RETURNED = range(3)
"""What is known of the call at a place."""


class Begun(NamedTuple):
    """The attempts whose calls had begun: those that were `running`, and those that had `returned`."""

    running: frozenset[uuid.UUID]
    returned: frozenset[uuid.UUID]


class Ledger:
    """Of `worker`, whose process alone writes it. Thread-safe. Where it cannot be made, nothing is noted, and every
    claim counts as begun."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._memory: mmap.mmap | None = None
        self._free = list(range(SIZE - ENTRY.size, HEADER.size - 1, -ENTRY.size))
        self._places: dict[uuid.UUID, int] = {}
        self._owner = os.getpid()

    def open(self) -> None:
        """Make the file, once; before the first claim, so that a missing entry means that the call had not begun."""
        if self._memory is None and hasattr(os, "posix_fallocate"):
            with contextlib.suppress(OSError):
                self._memory = _made(_file_of(self._worker))
                self.beat()

    def beat(self) -> None:
        """Note that this process lives."""
        if self._memory is not None:
            self._memory[:8] = struct.pack("<d", time.monotonic())

    def begin(self, attempt_id: uuid.UUID) -> None:
        """The call of this attempt begins."""
        memory = self._memory
        if memory is None:
            return
        place = self._places.get(attempt_id)
        if place is None:
            try:
                place = self._places[attempt_id] = self._free.pop()
            except IndexError:
                memory[8] = True
                return
            memory[place : place + 16] = attempt_id.bytes
        memory[place + 16] = RUNNING  # last: until then the entry is not read

    def returned(self, attempt_id: uuid.UUID) -> None:
        """The call has returned or raised, and its outcome is to be written."""
        memory, place = self._memory, self._places.get(attempt_id)
        if place is not None and memory is not None:
            memory[place + 16] = RETURNED

    def forget(self, attempt_ids: Iterable[uuid.UUID]) -> None:
        """These attempts are no longer claimed."""
        for attempt_id in attempt_ids:
            memory, place = self._memory, self._places.pop(attempt_id, None)
            if place is not None and memory is not None:
                memory[place + 16] = NONE
                self._free.append(place)

    def close(self) -> None:
        """Remove the file: nothing is claimed any more."""
        # Not closed: a thread that was left behind may still write.
        memory, self._memory = self._memory, None
        if memory is not None and os.getpid() == self._owner:
            forget(self._worker)


class NoLedger(Ledger):
    """Notes nothing: for a process whose parent does."""

    def __init__(self) -> None:
        super().__init__("none")

    def open(self) -> None:
        pass


NO_LEDGER = NoLedger()


def read(worker: str) -> Begun | None:
    """What the ledger of a worker says; None if this machine has none of it, or one that does not say all."""
    content = _content(worker)
    if content is None or HEADER.unpack_from(content)[1]:
        return None
    noted = [(uuid.UUID(bytes=one), stage) for one, stage in ENTRY.iter_unpack(content[HEADER.size :]) if stage]
    return Begun(*(frozenset(one for one, stage in noted if stage == wanted) for wanted in (RUNNING, RETURNED)))


def has_beaten(worker: str, seconds: float) -> bool:
    """Whether a process of this machine has noted within these seconds that it lives."""
    content = _content(worker)
    # The clock is one for all processes, and begins anew with the machine.
    return content is not None and 0 <= time.monotonic() - HEADER.unpack_from(content)[0] < seconds


def forget(worker: str) -> None:
    """Remove the ledger of a worker, whose claims were recovered or released."""
    with contextlib.suppress(OSError, AttributeError):
        _file_of(worker).unlink()


def _file_of(worker: str) -> Path:
    return _folder() / worker.replace("/", "_")


def _folder() -> Path:
    """Of this user alone: what is read here decides who is charged."""
    memory = Path("/dev/shm")  # noqa: S108 - a file on a disk would be written to it now and then
    shared = memory if os.access(memory, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    return shared / f"async-task-{os.getuid()}"


def _made(file: Path) -> mmap.mmap:
    with contextlib.suppress(FileExistsError):
        file.parent.mkdir(mode=0o700)
    if not _is_ours(file.parent):
        raise PermissionError(f"{file.parent} is somebody else's")
    _remove_old(file.parent)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, SIZE)  # else a full disk would kill the process when it writes there
        return mmap.mmap(descriptor, SIZE)
    finally:
        os.close(descriptor)


def _content(worker: str) -> bytes | None:
    try:
        file = _file_of(worker)
        content = file.read_bytes() if _is_ours(file.parent) else b""
    except (OSError, AttributeError):  # a system without user ids
        return None
    return content if len(content) == SIZE else None


def _is_ours(folder: Path) -> bool:
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


@functools.cache  # once in a process: a folder may hold hundreds
def _remove_old(folder: Path) -> None:
    """Ledgers of processes of this machine that have ended long ago."""
    here = socket.gethostname().replace("@", "_")
    for file in folder.iterdir():
        with contextlib.suppress(OSError, ValueError):
            host, pid, _ = file.name.rsplit(":", 2)
            machine = host.rpartition("@")[2]  # before it is the name that was given to the worker
            is_here = machine in (here[:64], here[:40])
            is_old = is_here and time.time() - file.stat().st_mtime > KEPT_FOR
            if is_old and not Path(f"/proc/{int(pid)}").exists():
                file.unlink()
