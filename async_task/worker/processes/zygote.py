"""The process between a worker and the children in which calls are performed: it forks them, ends them with all that
they have started, and reports how they died."""

import contextlib
import json
import mmap
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

from async_task.worker.processes.forking import cause_of_death, disconnect_inherited, signal_at_death_of

GRACE, TICK_MS, PLACES = 2.0, 1000, 1024


class Stage(IntEnum):
    """What a child is doing: it waits, has read a request, makes the call, has returned from the call."""

    IDLE, TAKEN, CALLING, CALLED = range(4)


class Board:
    """Where each child writes its stage, in memory that it shares with its parent: it can be read when the child is
    dead, and the parent measures the time of the call alone without a message for it. A thread of the child writes
    beside it when it last ran: it does not while a call holds the GIL."""

    _stamp = struct.Struct("d")

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, PLACES * (1 + 2 * self._stamp.size))

    def write(self, place: int, stage: Stage) -> None:
        """The child at this place has come to this stage."""
        self._stamp.pack_into(self._shared, PLACES + place * self._stamp.size, time.monotonic())
        self._shared[place] = stage  # last: who reads it finds the time of this stage, or of a later one

    def read(self, place: int) -> tuple[Stage, float]:
        """Its stage, and since when by time.monotonic(), which is one clock for all processes."""
        stage = Stage(self._shared[place])
        (since,) = self._stamp.unpack_from(self._shared, PLACES + place * self._stamp.size)
        return stage, since

    def beat(self, place: int) -> None:
        """The threads of the child at this place run."""
        self._stamp.pack_into(self._shared, self._beat_of(place), time.monotonic())

    def silence(self, place: int) -> float:
        """Seconds since they last did, as far as is known."""
        (beat,) = self._stamp.unpack_from(self._shared, self._beat_of(place))
        return time.monotonic() - max(float(beat), self.read(place)[1])

    def _beat_of(self, place: int) -> int:
        return PLACES + (PLACES + place) * self._stamp.size

    @contextmanager
    def calling(self, place: int) -> Iterator[None]:
        """Entered by a child for the time of the call itself."""
        self.write(place, Stage.CALLING)
        try:
            yield
        finally:
            self.write(place, Stage.CALLED)


@dataclass(slots=True)
class _Child:
    pid: int
    link: socket.socket


class Zygote:
    """Lives until its parent closes `link`, or dies. `live_as_child`: what a child does with its socket and place.
    `warm_up`: called before the first child is forked, for what each would do by itself otherwise."""

    def __init__(
        self, link: socket.socket, board: Board, parent: int, live_as_child: Callable[[socket.socket, int], None],
        warm_up: Callable[[], object] | None = None,
    ) -> None:  # fmt: skip
        self._warm_up = warm_up
        self._link = link
        self._board = board
        self._parent = parent
        self._live_as_child = live_as_child
        self._children: dict[int, _Child] = {}
        self._deaths: dict[int, str] = {}
        self._wake = self._awake = -1

    def live(self) -> None:
        """Answer the parent's requests one after the other; none of them takes long."""
        disconnect_inherited(self._link.fileno())
        self._listen_to_signals()
        try:
            while (asked := self._next()) is not None:
                self._link.sendall(json.dumps(self._answer(*asked)).encode() + b"\n")
        finally:
            self._end_children()

    def _listen_to_signals(self) -> None:
        self._wake, self._awake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._awake, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._awake, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # the end comes from the parent, by the socket

    def _next(self) -> tuple[dict[str, int], list[int]] | None:
        """The parent's next request and the descriptors with it; None when it has ended. Reaps children that die
        meanwhile."""
        watch = select.poll()
        watch.register(self._wake, select.POLLIN)
        watch.register(self._link.fileno(), select.POLLIN)
        while True:
            seen = {descriptor for descriptor, _ in watch.poll(TICK_MS)}
            self._forget_wakes()
            self._reap_all()
            if self._link.fileno() in seen:
                with contextlib.suppress(OSError):
                    request, given, *_ = socket.recv_fds(self._link, 4096, 1)
                    return (json.loads(request), given) if request else None
                return None
            # The parent's end may be open in a process that it forked: then only its death can be seen.
            if os.getppid() != self._parent:
                return None

    def _answer(self, request: dict[str, int], given: list[int]) -> dict[str, object]:
        if "fork" in request:
            if self._warm_up is not None:
                with contextlib.suppress(Exception):
                    self._warm_up()
                self._warm_up = None
            return self._fork(request["fork"], socket.socket(fileno=given[0]))
        if "end" in request and (child := self._children.get(request["end"])) is not None:
            _kill_group(child.pid)
        return {"how": self._deaths.pop(request["forget"], None)} if "forget" in request else {}

    def _fork(self, place: int, link: socket.socket) -> dict[str, object]:
        # The child's socket leads straight to the parent: requests that pass through the zygote would wait for each
        # other, and one that is sent twice might be performed twice.
        link.settimeout(None)
        link.set_inheritable(False)
        zygote = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            link.close()
            return {"problem": str(error.strerror)}
        if pid == 0:
            self._become_child(zygote, link, place)
        # A group of its own, with whatever its calls start: a process they leave behind may hold the row's lock.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        # Its end of the socket is kept open here, and shut when it has died: only then does the parent see the end.
        self._children[place] = _Child(pid, link)
        return {}

    def _become_child(self, zygote: int, link: socket.socket, place: int) -> None:
        try:
            with contextlib.suppress(OSError):
                os.setpgid(0, 0)
            signal_at_death_of(zygote, signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            for inherited in (self._link, *(one.link for one in self._children.values())):
                inherited.close()
            for descriptor in (self._wake, self._awake):
                os.close(descriptor)
            self._live_as_child(link, place)
            os._exit(0)
        finally:
            os._exit(1)

    def _reap_all(self) -> None:
        for place, child in list(self._children.items()):
            # It is looked at without being reaped: until then no other process can get its number.
            if _has_ended(child.pid):
                self._reap(place, child)

    def _reap(self, place: int, child: _Child) -> None:
        """Keep how it died. What its call has started ends too: it may have the connection, and with it the row's lock;
        but what earlier calls have left behind on purpose outlives an idle child."""
        del self._children[place]
        if self._board.read(place)[0] is not Stage.IDLE:
            _kill_group(child.pid)
        code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        self._deaths[place] = f"its process {cause_of_death(code)}"
        _shut(child.link)

    def _end_children(self) -> None:
        """Let those that are idle close their connections; end the others, with what their calls started, at once."""
        for place, child in self._children.items():
            if self._board.read(place)[0] is not Stage.IDLE:
                _kill_group(child.pid)
            _shut(child.link)
        until = time.monotonic() + GRACE
        while self._children and (left := until - time.monotonic()) > 0:
            self._reap_all()
            if self._children:
                watch = select.poll()
                watch.register(self._wake, select.POLLIN)
                watch.poll(left * 1000)
                self._forget_wakes()
        for child in self._children.values():
            _kill_group(child.pid)
            os.waitpid(child.pid, 0)

    def _forget_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 512)


def receive(link: socket.socket) -> bytes | None:
    """The next line; None when the other side has ended, or the socket's timeout has passed."""
    received = bytearray()
    with contextlib.suppress(BlockingIOError, ConnectionResetError, TimeoutError):
        while part := link.recv(65536):
            received += part
            if part.endswith(b"\n"):
                return bytes(received)
    return None


def _shut(link: socket.socket) -> None:
    """Also for other processes that have this end open."""
    with contextlib.suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)
    link.close()


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _kill_group(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
