"""Queues with limits: calls at a time, starts in a second, on all machines together."""

import datetime as dt
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, event, update

import elsewhere
import outbox
from async_task import AsyncTask, Attempt, ConfigurationError, Status, policy, target
from async_task.database.engines import Source
from async_task.outcomes import Decision
from async_task.queue import fenced_writes
from async_task.queue.claim import Claim, ClaimRequest
from async_task.queue.limits import PAUSE, Allowance, allowance, claim_limited
from async_task.schema.tables import Queue
from async_task.targets import registry
from async_task.targets.policies import Limit, rate_of
from clockwork import row_of
from databases import somebody_waits
from outbox import Client

Write = Callable[..., Attempt]
TABLE: Any = Attempt.__table__
QUEUES: Any = Queue.__table__
LEASE = dt.timedelta(seconds=60)
SECOND = dt.timedelta(seconds=1)


@pytest.fixture
def own(engine: Engine) -> Iterator[Engine]:
    """An engine as a lane has it."""
    made = Source(engine).private()
    yield made
    made.dispose()


@pytest.mark.parametrize(("given", "rate"), [("10/s", 10), ("90/m", 1.5), (" 1.5 / s ", 1.5), ("36/h", 0.01), (4, 4)])
def test_a_rate_is_starts_in_a_second(given: object, rate: float) -> None:
    assert rate_of(given) == pytest.approx(rate)


@pytest.mark.parametrize("given", ["10", "10/d", "-1/s", "0/s", 0, -1, True, None, float("inf"), "ten/s"])
def test_an_invalid_rate_is_refused(given: object) -> None:
    with pytest.raises(ConfigurationError, match='rate is "10/s"'):
        rate_of(given)


@pytest.mark.parametrize(
    ("limit", "running", "tokens", "since", "allowed"),
    [
        (Limit(5), 3, None, 0, Allowance(2, None, PAUSE)),
        (Limit(5), 5, None, 0, Allowance(0, None, PAUSE)),
        (Limit(5), 9, None, 0, Allowance(0, None, PAUSE)),
        (Limit(None, 10), 99, None, 0, Allowance(10, 10, SECOND / 10)),
        (Limit(None, 10), 0, 0.0, 0, Allowance(0, 0, SECOND / 10)),
        (Limit(None, 10), 0, 0.5, 0.2, Allowance(2, 2.5, SECOND / 20)),
        (Limit(None, 10), 0, 0.0, 3600, Allowance(10, 10, SECOND / 10)),
        (Limit(None, 10), 0, 1.0, -5, Allowance(1, 1, SECOND / 10)),
        (Limit(None, 0.5), 0, None, 0, Allowance(1, 1, SECOND * 2)),
        (Limit(2, 10), 1, 10.0, 0, Allowance(1, 10, SECOND / 10)),
        (Limit(2, 10), 2, 10.0, 0, Allowance(0, 10, PAUSE)),
    ],
)
def test_how_many_may_start_now(
    limit: Limit, running: int, tokens: float | None, since: float, allowed: Allowance
) -> None:
    assert allowance(limit, running=running, tokens=tokens, since=dt.timedelta(seconds=since)) == allowed


# Given by targets


def test_a_limited_target_waits_in_a_queue_of_its_own_unless_it_names_one(registered: None) -> None:
    @target("limited.plain", max_running=5, rate="10/s")
    def plain() -> None: ...

    @target("limited.named", max_running=2, queue="mail")
    def named() -> None: ...

    @target("limited." + "x" * 80, rate=1)
    def long() -> None: ...

    queues = [registry.target_of(one).policy.queue or "" for one in (plain, named, long)]
    assert (queues[:2], len(queues[2])) == (["limited.plain", "mail"], 64)
    found = registry.limits()
    assert (found["limited.plain"], found["mail"]) == (Limit(5, 10.0), Limit(2, None))


def test_several_targets_share_one_limit_and_may_not_contradict_each_other(registered: None) -> None:
    @target("limited.one", max_running=2, queue="mail")
    def one() -> None: ...

    @target("limited.same", max_running=2, queue="mail")
    def same() -> None: ...

    @target("limited.unlimited", queue="mail")
    def unlimited() -> None: ...

    with pytest.raises(ConfigurationError, match="the queue 'mail' has one limit"):

        @target("limited.other", max_running=3, queue="mail")
        def other() -> None: ...

    assert registry.limits()["mail"] == Limit(2)


@pytest.mark.parametrize("most", [0, -1, 1.5, "5", True])
def test_an_invalid_max_running_is_refused(registered: None, most: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_running is a whole number of at least 1"):
        target("limited.wrong", max_running=most)(lambda: None)


def test_a_method_has_no_limit_of_its_own() -> None:
    with pytest.raises(ConfigurationError, match="are for a whole target"):
        policy(max_running=1)


# Claimed


def test_no_more_are_claimed_than_may_run_and_the_next_is_claimed_when_one_has_ended(own: Engine, write: Write) -> None:
    for _ in range(5):
        write(Client, "ping", queue="few")
    first, after = _claim(own, 10, Limit(2))
    assert (len(first), after) == (2, PAUSE)
    assert _claim(own, 10, Limit(2)) == ([], PAUSE)
    assert fenced_writes.write_outcome(own, TABLE, first[0], Decision(Status.SUCCEEDED), None)
    assert len(_claim(own, 10, Limit(2))[0]) == 1
    assert len(_claim(own, 1, Limit(9))[0]) == 1


def test_saved_starts_are_made_at_once_and_the_rest_as_time_passes(own: Engine, write: Write) -> None:
    ids = [write(Client, "ping", queue="few").id for _ in range(9)]
    slow = Limit(None, 2.0)
    claims, after = _claim(own, 10, slow)
    assert [claim.id for claim in claims] == ids[:2]
    assert after is not None
    assert dt.timedelta(0) < after <= SECOND
    assert _claim(own, 10, slow)[0] == []
    _refilled(own, 1.25)
    assert len(_claim(own, 10, slow)[0]) == 2
    _refilled(own, 3600)
    assert len(_claim(own, 10, slow)[0]) == 2


def test_an_empty_claim_uses_up_nothing_of_the_rate(own: Engine, write: Write) -> None:
    assert _claim(own, 10, Limit(None, 1.0)) == ([], None)
    write(Client, "ping", queue="few")
    assert len(_claim(own, 10, Limit(None, 1.0))[0]) == 1


def test_a_limit_in_the_database_holds_until_a_target_brings_another_one(own: Engine, write: Write) -> None:
    for _ in range(4):
        write(Client, "ping", queue="few")
    assert len(_claim(own, 10, Limit(1))[0]) == 1
    assert _claim(own, 10, None) == ([], PAUSE)
    assert len(_claim(own, 10, Limit(3))[0]) == 2


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_two_claims_at_once_are_made_one_after_the_other(own: Engine, engine: Engine, write: Write) -> None:
    _claim(own, 1, Limit(2))
    for _ in range(5):
        write(Client, "ping", queue="few")
    other = Source(engine).private()
    found: list[Any] = []

    def meanwhile(_: Any) -> None:
        if not found:
            found.append(threads.submit(_claim, other, 10, Limit(2)))
            elsewhere.await_(lambda: somebody_waits(engine), "the second claim waits for the row of the queue")

    with ThreadPoolExecutor(1) as threads:
        event.listen(own, "commit", meanwhile)
        assert len(_claim(own, 10, Limit(2))[0]) == 2
        assert found[0].result(30) == ([], PAUSE)
    other.dispose()


def test_many_lanes_together_never_claim_more_than_the_limit(own: Engine, engine: Engine, write: Write) -> None:
    with engine.begin() as connection:
        Attempt.create_many(connection, [{"target": Client, "method_name": "ping", "queue": "few"}] * 20)

    def lane(_: int) -> int:
        mine = Source(engine).private()
        claims, _after = _claim(mine, 10, Limit(7))
        mine.dispose()
        return len(claims)

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(lane, range(4))) == 7


# In a batch


@pytest.mark.slow
def test_a_batch_performs_all_of_a_limited_queue_and_never_more_at_a_time(
    engine: Engine, own: Engine, registered: None, write: Write
) -> None:
    running, most = [0], [0]

    def busy() -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        running[0] -= 1

    outbox.will(busy)
    target("limited.act", max_running=1, mode="leased")(_act)
    ids = [write(_act).id for _ in range(6)]
    others = [write(Client, "ping").id for _ in range(3)]
    report = AsyncTask(engine, lease=1.0).run_batch(concurrency=3)
    assert report.succeeded == len(ids) + len(others)
    assert most == [1]
    assert row_of(engine, ids[0]).queue == "limited.act"


def _act() -> None:
    outbox.acts[0]()


def _claim(own: Engine, limit: int, own_limit: Limit | None) -> tuple[list[Claim], dt.timedelta | None]:
    return claim_limited(own, TABLE, ClaimRequest("lane", LEASE, "few", limit, uuid.uuid4()), own_limit)


def _refilled(own: Engine, ago: float) -> None:
    """As if the last claim had been that many seconds `ago`, and had left no start."""
    with own.begin() as connection:
        row = connection.execute(QUEUES.select()).one()
        moved = row.refilled_at - dt.timedelta(seconds=ago)
        connection.execute(update(QUEUES).values(refilled_at=moved, tokens=0.0))
