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
from async_task.wakeup.in_process import MOST_REMEMBERED, Bell, bell_of, found_bell
from elsewhere import await_

TABLE: Table = Attempt.__table__  # type: ignore[assignment]
SHOP = make_url("postgresql+psycopg://ann@db:5432/shop")
Heard = Future[frozenset[str]]


@pytest.fixture
def lanes() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def waiting(bell: Bell, lanes: ThreadPoolExecutor, *calls: Callable[[], frozenset[str]]) -> list[Heard]:
    """Lanes that have all come to wait."""
    before = len(bell._waiting)
    heard = [lanes.submit(call) for call in calls]
    await_(lambda: len(bell._waiting) == before + len(calls), "all wait")
    return heard


def test_a_ring_is_heard_by_who_waits(lanes: ThreadPoolExecutor) -> None:
    bell = Bell()
    (heard,) = waiting(bell, lanes, lambda: bell.wait(30))
    bell.ring("mail")
    assert heard.result(30) == {"mail"}


def test_a_ring_for_one_row_wakes_one_of_eight_lanes(lanes: ThreadPoolExecutor) -> None:
    bell = Bell()
    heard = waiting(bell, lanes, *[lambda: bell.wait(30)] * 8)
    bell.ring("mail")
    done, still = wait(heard, return_when="FIRST_COMPLETED")
    assert len(done) == 1
    assert len(bell._waiting) == 7
    bell.ring("mail", 3)
    await_(lambda: len(bell._waiting) == 4, "three more were woken")
    bell.wake()
    assert sorted(map(len, (one.result(30) for one in still))) == [0, 0, 0, 0, 1, 1, 1]


def test_it_is_heard_too_when_it_came_while_nobody_waited_but_once_a_lane_and_by_no_more_than_there_are_rows() -> None:
    bell = Bell()
    bell.ring("mail", 2)
    bell.ring("print")
    assert bell.wait(0) == {"mail", "print"}
    assert bell.wait(0) == frozenset()
    with ThreadPoolExecutor(1) as another:
        assert another.submit(bell.wait, 0).result() == {"mail"}
    with ThreadPoolExecutor(1) as third:
        assert third.submit(bell.wait, 0).result() == frozenset()


def test_what_is_rung_behind_a_ring_is_heard_by_the_next_wait(lanes: ThreadPoolExecutor) -> None:
    bell = Bell()
    (heard,) = waiting(bell, lanes, lambda: bell.wait(30) | bell.wait(30))
    with bell._lock:  # before the lane goes on
        bell.ring("mail")
        bell.ring("print")
    assert heard.result(30) == {"mail", "print"}


def test_a_lane_of_some_queues_does_not_take_the_rings_of_others(lanes: ThreadPoolExecutor) -> None:
    bell = Bell()
    (mail,) = waiting(bell, lanes, lambda: bell.wait(30, ("mail",)))
    bell.ring("print")
    (printing,) = [lanes.submit(bell.wait, 30, ("print",))]
    assert printing.result(30) == {"print"}
    assert not mail.done()
    bell.ring("mail")
    assert mail.result(30) == {"mail"}


def test_without_a_ring_a_wait_ends_with_its_time() -> None:
    assert Bell().wait(0.001) == frozenset()


def test_wake_ends_each_wait_once_also_one_that_is_just_about_to_begin(lanes: ThreadPoolExecutor) -> None:
    bell = Bell()
    heard = waiting(bell, lanes, *[lambda: bell.wait(30)] * 3)
    bell.wake()
    assert [one.result(30) for one in heard] == [frozenset()] * 3
    began = threading.Event()
    late = lanes.submit(lambda: (began.wait(30), bell.wait(0), bell.wake(), bell.wait(30))[-1])
    began.set()
    assert late.result(30) == frozenset()


def test_many_lanes_lose_no_ring() -> None:
    bell, rows, taken = Bell(), threading.Semaphore(0), threading.Semaphore(0)
    over = threading.Event()

    def lane() -> None:
        while not over.is_set():
            while rows.acquire(blocking=False):
                taken.release()
            bell.wait(30)

    threads = [threading.Thread(target=lane) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(2_000):
        rows.release()
        bell.ring("mail")
    for _ in range(2_000):
        assert taken.acquire(timeout=20), "a row waits, and nobody looks"
    over.set()
    bell.wake()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_queues_without_number_do_not_fill_the_memory() -> None:
    bell = Bell()
    for number in range(MOST_REMEMBERED + 500):
        bell.ring(f"queue-{number}")
    assert len(bell.wait(0)) == MOST_REMEMBERED


def test_there_is_one_for_a_table_in_a_database_whatever_the_driver_and_for_as_long_as_somebody_keeps_it() -> None:
    bell = bell_of(TABLE, SHOP)
    assert bell_of(TABLE, SHOP.set(drivername="postgresql+asyncpg", password="secret")) is bell
    assert found_bell(TABLE, SHOP) is bell
    assert found_bell(TABLE, SHOP.set(database="other")) is None
    assert found_bell(TABLE, SHOP.set(port=5433)) is None
    del bell
    gc.collect()
    assert found_bell(TABLE, SHOP) is None


def test_a_forked_child_has_none_and_does_not_wait_for_a_lock_that_its_parent_held() -> None:
    bell = bell_of(TABLE, SHOP)
    with bell._lock, bell_module._making:
        child = os.fork()
        if not child:
            os._exit(0 if found_bell(TABLE, SHOP) is None and bell_of(TABLE, SHOP).wait(0) == frozenset() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert found_bell(TABLE, SHOP) is bell
