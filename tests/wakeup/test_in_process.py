"""The bell: a ring wakes as many waiting lanes as there are new rows, and is not lost on one that is about to wait."""

import gc
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest
from sqlalchemy import Table, make_url

from async_task import Attempt
from async_task.wakeup import in_process as bell_module
from async_task.wakeup.in_process import MOST_REMEMBERED, Notifier, found_notifier, notifier_of
from elsewhere import await_

TABLE: Table = Attempt.__table__  # type: ignore[assignment]
SHOP = make_url("postgresql+psycopg://ann@db:5432/shop")
Heard = Future[frozenset[str]]


@pytest.fixture
def lanes() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def waiting(notifier: Notifier, lanes: ThreadPoolExecutor, *calls: Callable[[], frozenset[str]]) -> list[Heard]:
    """Lanes that have all come to wait."""
    before = len(notifier._waiting)
    heard = [lanes.submit(call) for call in calls]
    await_(lambda: len(notifier._waiting) == before + len(calls), "all wait")
    return heard


def test_a_ring_is_heard_by_who_waits(lanes: ThreadPoolExecutor) -> None:
    notifier = Notifier()
    (heard,) = waiting(notifier, lanes, lambda: notifier.wait(30))
    notifier.notify("mail")
    assert heard.result(30) == {"mail"}


def test_a_ring_for_one_row_wakes_one_of_eight_lanes(lanes: ThreadPoolExecutor) -> None:
    notifier = Notifier()
    heard = waiting(notifier, lanes, *[lambda: notifier.wait(30)] * 8)
    notifier.notify("mail")
    done, still = wait(heard, return_when="FIRST_COMPLETED")
    assert len(done) == 1
    assert len(notifier._waiting) == 7
    notifier.notify("mail", 3)
    await_(lambda: len(notifier._waiting) == 4, "three more were woken")
    notifier.wake()
    assert sorted(map(len, (one.result(30) for one in still))) == [0, 0, 0, 0, 1, 1, 1]


def test_it_is_heard_too_when_it_came_while_nobody_waited_but_once_a_lane_and_by_no_more_than_there_are_rows() -> None:
    notifier = Notifier()
    notifier.notify("mail", 2)
    notifier.notify("print")
    assert notifier.wait(0) == {"mail", "print"}
    assert notifier.wait(0) == frozenset()
    with ThreadPoolExecutor(1) as another:
        assert another.submit(notifier.wait, 0).result() == {"mail"}
    with ThreadPoolExecutor(1) as third:
        assert third.submit(notifier.wait, 0).result() == frozenset()


def test_what_is_rung_behind_a_ring_is_heard_by_the_next_wait(lanes: ThreadPoolExecutor) -> None:
    notifier = Notifier()
    (heard,) = waiting(notifier, lanes, lambda: notifier.wait(30) | notifier.wait(30))
    with notifier._lock:  # before the lane goes on
        notifier.notify("mail")
        notifier.notify("print")
    assert heard.result(30) == {"mail", "print"}


def test_a_lane_of_some_queues_does_not_take_the_rings_of_others(lanes: ThreadPoolExecutor) -> None:
    notifier = Notifier()
    (mail,) = waiting(notifier, lanes, lambda: notifier.wait(30, ("mail",)))
    notifier.notify("print")
    (printing,) = [lanes.submit(notifier.wait, 30, ("print",))]
    assert printing.result(30) == {"print"}
    assert not mail.done()
    notifier.notify("mail")
    assert mail.result(30) == {"mail"}


def test_without_a_ring_a_wait_ends_with_its_time() -> None:
    assert Notifier().wait(0.001) == frozenset()


def test_wake_ends_each_wait_once_also_one_that_is_just_about_to_begin(lanes: ThreadPoolExecutor) -> None:
    notifier = Notifier()
    heard = waiting(notifier, lanes, *[lambda: notifier.wait(30)] * 3)
    notifier.wake()
    assert [one.result(30) for one in heard] == [frozenset()] * 3
    began = threading.Event()
    late = lanes.submit(lambda: (began.wait(30), notifier.wait(0), notifier.wake(), notifier.wait(30))[-1])
    began.set()
    assert late.result(30) == frozenset()


def test_many_lanes_lose_no_ring() -> None:
    notifier, rows, taken = Notifier(), threading.Semaphore(0), threading.Semaphore(0)
    over = threading.Event()

    def lane() -> None:
        while not over.is_set():
            while rows.acquire(blocking=False):
                taken.release()
            notifier.wait(30)

    threads = [threading.Thread(target=lane) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(2_000):
        rows.release()
        notifier.notify("mail")
    for _ in range(2_000):
        assert taken.acquire(timeout=20), "a row waits, and nobody looks"
    over.set()
    notifier.wake()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_queues_without_number_do_not_fill_the_memory() -> None:
    notifier = Notifier()
    for number in range(MOST_REMEMBERED + 500):
        notifier.notify(f"queue-{number}")
    assert len(notifier.wait(0)) == MOST_REMEMBERED


def test_there_is_one_for_a_table_in_a_database_whatever_the_driver_and_for_as_long_as_somebody_keeps_it() -> None:
    notifier = notifier_of(TABLE, SHOP)
    assert notifier_of(TABLE, SHOP.set(drivername="postgresql+asyncpg", password="secret")) is notifier
    assert found_notifier(TABLE, SHOP) is notifier
    assert found_notifier(TABLE, SHOP.set(database="other")) is None
    assert found_notifier(TABLE, SHOP.set(port=5433)) is None
    del notifier
    gc.collect()
    assert found_notifier(TABLE, SHOP) is None


def test_a_forked_child_has_none_and_does_not_wait_for_a_lock_that_its_parent_held() -> None:
    notifier = notifier_of(TABLE, SHOP)
    with notifier._lock, bell_module._making:
        child = os.fork()
        if not child:
            os._exit(
                0 if found_notifier(TABLE, SHOP) is None and notifier_of(TABLE, SHOP).wait(0) == frozenset() else 1
            )
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert found_notifier(TABLE, SHOP) is notifier
