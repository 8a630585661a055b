"""A poll: everything that a worker might have to do, found by one statement."""

import datetime as dt
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text, update
from sqlalchemy.orm import Session

from async_task import Attempt
from async_task.database.clock import clock_now
from async_task.queue.backlog import waiting_queues
from async_task.queue.left_out import LeftOut
from async_task.queue.poll import SeenQueues, poll
from clockwork import let_pass
from databases import rows_read
from outbox import act

TABLE = Attempt.__table__
LEASE = dt.timedelta(seconds=5)


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


def make(engine: Engine, *queues: str) -> None:
    with Session(engine) as session, session.begin():
        Attempt.create_many(session, [{"target": act, "queue": queue} for queue in queues])


def put(engine: Engine, queue: str, priority: int, after: float = 0) -> None:
    """An attempt that is due after that many seconds."""
    due = {} if not after else {"scheduled_at": dt.datetime.now(dt.UTC) + dt.timedelta(seconds=after)}
    with Session(engine) as session, session.begin():
        Attempt.create_many(session, [{"target": act, "queue": queue, "priority": priority, **due}])


@pytest.mark.parametrize("remembers", [True, False])
def test_each_queue_is_found_in_which_an_attempt_is_due(
    engine: Engine, connection: Connection, remembers: bool
) -> None:
    """Also where a collation might take two names as equal, and where a new name is between known ones."""
    names = SeenQueues() if remembers else None
    assert poll(connection, TABLE, "me", LEASE, (), names).queues == frozenset()
    make(engine, "b", "b", "B", "b ", "é")
    assert poll(connection, TABLE, "me", LEASE, (), names).queues == {"b", "B", "b ", "é"}
    make(engine, "a", "c", "😀")
    assert poll(connection, TABLE, "me", LEASE, (), names).queues == {"a", "b", "B", "b ", "c", "é", "😀"}


@pytest.mark.parametrize("wanted", [(), ("a", "b", "d", "f", "g")])
def test_a_poll_is_one_statement_if_no_queue_is_new(
    engine: Engine, connection: Connection, wanted: tuple[str, ...]
) -> None:
    make(engine, "b", "d", "f")
    names = SeenQueues()
    poll(connection, TABLE, "me", LEASE, wanted, names)
    sent: list[str] = []
    event.listen(connection, "before_cursor_execute", lambda *given: sent.append(given[2]))
    assert poll(connection, TABLE, "me", LEASE, wanted, names).queues == {"b", "d", "f"}
    assert len(sent) == 1


@pytest.mark.parametrize("remembers", [True, False])
def test_only_the_wanted_queues_are_polled(engine: Engine, connection: Connection, remembers: bool) -> None:
    names = SeenQueues() if remembers else None
    odd = ("d'", "%s", "\\", ":x", "target:shop.orders")
    assert poll(connection, TABLE, "me", LEASE, ("d", "x", *odd), names).queues == frozenset()
    make(engine, "b", "d", "f", "D")
    assert poll(connection, TABLE, "me", LEASE, ("d", "x", *odd), names).queues == {"d"}
    make(engine, *odd)
    assert poll(connection, TABLE, "me", LEASE, ("d", "x", *odd), names).queues == {"d", *odd}
    assert poll(connection, TABLE, "me", LEASE, odd, names).queues == set(odd)


@pytest.mark.only_on("postgresql", "sqlite")
def test_a_poll_for_hundreds_of_queues_has_the_branches_of_one_for_two(engine: Engine, connection: Connection) -> None:
    """A worker that serves named queues polls the own queue of each of their targets too."""
    make(engine, "a")
    sent: list[str] = []
    event.listen(connection, "before_cursor_execute", lambda *given: sent.append(given[2]))
    for number in (2, 500):
        wanted, names = ("a", *(f"target:{one}" for one in range(1, number))), SeenQueues()
        for _ in range(2):
            assert poll(connection, TABLE, "me", LEASE, wanted, names).queues == {"a"}
    of_two, of_many = sent[: len(sent) // 2], sent[len(sent) // 2 :]
    assert [one.count("SELECT") for one in of_many] == [one.count("SELECT") for one in of_two]


def test_a_queue_is_found_whatever_stands_before_its_due_attempt(engine: Engine, connection: Connection) -> None:
    for queue in ("later", "none", "suspect", "zero"):
        for priority in (0, 3, 9):
            put(engine, queue, priority, 3600)
    put(engine, "suspect", 3)
    connection.execute(update(TABLE).where(TABLE.c.scheduled_at.is_(None)).values(num_attempts=1, num_losses=1))
    found = poll(connection, TABLE, "me", LEASE, (), SeenQueues())
    assert (found.queues, found.has_suspects) == (frozenset(), True)
    let_pass(engine, 1)
    put(engine, "suspect", 3)  # due later than the suspect
    put(engine, "later", 9)
    put(engine, "zero", 0)
    assert poll(connection, TABLE, "me", LEASE, (), SeenQueues()).queues == {"suspect", "later", "zero"}


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("wanted", [(), ("queue 1", "it's", "%s :x \\")])
def test_the_server_plans_a_poll_once(engine: Engine, connection: Connection, wanted: tuple[str, ...]) -> None:
    make(engine, *(f"queue {number % 20}" for number in range(2000)))
    let_pass(engine, -3600)
    connection.execute(text("ANALYZE async_task_attempts"))
    given: list[Any] = []
    event.listen(connection, "before_cursor_execute", lambda *statement: given.append(statement[3]))
    for _ in range(30):
        assert poll(connection, TABLE, "me' \\ %s :x", LEASE, wanted, SeenQueues()).queues == frozenset()
    assert not any(given)  # with parameters it depends on statistics
    plans = text("SELECT max(generic_plans) FROM pg_prepared_statements WHERE statement LIKE '%orphans%'")
    assert connection.scalar(plans) >= 15


@pytest.mark.only_on("mysql")
def test_the_first_poll_for_wanted_queues_finds_all_of_them_at_once(engine: Engine, connection: Connection) -> None:
    wanted = tuple(f"queue {number}" for number in range(30))
    make(engine, *wanted)
    sent: list[str] = []
    event.listen(connection, "before_cursor_execute", lambda *given: sent.append(given[2]))
    assert poll(connection, TABLE, "me", LEASE, wanted, SeenQueues()).queues == set(wanted)
    assert len(sent) == 2


@pytest.mark.only_on("postgresql", "sqlite")
def test_a_poll_for_one_queue_walks_over_no_other(engine: Engine, connection: Connection) -> None:
    make(engine, "mine", *(f"tenant {number}" for number in range(50)))
    sent: list[Any] = []
    event.listen(connection, "before_cursor_execute", lambda *given: sent.append(given[2]))
    assert poll(connection, TABLE, "me", LEASE, ("mine",), SeenQueues()).queues == {"mine"}
    assert "queue > " not in sent[0]


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("wanted", [(), ("a", "b")])
def test_a_poll_of_sqlite_walks_over_no_row_that_waits_behind_another(
    engine: Engine, connection: Connection, wanted: tuple[str, ...]
) -> None:
    sent: list[Any] = []
    event.listen(connection, "before_cursor_execute", lambda *given: sent.append(given[2:4]))
    poll(connection, TABLE, "me", LEASE, wanted, SeenQueues())
    statement, parameters = sent[0]
    plan = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    assert [line for line in plan if line.startswith("SCAN async_task_attempts")] == []
    following = [line for line in plan if "queue=? AND priority>?" in line or "queue>?" in line]
    assert len(following) == (1 if wanted else 2)


@pytest.mark.only_on("postgresql", "sqlite")
def test_a_poll_tells_when_the_next_attempt_is_due_and_when_a_claim_may_be_an_orphan(
    engine: Engine, connection: Connection
) -> None:
    def next_due(*wanted: str) -> float | None:
        found = poll(connection, TABLE, "me", LEASE, wanted, SeenQueues())
        assert found.knows_next
        return found.next_due

    assert next_due() is None
    put(engine, "never", 0, 3700)
    assert next_due() is None
    put(engine, "later", 0, 1200)
    put(engine, "sooner", 9, 600)
    assert next_due() == pytest.approx(600, abs=20)
    assert next_due("never", "later") == pytest.approx(1200, abs=20)
    make(engine, "now")
    assert next_due() == pytest.approx(600, abs=20)
    ended = {"claim_id": uuid.uuid4(), "claimed_by": "it", "lease_until": clock_now(300)}
    connection.execute(update(TABLE).where(TABLE.c.queue == "now").values(ended))
    assert next_due() == pytest.approx(300.1, abs=20)
    connection.execute(update(TABLE).where(TABLE.c.queue == "now").values(lease_until=clock_now(-300)))
    assert next_due() == pytest.approx(600, abs=20)


@pytest.mark.only_on("postgresql", "sqlite")
def test_a_poll_does_not_know_what_is_next_while_something_unknown_may_hide_it(
    engine: Engine, connection: Connection
) -> None:
    put(engine, "q", 0)
    put(engine, "q", 0, 600)
    connection.execute(update(TABLE).where(TABLE.c.scheduled_at.is_(None)).values(method_name="unknown"))
    unknown = LeftOut(calls=(("test.act", "unknown"),))
    found = poll(connection, TABLE, "me", LEASE, (), SeenQueues(), unknown)
    assert (found.queues, found.knows_next) == (frozenset(), False)


@pytest.mark.only_on("mysql")
def test_the_first_poll_and_the_list_of_queues_read_few_rows_of_a_long_queue(
    engine: Engine, connection: Connection
) -> None:
    """MariaDB read every waiting row for the name of a queue: 13 s with 1,000,000 rows."""
    make(engine, *["default", "other"] * 2_000)
    before = rows_read(connection)
    assert waiting_queues(connection, TABLE) == ["default", "other"]
    assert poll(connection, TABLE, "me", LEASE, (), SeenQueues()).queues == {"default", "other"}
    assert rows_read(connection) - before < 500
