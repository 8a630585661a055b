"""What a child process does: it performs the claims that it reads from its socket, one at a time."""

import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial

from async_task.arguments.decoding import decode
from async_task.arguments.encoding import encode
from async_task.error_text import describe
from async_task.outcomes import Outcome
from async_task.queue.claim import Claim
from async_task.worker.processes.forking import flush_streams
from async_task.worker.processes.zygote import Board, Stage, receive

Calling = Callable[[], AbstractContextManager[None]]


Opened = Callable[[Calling], AbstractContextManager[Callable[[Claim], Outcome]]]


IDLE = 60.0
"""Seconds after which a child without requests ends."""


BEAT = 0.5
"""Seconds between two signs of life of a child."""


def live_as_child(opened: Opened, board: Board, link: socket.socket, place: int) -> None:
    link.settimeout(IDLE)
    threading.Thread(target=_beat, args=(board, place), daemon=True).start()
    with opened(partial(board.calling, place)) as perform:
        while (request := receive(link)) is not None:
            board.write(place, Stage.TAKEN)
            claim = decode(request.decode())["claim"]
            assert isinstance(claim, Claim)
            answer = _answer(perform, claim)
            flush_streams()  # this process ends without
            link.sendall(line_of(answer))
            board.write(place, Stage.IDLE)


def _beat(board: Board, place: int) -> None:
    while True:
        board.beat(place)
        time.sleep(BEAT)


def _answer(perform: Callable[[Claim], Outcome], claim: Claim) -> Mapping[str, object]:
    try:
        return {"outcome": perform(claim)}
    except MemoryError:
        raise  # only the end of this process frees the memory of the call
    except Exception as error:
        return {"problem": describe(error).summary, "started": True}


def line_of(message: Mapping[str, object]) -> bytes:
    return encode(message).encode() + b"\n"
