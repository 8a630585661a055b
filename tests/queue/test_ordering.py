"""Attempts with an order key: one at a time, in the order in which they were created."""

import datetime as dt
import itertools
import json
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, event, select, text, update
from sqlalchemy.orm import Session, sessionmaker

import elsewhere
import outbox
from async_task import AsyncTask, Attempt, Failed, NotDue, Status, Succeeded
from async_task.database.dialects import locks_neighbours
from async_task.database.engines import Source
from async_task.database.transactions import retry_transient
from async_task.outcomes import Decision
from async_task.queue import expiry, fenced_writes, fetch, ordering, recovery
from async_task.queue.claim import Claim, ClaimRequest
from async_task.worker import poller
from clockwork import forget_beats, let_pass, row_of
from databases import rows_read, somebody_waits
from elsewhere import await_
from outbox import Client
from said import Run
from workers import working

Write = Callable[..., Attempt]
Sessions = sessionmaker[Session]
TABLE: Any = Attempt.__table__
LEASE = dt.timedelta(seconds=60)
PING = {"target": Client, "method_name": "ping"}


@pytest.fixture
def outbox_app(engine: Engine) -> Iterator[AsyncTask]:
    made = AsyncTask(engine, lease=1.0)
    yield made
    made.close()


@pytest.fixture
def own(engine: Engine) -> Iterator[Engine]:
    """An engine as a lane has it."""
    made = Source(engine).private()
    yield made
    made.dispose()


@pytest.fixture
def line(write: Write) -> Callable[..., list[uuid.UUID]]:
    """`line("a", 3)`: three attempts with this key that ping, each committed by itself; their ids in order."""
    return lambda key, count, **options: [write(Client, "ping", order_key=key, **options).id for _ in range(count)]


def test_keyed_attempts_are_numbered_in_the_order_of_their_inserts_however_they_are_created(
    engine: Engine, sessions: Sessions
) -> None:
    ids = []
    for number in range(2):
        with sessions.begin() as session:
            made = [Attempt.create(**PING, order_key=key, session=session) for key in ("a", "b", None, "a")]
            session.flush()
            again = {**PING, "order_key": "a", "idempotence_token": f"token {number}"}
            ids += [made[0].id, made[3].id, Attempt.ensure(session, **again).id, Attempt.ensure(session, **again).id]
            many = Attempt.create_many(session, [{**PING, "order_key": key} for key in ("a", None, "b", "a", "a")])
            ids += [many[0], *many[3:]]
    in_order = list(dict.fromkeys(ids))
    with engine.connect() as connection:
        t = TABLE.c
        found = connection.execute(select(t.id, t.seq).where(t.order_key == "a").order_by(t.seq)).all()
        unkeyed = connection.execute(select(t.seq, t.released, t.arrived).where(t.order_key.is_(None))).all()
        keyed = connection.execute(select(t.released, t.arrived).where(t.order_key.is_not(None)).distinct()).all()
    assert [row.id for row in found] == in_order
    assert len({row.seq for row in found}) == len(in_order)
    assert {tuple(row) for row in unkeyed} == {(None, True, None)}
    assert [tuple(row) for row in keyed] == [(False, True)]


# Batches


@pytest.mark.slow
def test_a_batch_drains_each_key_in_order_and_never_two_of_a_key_at_a_time(
    app: AsyncTask, sessions: Sessions, engine: Engine
) -> None:
    with sessions.begin() as session:
        Attempt.create_many(
            session,
            [
                {
                    "target": Client,
                    "method_name": "fulfill",
                    "method_args": {"customer_token": key, "order_number": number},
                    "order_key": key,
                    "queue": "odd" if number % 2 else "even",
                    "priority": 9 - number,
                }
                for number in range(6)
                for key in ("a", "b", "c")
            ],
        )
    report = app.run_batch(concurrency=3)
    assert (report.claimed, report.succeeded) == (18, 18)
    called = defaultdict(list)
    for key, number in outbox.calls:
        called[key].append(number)
    assert called == {key: list(range(6)) for key in ("a", "b", "c")}
    assert _overlaps(engine) == []


@pytest.mark.slow
def test_a_batch_leaves_attempts_that_arrive_while_it_runs_to_the_next_batch(
    outbox_app: AsyncTask, write: Write, engine: Engine
) -> None:
    late: list[uuid.UUID] = []

    def add_one() -> None:
        if not late:
            late.append(write(Client, "ping", order_key="a").id)

    outbox.will(add_one)
    write(outbox.act_leased, order_key="a")
    assert outbox_app.run_batch().succeeded == 1
    assert row_of(engine, late[0]).num_attempts == 0
    assert outbox_app.run_batch().succeeded == 1


@pytest.mark.slow
def test_a_failing_attempt_blocks_only_its_own_key_until_a_person_ends_it(
    outbox_app: AsyncTask, write: Write, line: Any, sessions: Sessions, engine: Engine
) -> None:
    head = write(Client, "fail", order_key="a").id
    behind, others = line("a", 2), line("b", 2)
    report = outbox_app.run_batch()
    assert (report.succeeded, report.retried) == (2, 1)
    assert [row_of(engine, one).status for one in others] == [Status.SUCCEEDED] * 2
    assert [row_of(engine, one).num_attempts for one in behind] == [0, 0]
    assert outbox_app.run_batch().claimed == 0
    assert outbox_app.perform(behind[0]) == NotDue(behind[0], row_of(engine, behind[0]).due_at, behind=head)
    with sessions.begin() as session:
        session.get_one(Attempt, head).fail(reason="the customer is gone")
    assert row_of(engine, behind[0]).released
    assert outbox_app.run_batch().succeeded == 2


@pytest.mark.slow
def test_a_suspect_is_performed_before_the_others_of_its_key_in_the_same_batch(
    outbox_app: AsyncTask, write: Write, line: Any, engine: Engine, own: Engine
) -> None:
    ids = line("a", 3)
    _lose(own, engine, ids[0])
    assert outbox_app.run_batch().succeeded == 3
    assert _overlaps(engine) == []


def test_an_attempt_performed_by_its_id_waits_for_its_turn(outbox_app: AsyncTask, line: Any, engine: Engine) -> None:
    first, second, third = line("a", 3)
    assert isinstance(outbox_app.perform(second), NotDue)
    assert row_of(engine, second).num_attempts == 0
    assert [outbox_app.perform(one) for one in (first, second, third)] == [
        Succeeded(first),
        Succeeded(second),
        Succeeded(third),
    ]


def test_a_discarded_attempt_releases_the_next_one(outbox_app: AsyncTask, write: Write, line: Any) -> None:
    head = write(Client, "give_up", {"reason": "sold out"}, order_key="a").id
    (behind,) = line("a", 1)
    assert isinstance(outbox_app.perform(head), Failed)
    assert outbox_app.perform(behind) == Succeeded(behind)


# For people


@pytest.mark.slow
def test_list_and_show_name_the_attempt_that_another_one_waits_for(
    run: Run, line: Any, own: Engine, sessions: Sessions, outbox_app: AsyncTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "180")
    first, second = line("shop 1", 2)
    assert run("list").out.count("waiting") == 2
    ordering.release_arrived(own, TABLE)
    with sessions() as session:
        found = {one.id: one.is_due for one in session.scalars(select(Attempt))}
        assert found == {first: True, second: False}
        assert [one.id for one in session.scalars(Attempt.due())] == [first]
    listed = run("list").out
    assert listed.count("waiting") == 1
    assert f"(waits behind {first.hex[-8:]})" in listed
    told = [json.loads(one)["waits_behind"] for one in run("list", "--json", "--order", "created").out.splitlines()]
    assert told == [None, str(first)]
    shown = run("show", str(second)).out
    assert "key shop 1, number" in shown
    assert f"pending, waits behind {first}" in shown
    assert json.loads(run("show", str(second), "--json").out)["waits_behind"] == str(first)
    assert f"waits behind {first}, an earlier one of its order key" in run("run-now", str(second)).err
    outbox_app.run_batch()
    assert "wait" not in run("list").out


def test_an_enqueued_attempt_waits_for_earlier_ones_of_its_key(run: Run, line: Any, outbox_app: AsyncTask) -> None:
    line("shop 1", 1)
    said = run("enqueue", "test.client.ping", "--order-key", "shop 1", "--module", "outbox")
    assert said.code == 0, said.err
    assert isinstance(outbox_app.perform(said.out.strip()), NotDue)


# Actions and sweeps


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["cancel", "fail", "expire"])
def test_an_action_that_ends_the_first_attempt_releases_the_next_in_the_same_transaction(
    line: Any, sessions: Sessions, own: Engine, engine: Engine, verb: str
) -> None:
    ids = line("a", 3)
    ordering.release_arrived(own, TABLE)
    with sessions() as session, session.begin() as transaction:
        getattr(session.get_one(Attempt, ids[0]), verb)(reason="skipped")
        transaction.rollback()
    assert _released(engine) == [ids[0]]
    with sessions.begin() as session:
        getattr(session.get_one(Attempt, ids[0]), verb)(reason="skipped")
    assert _released(engine) == [ids[1]]
    with sessions.begin() as session:
        getattr(session.get_one(Attempt, ids[2]), verb)()
    assert _released(engine) == [ids[1]]


@pytest.mark.slow
def test_a_revived_attempt_waits_for_its_turn_and_runs_before_later_ones(
    line: Any, sessions: Sessions, own: Engine, engine: Engine, outbox_app: AsyncTask
) -> None:
    ids = line("a", 4)
    ordering.release_arrived(own, TABLE)
    with sessions.begin() as session:
        for one in ids[:2]:
            session.get_one(Attempt, one).fail()
    assert _released(engine) == [ids[2]]
    with sessions.begin() as session:
        revived = session.get_one(Attempt, ids[1])
        revived.retry_now()
        assert (revived.status, revived.released, revived.arrived) == (Status.PENDING, False, True)
    assert _released(engine) == [ids[2]]
    assert outbox_app.run_batch().succeeded == 3
    assert _in_order_of_start(engine) == [ids[2], ids[1], ids[3]]
    with sessions.begin() as session:
        session.get_one(Attempt, ids[0]).retry_now()
    assert _released(engine) == [ids[0]]


def test_a_crash_that_fails_the_first_attempt_releases_the_next(
    line: Any, own: Engine, engine: Engine, outbox_app: AsyncTask
) -> None:
    ids = line("a", 2)
    for _ in range(recovery.CRASH_LIMIT):
        claim = fetch.claim_one(own, TABLE, "gone:1:0", LEASE, ids[0], uuid.uuid4())
        assert isinstance(claim, Claim)
        recovery.recover_claim(own, TABLE, claim, "its process was killed by SIGSEGV")
    assert row_of(engine, ids[0]).status == Status.FAILED
    assert _released(engine) == [ids[1]]


def test_a_sweep_that_expires_attempts_of_a_key_releases_the_next(
    write: Write, line: Any, own: Engine, engine: Engine, outbox_app: AsyncTask
) -> None:
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1)
    late = [write(Client, "ping", order_key="a", expires_at=soon).id for _ in range(2)]
    (behind,) = line("a", 1)
    ordering.release_arrived(own, TABLE)
    let_pass(engine, 120)
    assert len(expiry.expire_overdue(own, TABLE)) == 2  # without the rest of a sweep, which would find the key too
    assert [row_of(engine, one).status for one in late] == [Status.EXPIRED] * 2
    assert _released(engine) == [behind]


def test_an_overdue_attempt_that_is_performed_by_its_id_expires_and_releases_the_next(
    write: Write, line: Any, own: Engine, engine: Engine, outbox_app: AsyncTask
) -> None:
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1)
    late = [write(Client, "ping", order_key="a", expires_at=soon).id for _ in range(2)]
    (behind,) = line("a", 1)
    let_pass(engine, 120)
    assert [type(outbox_app.perform(one)).__name__ for one in reversed(late)] == ["Expired", "Expired"]
    assert outbox_app.perform(behind) == Succeeded(behind)


@pytest.mark.slow
def test_a_sweep_finds_keys_whose_process_died_before_it_released_the_next_attempt(
    line: Any, own: Engine, engine: Engine, outbox_app: AsyncTask
) -> None:
    ids = {key: line(key, 2) for key in ("a", "b", "c", "d", "e")}
    ordering.release_arrived(own, TABLE)
    for key in ("b", "c", "e"):
        claim = _claim(own, ids[key][0])
        assert _succeed(own, claim)
    assert _released(engine) == sorted([ids["a"][0], ids["d"][0]])
    assert ordering.release_overlooked(own, TABLE, 2) == (1, "b")
    assert ordering.release_overlooked(own, TABLE, 2, "b") == (1, "d")
    assert ordering.release_overlooked(own, TABLE, 2, "d") == (1, None)
    assert _released(engine) == sorted([ids["a"][0], ids["b"][1], ids["c"][1], ids["d"][0], ids["e"][1]])
    assert ordering.release_overlooked(own, TABLE) == (0, None)
    outbox_app.run_batch()
    assert ordering.release_overlooked(own, TABLE) == (0, None)


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_a_worker_releases_an_attempt_that_somebody_had_locked_when_its_turn_came(
    line: Any, engine: Engine, outbox_app: AsyncTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who settles the one before it does not wait for the lock. No sweep is due for minutes."""
    monkeypatch.setattr(poller, "KEYS_EVERY", 0.2)
    before, after = line("a", 2)
    ordering.release_arrived(engine, TABLE)
    with working(outbox_app, concurrency=1):
        with engine.begin() as connection:
            connection.execute(select(TABLE.c.id).where(TABLE.c.id == after).with_for_update())
            await_(lambda: row_of(engine, before).status is Status.SUCCEEDED, "the first one is called")
            _await_another_call(engine)
        await_(lambda: row_of(engine, after).status is Status.SUCCEEDED, "the second one is called")


def _await_another_call(engine: Engine) -> None:
    """The worker has gone on to another call, so that what followed the one before is done."""
    with Session(engine) as session, session.begin():
        other = Attempt.create(target=Client, method_name="ping", session=session)
        session.flush()
        other_id = other.id
    await_(lambda: row_of(engine, other_id).status is Status.SUCCEEDED, "another one is called")


@pytest.mark.long
@pytest.mark.only_on("mysql")
def test_a_look_for_overlooked_keys_reads_few_rows(own: Engine, sessions: sessionmaker[Session]) -> None:
    """MariaDB read all that wait behind each key: 12 s for 500 keys of 20,000 attempts."""
    with sessions.begin() as session:
        Attempt.create_many(session, [{**PING, "order_key": f"k{number % 200:03}"} for number in range(2_000)])
    with own.connect() as connection:
        before = rows_read(connection)
        assert ordering.overlooked(connection, TABLE, 100, None) == ([], "k099")
        assert rows_read(connection) - before < 6_000


REFUSING = {
    "postgresql": [
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.released AND NOT OLD.released "
        "AND NEW.order_key = 'c' THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER refuse BEFORE UPDATE ON async_task_attempts FOR EACH ROW EXECUTE FUNCTION refuse()",
    ],
    "mysql": [
        "CREATE TRIGGER refuse BEFORE UPDATE ON async_task_attempts FOR EACH ROW IF NEW.released AND NOT OLD.released "
        "AND NEW.order_key = 'c' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no'; END IF"
    ],
    "sqlite": [
        "CREATE TRIGGER refuse BEFORE UPDATE ON async_task_attempts WHEN NEW.released AND NOT OLD.released "
        "AND NEW.order_key = 'c' BEGIN SELECT RAISE(ABORT, 'no'); END"
    ],
}


@pytest.fixture
def refusing(engine: Engine) -> Iterator[None]:
    """The database refuses to release anything of the key "c"."""
    engine.dispose()  # SQLite asks a pooled connection's older schema whether a trigger of this name is there
    with engine.begin() as connection:
        for statement in REFUSING[engine.dialect.name]:
            connection.exec_driver_sql(statement)
    yield
    drop = "DROP FUNCTION refuse CASCADE" if engine.dialect.name == "postgresql" else "DROP TRIGGER refuse"
    with engine.begin() as connection:
        connection.exec_driver_sql(drop)


@pytest.mark.slow
@pytest.mark.usefixtures("refusing")
@pytest.mark.parametrize("moment", ["arrival", "sweep"])
def test_a_key_that_the_database_refuses_to_release_holds_up_no_other(
    line: Any, own: Engine, engine: Engine, outbox_app: AsyncTask, caplog: pytest.LogCaptureFixture, moment: str
) -> None:
    ids = {key: line(key, 2) for key in ("a", "c", "e")}
    if moment == "sweep":
        with engine.begin() as connection:
            connection.execute(update(TABLE).values(arrived=None))
        ordering.release_overlooked(own, TABLE)
    else:
        ordering.release_arrived(own, TABLE)
    assert _released(engine) == sorted([ids["a"][0], ids["e"][0]])
    if engine.dialect.name != "sqlite":  # whose triggers raise what a unique index raises
        assert "order key c cannot be released" in caplog.text
    assert outbox_app.run_batch().succeeded == 4


@pytest.mark.slow
def test_the_first_batch_after_such_a_death_continues_with_the_key(
    line: Any, own: Engine, outbox_app: AsyncTask
) -> None:
    ids = line("a", 3)
    claim = _claim(own, ids[0])
    _succeed(own, claim)
    assert outbox_app.run_batch().succeeded == 2


# Races


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_the_second_release_of_a_key_is_refused_by_the_index_and_its_transaction_stays_usable(
    line: Any, own: Engine, engine: Engine
) -> None:
    """The second transaction's snapshot does not see the row that the first one released."""
    first, second = line("a", 2)
    with ThreadPoolExecutor(1) as threads:
        with own.begin() as connection:
            connection.execute(update(TABLE).where(TABLE.c.id == second).values(released=True))
            other = threads.submit(_release_and_continue, own, first)
            elsewhere.await_(lambda: somebody_waits(engine), "the second release waits for the first")
        assert other.result(30) == ([], 1)
    assert _released(engine) == [second]


@pytest.mark.only_on("postgresql", "mysql")
def test_an_arrival_is_released_although_the_attempt_before_it_settles_meanwhile(
    line: Any, own: Engine, engine: Engine
) -> None:
    """The poll has locked the arrival and sees the attempt before it as pending; the settle skips locked rows."""
    claim = _claim(own, line("a", 1)[0])
    (behind,) = line("a", 1)
    _let_mysql_use_indexes(engine)

    is_first = itertools.count()

    def settle_meanwhile(connection: Any) -> None:
        if next(is_first):
            return
        _succeed(own, claim)
        assert ordering.release(own, TABLE, ["a"]) == []

    event.listen(own, "commit", settle_meanwhile)
    assert ordering.release_arrived(own, TABLE) == 1
    assert _released(engine) == [behind]


def _let_mysql_use_indexes(engine: Engine) -> None:
    """In a small table it would walk over all rows, and lock them until the commit in which this test settles."""
    if engine.dialect.name == "mysql":
        with engine.begin() as connection:
            Attempt.create_many(connection, [PING | {"queue": "filler"}] * 200)
            connection.execute(text("ANALYZE TABLE async_task_attempts"))


@pytest.mark.slow
def test_many_lanes_and_producers_never_start_two_of_a_key_nor_one_out_of_order(engine: Engine) -> None:
    work = Work(engine, keys=4, producers=3, each=16, lanes=4)
    work.run()
    assert work.overlapped == []
    assert work.out_of_order() == []
    if engine.dialect.name == "sqlite":  # where one writes at a time, and no two transactions are open together
        assert work.done == {key: sorted(done) for key, done in work.done.items()}
    assert sum(map(len, work.done.values())) == len(work.written) == 3 * 16


class Work:
    """Producers that create keyed attempts, and lanes that claim, settle and release them, all at the same time."""

    def __init__(self, engine: Engine, *, keys: int, producers: int, each: int, lanes: int) -> None:
        self.keys, self.producers, self.each, self.lanes = keys, producers, each, lanes
        self.source = Source(engine)
        self.overlapped: list[str] = []
        self.done: dict[str, list[tuple[int, uuid.UUID]]] = defaultdict(list)
        """By key: the numbers and ids of the attempts, in the order in which they were performed."""
        self.written: dict[uuid.UUID, tuple[float, float]] = {}
        """Of each attempt: an instant before its transaction began, and one after it was committed."""
        self._running: Counter[str] = Counter()
        self._guard = threading.Lock()

    def run(self) -> None:
        with ThreadPoolExecutor(self.producers + self.lanes) as threads:
            found = [threads.submit(self._produce) for _ in range(self.producers)]
            found += [threads.submit(self._perform) for _ in range(self.lanes)]
            for one in found:
                one.result(120)

    def out_of_order(self) -> list[tuple[str, int, int]]:
        """Pairs of which the one performed first was begun after the other was committed. Two transactions that were
        open at the same time have no order, whichever has the lower number."""
        return [
            (key, late, early)
            for key, done in self.done.items()
            for (late, its), (early, others) in itertools.combinations(done, 2)
            if self.written[others][1] <= self.written[its][0]
        ]

    def _produce(self) -> None:
        engine = self.source.private()
        for number in range(self.each):
            begun = time.monotonic()
            with engine.begin() as connection:
                (made,) = Attempt.create_many(connection, [{**PING, "order_key": f"key {number % self.keys}"}])
            self.written[made] = (begun, time.monotonic())
        engine.dispose()

    def _perform(self) -> None:
        engine = self.source.private()
        until = time.monotonic() + 60
        while self.producers * self.each > sum(map(len, self.done.values())):
            assert time.monotonic() < until, "an attempt is never released"
            retry_transient(partial(ordering.release_arrived, engine, TABLE))
            claims = retry_transient(
                partial(fetch.claim_due, engine, TABLE, ClaimRequest("lane", LEASE, "default", 2, uuid.uuid4()))
            )
            if not claims:
                threading.Event().wait(0.01)
                if locks_neighbours(engine.dialect):  # there a head that is locked for a moment is left to this look
                    retry_transient(partial(ordering.release_overlooked, engine, TABLE))
            for claim in claims:
                self._begin(claim)
                self._settle(engine, claim)
        engine.dispose()

    def _begin(self, claim: Claim) -> None:
        assert claim.order_key is not None
        with self._guard:
            self._running[claim.order_key] += 1
            if self._running[claim.order_key] > 1:
                self.overlapped.append(claim.order_key)

    def _settle(self, engine: Engine, claim: Claim) -> None:
        key = str(claim.order_key)
        with engine.connect() as connection:
            seq = connection.scalar(select(TABLE.c.seq).where(TABLE.c.id == claim.id))
        with self._guard:
            self._running[key] -= 1
            self.done[key].append((seq, claim.id))
        assert retry_transient(partial(_succeed, engine, claim))
        retry_transient(partial(ordering.release, engine, TABLE, [key]))


def test_a_key_with_a_released_attempt_is_left_alone_without_an_error_in_the_servers_log(
    line: Any, sessions: Sessions, own: Engine, engine: Engine
) -> None:
    ids = line("a", 2)
    ordering.release_arrived(own, TABLE)
    for verb in ("fail", "retry_now"):
        with sessions.begin() as session:
            getattr(session.get_one(Attempt, ids[0]), verb)()
    errors: list[Any] = []

    def note(context: Any) -> None:
        errors.append(context)

    event.listen(own, "handle_error", note)
    try:
        assert ordering.release(own, TABLE, ["a"]) == []
        assert ordering.release_arrived(own, TABLE) == 1
        assert _released(engine) == [ids[1]]
    finally:
        event.remove(own, "handle_error", note)  # the dialect keeps it for later tests
    assert errors == []


# Long queues behind one key


@pytest.mark.slow
@pytest.mark.parametrize("counted", [False, True], ids=["as they came", "with statistics"])
def test_the_next_attempt_of_a_key_is_found_without_a_walk_over_all_that_wait(
    engine: Engine, own: Engine, sessions: Sessions, counted: bool
) -> None:
    with sessions.begin() as session:
        Attempt.create_many(session, [{**PING, "order_key": "long"}] * 200)
        if counted and engine.dialect.name != "sqlite":
            session.execute(text("ANALYZE " + ("" if engine.dialect.name == "postgresql" else "TABLE ") + TABLE.name))
    word = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
    seen: list[str] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "order_key" in statement and not statement.startswith(word):
            other = connection.connection.driver_connection.cursor()
            other.execute(f"{word} {statement}", parameters)
            steps = [str(step) for step in other.fetchall()]
            seen.append("\n".join(step for step in steps if "<derived" not in step))  # a page of keys may be sorted

    event.listen(own, "before_cursor_execute", explain)
    if engine.dialect.name == "postgresql":
        # In so small a table a scan is cheap, and so is a merge, which sorts the keys that are asked for.
        plain = "SET LOCAL enable_seqscan = off; SET LOCAL enable_mergejoin = off"
        event.listen(own, "begin", lambda connection: connection.exec_driver_sql(plain))
    ordering.release(own, TABLE, ["long"])
    ordering.release_overlooked(own, TABLE)
    plans = [plan for plan in seen if "keyed" in plan]
    assert len(plans) == len(seen) >= 2
    assert not [plan for plan in seen if "Sort" in plan or "filesort" in plan or "TEMP B-TREE" in plan]


def _claim(own: Engine, attempt_id: uuid.UUID) -> Claim:
    claim = fetch.claim_one(own, TABLE, "somebody", LEASE, attempt_id, uuid.uuid4())
    assert isinstance(claim, Claim)
    return claim


def _succeed(own: Engine, claim: Claim) -> bool:
    return fenced_writes.write_outcome(own, TABLE, claim, Decision(Status.SUCCEEDED), None)


def _lose(own: Engine, engine: Engine, attempt_id: uuid.UUID) -> None:
    """Start it in a process that dies, and let a sweep recover it."""
    fetch.claim_one(own, TABLE, "gone:1:0", LEASE, attempt_id, uuid.uuid4())
    let_pass(engine, 120)
    forget_beats(engine)
    assert len(recovery.recover_orphans(own, TABLE, dt.timedelta(seconds=1))) == 1


def _release_and_continue(own: Engine, attempt_id: uuid.UUID) -> tuple[list[str], int]:
    """Try to release the key, and use the transaction again."""
    with own.connect() as connection, connection.begin():
        released = ordering.release_in(connection, TABLE, ["a"])
        is_pending = update(TABLE).where(TABLE.c.id == attempt_id).values(priority=3)
        return released, connection.execute(is_pending).rowcount


def _released(engine: Engine) -> list[uuid.UUID]:
    with engine.connect() as connection:
        is_keyed = TABLE.c.order_key.is_not(None)
        found = select(TABLE.c.id).where(TABLE.c.released, TABLE.c.status == Status.PENDING, is_keyed)
        return sorted(connection.scalars(found))


def _in_order_of_start(engine: Engine) -> list[uuid.UUID]:
    with engine.connect() as connection:
        started = select(TABLE.c.id).where(TABLE.c.num_attempts > 0)
        return list(connection.scalars(started.order_by(TABLE.c.attempted_at)))


def _overlaps(engine: Engine) -> list[str]:
    """Attempts that began before the one before them in their key had ended."""
    with engine.connect() as connection:
        t = TABLE.c
        columns: Any = select(t.order_key, t.attempted_at, t.completed_at)
        rows = connection.execute(columns.where(t.num_attempts > 0).order_by(t.order_key, t.seq)).all()
    return [
        f"{one.order_key}: {two.attempted_at} before {one.completed_at}"
        for one, two in itertools.pairwise(rows)
        if one.order_key == two.order_key and two.attempted_at < one.completed_at
    ]
