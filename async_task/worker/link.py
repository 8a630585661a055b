"""The link between a process and one that it has forked: requests go down it as single bytes, reports go up as lines of
JSON. When a process dies, however it dies, its end is closed, and the other process sees that."""

import contextlib
import json
import select
import socket
from collections.abc import Iterable
from typing import Any, Protocol

STOP, ABANDON, POLL = b"s", b"a", b"p"
"""Requests: start nothing further and finish; abandon the running calls; poll for due attempts now."""


class HasDescriptor(Protocol):
    def fileno(self) -> int: ...


class Link:
    """One end. Nothing here waits, but for `report` where the other process does not read."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._unread = b""
        self.is_over = False
        """Whether the other end was closed."""

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()
        self.is_over = True

    # Upper end.

    def request(self, what: bytes) -> None:
        with contextlib.suppress(OSError):
            self._socket.send(what, socket.MSG_DONTWAIT)

    def read_reports(self) -> list[dict[str, Any]]:
        """What was reported since the last time."""
        *lines, self._unread = (self._unread + self._read()).split(b"\n")
        return [json.loads(line) for line in lines]

    # Lower end.

    def report(self, **facts: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(facts).encode() + b"\n")

    def read_requests(self) -> list[bytes]:
        """What was requested since the last time."""
        return [bytes([one]) for one in self._read()]

    def _read(self) -> bytes:
        received = b""
        try:
            while part := self._socket.recv(65536, socket.MSG_DONTWAIT):
                received += part
            self.is_over = True
        except BlockingIOError:
            pass
        except OSError:
            self.is_over = True
        return received


def wait_for_any(ends: Iterable[HasDescriptor], seconds: float | None) -> None:
    """Until one of these can be read, or this time has passed. Links that are over are left out."""
    watch = select.poll()
    for end in ends:
        if not (isinstance(end, Link) and end.is_over):
            watch.register(end.fileno(), select.POLLIN)
    watch.poll(None if seconds is None else max(0.0, seconds) * 1000)
