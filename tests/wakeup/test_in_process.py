"""The notifier: a notification wakes as many threads as there are new rows, and reaches one that is about to wait."""

import gc
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest
from sqlalchemy import Table, make_url

from async_task import Attempt
from async_task.wakeup import in_process
from async_task.wakeup.in_process import MAX_REMEMBERED, Notifier, find_notifier, notifier_of
from elsewhere import await_

TABLE: Table = Attempt.__table__  # type: ignore[assignment]
SHOP = make_url("postgresql+psycopg://ann@db:5432/shop")
Woken = Future[frozenset[str]]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def waiting(notifier: Notifier, threads: ThreadPoolExecutor, *calls: Callable[[], frozenset[str]]) -> list[Woken]:
    """Threads that make these calls; all of them wait when this returns."""
    before = len(notifier._waiting)
    woken = [threads.submit(call) for call in calls]
    await_(lambda: len(notifier._waiting) == before + len(calls), "all wait")
    return woken


def test_a_notification_wakes_a_waiting_thread(threads: ThreadPoolExecutor) -> None:
    notifier = Notifier()
    (woken,) = waiting(notifier, threads, lambda: notifier.wait(30))
    notifier.notify("mail")
    assert woken.result(30) == {"mail"}


def test_a_notification_of_one_row_wakes_one_of_eight_threads(threads: ThreadPoolExecutor) -> None:
    notifier = Notifier()
    woken = waiting(notifier, threads, *[lambda: notifier.wait(30)] * 8)
    notifier.notify("mail")
    done, still = wait(woken, return_when="FIRST_COMPLETED")
    assert len(done) == 1
    assert len(notifier._waiting) == 7
    notifier.notify("mail", 3)
    await_(lambda: len(notifier._waiting) == 4, "three more were woken")
    notifier.wake()
    assert sorted(map(len, (one.result(30) for one in still))) == [0, 0, 0, 0, 1, 1, 1]


def test_a_notification_that_no_thread_waited_for_is_kept_for_one_thread_a_row() -> None:
    notifier = Notifier()
    notifier.notify("mail", 2)
    notifier.notify("print")
    assert notifier.wait(0) == {"mail", "print"}
    assert notifier.wait(0) == frozenset()
    with ThreadPoolExecutor(1) as another:
        assert another.submit(notifier.wait, 0).result() == {"mail"}
    with ThreadPoolExecutor(1) as third:
        assert third.submit(notifier.wait, 0).result() == frozenset()


def test_a_second_notification_ends_the_next_wait(threads: ThreadPoolExecutor) -> None:
    notifier = Notifier()
    (woken,) = waiting(notifier, threads, lambda: notifier.wait(30) | notifier.wait(30))
    with notifier._lock:  # before the thread continues
        notifier.notify("mail")
        notifier.notify("print")
    assert woken.result(30) == {"mail", "print"}


def test_a_thread_that_waits_for_some_queues_takes_no_notifications_of_others(threads: ThreadPoolExecutor) -> None:
    notifier = Notifier()
    (mail,) = waiting(notifier, threads, lambda: notifier.wait(30, ("mail",)))
    notifier.notify("print")
    (printing,) = [threads.submit(notifier.wait, 30, ("print",))]
    assert printing.result(30) == {"print"}
    assert not mail.done()
    notifier.notify("mail")
    assert mail.result(30) == {"mail"}


def test_a_wait_without_a_notification_ends_at_its_timeout() -> None:
    assert Notifier().wait(0.001) == frozenset()


def test_wake_ends_each_wait_once_and_also_one_that_is_about_to_begin(threads: ThreadPoolExecutor) -> None:
    notifier = Notifier()
    woken = waiting(notifier, threads, *[lambda: notifier.wait(30)] * 3)
    notifier.wake()
    assert [one.result(30) for one in woken] == [frozenset()] * 3
    began = threading.Event()
    late = threads.submit(lambda: (began.wait(30), notifier.wait(0), notifier.wake(), notifier.wait(30))[-1])
    began.set()
    assert late.result(30) == frozenset()


def test_many_threads_lose_no_notification() -> None:
    notifier, rows, taken = Notifier(), threading.Semaphore(0), threading.Semaphore(0)
    over = threading.Event()

    def take_rows() -> None:
        while not over.is_set():
            while rows.acquire(blocking=False):
                taken.release()
            notifier.wait(30)

    takers = [threading.Thread(target=take_rows) for _ in range(4)]
    for thread in takers:
        thread.start()
    for _ in range(2_000):
        rows.release()
        notifier.notify("mail")
    for _ in range(2_000):
        assert taken.acquire(timeout=20), "a row waits, and no thread was woken"
    over.set()
    notifier.wake()
    for thread in takers:
        thread.join(30)
        assert not thread.is_alive()


def test_the_number_of_queues_that_are_kept_is_limited() -> None:
    notifier = Notifier()
    for number in range(MAX_REMEMBERED + 500):
        notifier.notify(f"queue-{number}")
    assert len(notifier.wait(0)) == MAX_REMEMBERED


def test_a_table_in_a_database_has_one_notifier_for_all_drivers_as_long_as_somebody_refers_to_it() -> None:
    notifier = notifier_of(TABLE, SHOP)
    assert notifier_of(TABLE, SHOP.set(drivername="postgresql+asyncpg", password="secret")) is notifier
    assert find_notifier(TABLE, SHOP) is notifier
    assert find_notifier(TABLE, SHOP.set(database="other")) is None
    assert find_notifier(TABLE, SHOP.set(port=5433)) is None
    del notifier
    gc.collect()
    assert find_notifier(TABLE, SHOP) is None


def test_a_forked_child_has_no_notifier_and_does_not_wait_for_a_lock_of_its_parent() -> None:
    notifier = notifier_of(TABLE, SHOP)
    with notifier._lock, in_process._making:
        child = os.fork()
        if not child:
            os._exit(0 if find_notifier(TABLE, SHOP) is None and notifier_of(TABLE, SHOP).wait(0) == frozenset() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert find_notifier(TABLE, SHOP) is notifier


def test_the_thread_that_notifies_tells_what_the_waiting_one_has_asked_for(threads: ThreadPoolExecutor) -> None:
    notifier, told = Notifier(), list[tuple[str, int]]()

    def tell(queue: str) -> None:
        told.append((queue, threading.get_ident()))

    (woken,) = waiting(notifier, threads, lambda: notifier.wait(30, ["mail"], tell))
    notifier.notify("print")
    assert told == []
    notifier.notify("mail")
    assert told == [("mail", threading.get_ident())]
    assert woken.result(30) == {"mail"}
    notifier.notify("mail")
    assert told == [("mail", threading.get_ident())]  # nobody waits


def test_it_is_told_without_the_lock_of_the_notifier(threads: ThreadPoolExecutor) -> None:
    """Whoever is told may have to wait for somebody who wants to wake a thread."""
    notifier, woken = Notifier(), threading.Event()

    def tell(_queue: str) -> None:
        threads.submit(notifier.wake).result(30)
        woken.set()

    (waits,) = waiting(notifier, threads, lambda: notifier.wait(30, None, tell))
    notifier.notify("mail")
    assert woken.is_set()
    assert waits.result(30) == {"mail"}
    notifier.notify("mail")
    assert notifier.wait(0, None, tell) == {"mail"}


def test_what_was_kept_is_told_when_a_thread_waits_again(threads: ThreadPoolExecutor) -> None:
    notifier, told = Notifier(), list[str]()
    notifier.notify("mail", 2)
    assert notifier.wait(0, None, told.append) == {"mail"}
    assert told == ["mail"]
    assert notifier.wait(0) == frozenset()
    notifier.wake()
    notifier.wait(30, None, told.append)
    assert told == ["mail"]
