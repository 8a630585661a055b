"""The ledger: what other processes can read of the calls of one that has died."""

import os
import pathlib
import signal
import socket
import uuid
from collections.abc import Iterator

import pytest

from async_task.queue import ledger
from async_task.queue.ledger import Begun, Ledger
from async_task.queue.workers import worker_name

IDS = [uuid.uuid4() for _ in range(3)]


@pytest.fixture
def worker() -> Iterator[str]:
    name = worker_name()
    yield name
    ledger.forget(name)


def test_what_a_killed_process_had_noted_can_be_read(worker: str) -> None:
    pid = os.fork()
    if pid == 0:
        kept = Ledger(worker)
        kept.open()
        for one in IDS:
            kept.begin(one)
        kept.returned(IDS[1])
        kept.forget([IDS[2]])
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert ledger.read(worker) == Begun(frozenset(IDS[:1]), frozenset(IDS[1:2]))
    assert ledger.has_beaten(worker, 60)
    assert not ledger.has_beaten(worker, 0)


def test_a_call_that_begins_again_runs(worker: str) -> None:
    kept = Ledger(worker)
    kept.open()
    for _ in range(2):
        kept.begin(IDS[0])
        assert ledger.read(worker) == Begun(frozenset(IDS[:1]), frozenset())
        kept.returned(IDS[0])


def test_a_closed_ledger_is_gone_and_a_thread_that_was_left_behind_may_still_write(worker: str) -> None:
    kept = Ledger(worker)
    kept.open()
    kept.begin(IDS[0])
    kept.close()
    kept.returned(IDS[0])
    kept.begin(IDS[1])
    assert ledger.read(worker) is None


def test_nothing_is_concluded_from_a_ledger_that_was_full(worker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "PLACES", 2)
    monkeypatch.setattr(ledger, "SIZE", ledger.HEADER.size + 2 * ledger.ENTRY.size)
    kept = Ledger(worker)
    kept.open()
    for one in IDS:
        kept.begin(one)
    assert ledger.read(worker) is None


def test_a_folder_that_others_may_write_to_is_not_trusted(
    worker: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(ledger, "_folder", lambda: tmp_path)
    kept = Ledger(worker)
    tmp_path.chmod(0o777)
    kept.open()
    assert ledger.read(worker) is None
    tmp_path.chmod(0o700)
    kept.open()
    assert ledger.read(worker) == Begun(frozenset(), frozenset())


def test_the_first_ledger_of_a_process_removes_those_of_processes_that_ended_long_ago(
    worker: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(ledger, "_folder", lambda: tmp_path)
    ended = f"{socket.gethostname()[:64]}:{2**22 + 1}"
    for name in (f"{ended}:old", f"{ended}:young"):
        tmp_path.joinpath(name).touch()
    os.utime(tmp_path / f"{ended}:old", (0, 0))
    Ledger(worker).open()
    assert {file.name for file in tmp_path.iterdir()} == {f"{ended}:young", worker}
