"""Workers count their calls in memory that they share with the run.

Asking the database how many jobs are done would cost what is being measured.
"""

import mmap
import pathlib
import struct
import threading
import time
from types import TracebackType
from typing import Self

SLOTS = 65_536
_SIZE = 8 * (SLOTS + 1)


class Board:
    """A count of calls, and the instant at which call `n` last began (seconds of the machine's monotonic clock).

    Little-endian in a file: an int64, then `SLOTS` doubles. One process writes, from any of its threads.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        if not path.exists():
            path.write_bytes(bytes(_SIZE))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _SIZE)
        self._ints = memoryview(self._memory).cast("q")
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ints.release()
        self._memory.close()

    @property
    def count(self) -> int:
        return self._ints[0]

    def add(self) -> None:
        with self._lock:
            self._ints[0] += 1

    def mark(self, number: int) -> None:
        """Note that call `number` begins now."""
        struct.pack_into("<d", self._memory, 8 * (number + 1), time.monotonic())
        self.add()

    def start(self, number: int) -> float | None:
        """When call `number` last began; None if it has not."""
        return struct.unpack_from("<d", self._memory, 8 * (number + 1))[0] or None

    def forget(self, number: int) -> None:
        struct.pack_into("<d", self._memory, 8 * (number + 1), 0.0)
