"""A link that is slower than loopback: a proxy that delays each byte in both directions.

As a program: `python -m benchmarks.link FOLDER SECONDS`, from a port of 127.0.0.1, which it prints, to the socket
of the PostgreSQL in that folder, until its standard input ends.
"""

import collections
import contextlib
import ctypes
import pathlib
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

HOME = pathlib.Path(__file__).parent.parent


@contextlib.contextmanager
def delayed(folder: str, seconds: float) -> Iterator[int]:
    """A port of loopback that leads to the server whose socket is in `folder`, with a delay of `seconds` each way."""
    command = [sys.executable, "-m", "benchmarks.link", folder, str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HOME) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait(10)


class Link:
    """The proxy: one thread with `select`, whose timeout has microseconds. That of `epoll` has milliseconds."""

    def __init__(self, folder: str, seconds: float) -> None:
        self.seconds = seconds
        self._folder = folder
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self._other: dict[socket.socket, socket.socket] = {}
        self._held: collections.deque[tuple[float, socket.socket, bytes]] = collections.deque()
        self._owed: dict[socket.socket, bytearray] = {}
        self._ended: set[socket.socket] = set()

    def carry(self, until: int) -> None:
        """Run until the file descriptor `until` is closed."""
        while True:
            patience = max(0.0, self._held[0][0] - time.monotonic()) if self._held else 1.0
            ready, free, _ = select.select([until, self._listener, *self._other], [*self._owed], [], patience)
            if until in ready:
                return
            for one in ready:
                if one is self._listener:
                    self._join()
                elif isinstance(one, socket.socket):
                    self._take(one)
            self._release()
            for one in free:
                self._give(one)

    def _join(self) -> None:
        near, _ = self._listener.accept()
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        far = socket.socket(socket.AF_UNIX)
        far.connect(f"{self._folder}/.s.PGSQL.5432")
        for one in (near, far):
            one.setblocking(False)
        self._other[near], self._other[far] = far, near

    def _take(self, one: socket.socket) -> None:
        try:
            data = one.recv(1 << 18)
        except OSError:
            data = b""
        self._held.append((time.monotonic() + self.seconds, self._other[one], data))
        if not data:
            del self._other[one]

    def _release(self) -> None:
        """Send what was delayed for long enough, as far as the other side accepts it."""
        while self._held and self._held[0][0] <= time.monotonic():
            _, to, data = self._held.popleft()
            self._owed.setdefault(to, bytearray()).extend(data)
            if not data:
                self._ended.add(to)
            self._give(to)

    def _give(self, to: socket.socket) -> None:
        owed = self._owed.get(to)
        if owed is None:
            return
        try:
            while owed:
                del owed[: to.send(owed)]
        except BlockingIOError:
            return
        except OSError:  # that side has closed the connection
            owed.clear()
        del self._owed[to]
        if to in self._ended:
            self._ended.discard(to)
            with contextlib.suppress(OSError):
                to.shutdown(socket.SHUT_WR)


def main(folder: str, seconds: str) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(29, 1000, 0, 0, 0)  # PR_SET_TIMERSLACK: sleep no longer than requested
    link = Link(folder, float(seconds))
    print(link.port, flush=True)
    link.carry(sys.stdin.fileno())


if __name__ == "__main__":
    main(*sys.argv[1:])
