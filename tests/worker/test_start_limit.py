"""The limit of a batch: what lanes claim is reserved, and what is not started is restored."""

import uuid

from async_task.queue.claim import Claim
from async_task.worker.start_limit import StartLimit
from offspring import claim


def claims(number: int) -> list[Claim]:
    return [claim() for _ in range(number)]


def test_no_more_is_granted_than_is_left() -> None:
    limit = StartLimit(5)
    assert [limit.grant("mail", 3), limit.grant("mail", 3), limit.grant("mail", 3)] == [3, 2, 0]


def test_what_was_granted_and_not_claimed_is_granted_again() -> None:
    limit = StartLimit(5)
    limit.grant("mail", 5)
    assert limit.reserve(claims(2), 5) == set()
    assert limit.grant("mail", 5) == 3


def test_what_was_claimed_and_not_started_is_granted_again_once() -> None:
    limit, (first, second) = StartLimit(2), claims(2)
    limit.grant("mail", 2)
    limit.reserve([first, second], 2)
    limit.note_started([first])
    limit.restore_unstarted([first, second])
    limit.restore_unstarted([first, second])
    assert limit.grant("mail", 5) == 1


def test_a_queue_that_was_denied_is_returned_once() -> None:
    limit, (first, second) = StartLimit(2), claims(2)
    limit.grant("mail", 2)
    assert limit.grant("bulk", 1) == 0
    assert limit.reserve([first, second], 2) == set()
    assert limit.restore_unstarted([first]) == {"bulk"}
    assert limit.restore_unstarted([second]) == set()


def test_it_is_spent_by_starts_and_not_by_claims() -> None:
    limit, made = StartLimit(2), claims(2)
    limit.grant("mail", 2)
    limit.reserve(made, 2)
    assert not limit.is_spent
    limit.note_started(made)
    assert limit.is_spent


def test_a_claim_of_the_same_attempt_later_is_another_start() -> None:
    limit, (one,) = StartLimit(1), claims(1)
    limit.grant("mail", 1)
    limit.reserve([one], 1)
    assert limit.restore_unstarted([one._replace(claim_id=uuid.uuid4())]) == set()
    assert limit.grant("mail", 1) == 0


def test_without_a_limit_everything_is_granted() -> None:
    limit = StartLimit(None)
    assert (limit.grant("mail", 1_000), limit.at_most(7)) == (1_000, 7)
    limit.note_started(claims(1_000))
    assert not limit.is_spent


def test_a_batch_is_shown_no_more_due_attempts_than_it_may_start() -> None:
    assert [StartLimit(3).at_most(7), StartLimit(9).at_most(7)] == [3, 7]
