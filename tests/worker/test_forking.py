"""Processes that calls fork: they have nothing of the worker's."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from async_task.worker.processes import forking
from async_task_cli.signals import Leave

assert forking  # its hook is for every fork of this process
FORK = multiprocessing.get_context("fork")


@contextmanager
def handling(handler: Any) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def square(number: int) -> int:
    return number * number


def note(number: int, frame: FrameType | None) -> None:
    """A handler of the user's."""


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_child_that_a_call_forks_can_be_terminated_and_a_pool_ends() -> None:
    codes: list[object] = []

    def call() -> None:
        child = FORK.Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join(20)
        codes.append(child.exitcode)
        child.kill()
        with FORK.Pool(1) as pool:
            codes.append(pool.map(square, [2]))

    with handling(Leave(list, str)._take):
        lane = threading.Thread(target=call, daemon=True)
        lane.start()
        lane.join(30)
    assert codes == [-signal.SIGTERM, [4]]


def test_handlers_of_the_user_are_inherited() -> None:
    ours, theirs = FORK.Pipe()
    with handling(note):
        child = FORK.Process(target=lambda: theirs.send(signal.getsignal(signal.SIGTERM) is note))
        child.start()
        assert ours.recv()
        child.join()


def adopt_and_reap(told: Any) -> None:
    """In a process of its own: reaps an orphan, and leaves the exit code of a child that has ended."""
    forking.adopt_orphans()
    read, write = os.pipe()
    if not os.fork():
        orphan = os.fork()
        if orphan:
            os.write(write, str(orphan).encode())
        os._exit(0 if orphan else 7)
    os.wait()
    orphan, own = int(os.read(read, 64)), os.fork()
    if not own:
        os._exit(3)
    os.waitid(os.P_PID, orphan, os.WEXITED | os.WNOWAIT)
    os.waitid(os.P_PID, own, os.WEXITED | os.WNOWAIT)
    forking.reap_orphans(besides={own})
    code = os.waitstatus_to_exitcode(os.waitpid(own, 0)[1])
    forking.reap_orphans(besides=())
    told.send((code, Path(f"/proc/{orphan}").exists()))


def test_orphans_are_adopted_and_reaped_and_exit_codes_of_children_are_left() -> None:
    ours, theirs = FORK.Pipe()
    child = FORK.Process(target=adopt_and_reap, args=(theirs,))
    child.start()
    assert ours.poll(20)
    assert ours.recv() == (3, False)
    child.join()
