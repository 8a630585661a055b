"""Queues take turns, and whoever polls is woken when the lanes have become idle."""

from async_task.wakeup.in_process import Notifier
from async_task.worker.round_robin import RoundRobin


class Woken(Notifier):
    """How often it was woken."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def wake(self) -> None:
        self.number += 1
        super().wake()


def turn(queues: RoundRobin, queue: str) -> None:
    """A lane serves this queue, and finds one attempt."""
    queues.request(queue)
    assert queues.take() == queue
    queues.put_back(queue, 1)


def test_lanes_that_have_become_idle_wake_the_poller_unless_they_wait_for_slots() -> None:
    woken = Woken()
    queues = RoundRobin(2, {}, woken)
    turn(queues, "mail")
    assert (woken.number, queues.is_short_of_slots) == (1, False)
    queues.request_search("mail", 60.0)
    assert (woken.number, queues.is_short_of_slots) == (2, True), "it is to look again by then"
    turn(queues, "mail")
    turn(queues, "default")
    assert woken.number == 2
    assert queues.wait_until_idle(0)


def test_a_search_at_once_is_a_request() -> None:
    queues = RoundRobin(2, {}, woken := Woken())
    queues.request_search("mail", 0.0)
    assert (queues.take(), woken.number, queues.is_short_of_slots) == ("mail", 0, False)


def test_searches_for_nearly_the_same_time_are_one() -> None:
    queues = RoundRobin(2, {}, woken := Woken())
    for seconds in (60.0, 59.9999, 61.0, 30.0):
        queues.request_search("mail", seconds)
    assert woken.number == 2


def test_what_is_requested_for_later_wakes_the_poller_also_while_lanes_wait_for_slots() -> None:
    queues = RoundRobin(2, {}, woken := Woken())
    queues.request_search("mail", 60.0)
    queues.request_later("default", 0.0)
    assert woken.number == 2
    following = queues.request_overdue()
    assert following is not None
    assert queues.take() == "default"
