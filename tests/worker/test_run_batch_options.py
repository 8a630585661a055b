"""What `app.run_batch` can be asked for: a part of what is due, for a time, watched; and what it would do."""

import datetime as dt
import threading
import time
import types
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, event, select, update

import outbox
from async_task import (
    AesGcmEncryptor,
    AsyncTask,
    Attempt,
    AttemptBatchJob,
    BatchPreview,
    BatchReport,
    ConfigurationError,
    DueCalls,
    Key,
    Status,
    UnknownTarget,
    metadata,
    target,
)
from async_task.encryption import encryptors
from async_task.encryption.encryptors import register_encryptor
from async_task.queue import backlog, fetch
from async_task.worker import batch_workload
from clockwork import let_pass, row_of
from databases import Database
from outbox import Client, Gate, Gated, act, act_leased, application, calls, effect, gates, will

Write = Callable[..., Attempt]
TABLE: Any = Attempt.__table__


@target("test.renamed", aliases=["test.former", "test.first"])
def renamed() -> None:
    """Rows may hold any of its three names."""
    calls.append("renamed")


# A part of what is due


@pytest.mark.slow
def test_only_the_named_queues_are_performed(app: AsyncTask, engine: Engine, write: Write) -> None:
    made = {queue: write(Client, "ping", queue=queue) for queue in ("default", "mail", "slow", "Mail")}
    report = app.run_batch(queues=["mail", "slow", "mail", "nobody's"])
    assert report.succeeded == 2
    assert _starts(engine, made) == {"default": 0, "mail": 1, "slow": 1, "Mail": 0}
    assert app.run_batch(queues=["nobody's"]).claimed == 0


@pytest.mark.slow
def test_only_the_named_targets_are_called_also_under_their_aliases(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    made = {name: write(renamed) for name in ("test.renamed", "test.former", "test.first")}
    for name, attempt in made.items():
        _change(engine, attempt, target=name)
    made |= {"test.client": write(Client, "ping"), "test.effect": write(effect)}
    assert app.run_batch(targets=["test.former"], limit=2).succeeded == 2
    assert app.run_batch(targets=["test.former"]).succeeded == 1
    assert calls == ["renamed"] * 3
    assert app.run_batch(targets=[Client, "test.effect"], queues=["default"]).succeeded == 2
    assert set(_starts(engine, made).values()) == {1}


@pytest.mark.slow
def test_suspects_outside_of_the_scope_are_not_performed(
    database: Database, door: str, engine: Engine, write: Write
) -> None:
    app = AsyncTask(database.sync_url if door == "sync" else database.async_url, lease=1)
    made = {"queue": write(Client, "ping", queue="other"), "target": write(renamed), "both": write(Client, "ping")}
    with engine.begin() as connection:
        connection.execute(update(TABLE).values(num_attempts=1, num_crashes=1))
    engine.dispose()  # a suspect is performed in a fork
    assert app.run_batch(queues=["default"], targets=[Client]).claimed == 1
    assert _starts(engine, made) == {"queue": 1, "target": 1, "both": 2}
    app.close()


@pytest.mark.slow
def test_the_sweep_covers_every_queue_and_target(app: AsyncTask, engine: Engine, write: Write) -> None:
    late, lost = write(renamed, expires_at=_in(1)), write(renamed, queue="other")
    fetch.claim_one(engine, TABLE, "gone:1:0", dt.timedelta(seconds=1), lost.id, uuid.uuid4())
    let_pass(engine, 2)
    report = app.run_batch(queues=["mail"], targets=[Client])
    assert (report.expired, report.recovered, report.claimed) == (1, 1, 0)
    assert row_of(engine, late.id).status is Status.EXPIRED


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"targets": ["test.cleint"]}, UnknownTarget, r"'test\.cleint' in this process \(did you mean 'test\.client'"),
        ({"targets": [print]}, UnknownTarget, "print is not registered"),
        ({"targets": "test.client"}, ConfigurationError, "targets takes a list"),
        ({"queues": "default"}, ConfigurationError, r"queues takes a list of names: queues=\['default'\], not str"),
        ({"queues": [""]}, ConfigurationError, "queues takes the names of queues, each with at least one character"),
        ({"queues": [7]}, ConfigurationError, "queues takes the names of queues"),
        ({"max_seconds": -1}, ConfigurationError, "max_seconds cannot be negative"),
        ({"max_seconds": "60"}, ConfigurationError, "max_seconds takes a timedelta or seconds, not a str"),
        ({"max_seconds": float("nan")}, ConfigurationError, "max_seconds takes a finite number of seconds"),
        ({"overlap": "wait"}, ConfigurationError, "overlap is one of 'allow', 'skip' and 'fail', not 'wait'"),
        ({"overlap": None}, ConfigurationError, "overlap is one of"),
        ({"stop": True}, ConfigurationError, "stop takes a threading.Event, which stops it once it is set, not True"),
        ({"progress": 5}, ConfigurationError, r"progress takes a function, called as progress\(report\), not 5"),
    ],
)
def test_invalid_options_are_refused_before_anything_is_done(
    given: dict[str, Any], error: type[Exception], said: str
) -> None:
    never = AsyncTask("postgresql+psycopg://127.0.0.1:1/never_opened")
    with pytest.raises(error, match=said):
        never.run_batch(**given)
    if set(given) & {"queues", "targets"}:
        with pytest.raises(error, match=said):
            never.preview_batch(**given)


# Queues in turn


@pytest.mark.slow
def test_a_full_queue_does_not_delay_other_queues(app: AsyncTask, engine: Engine, write: Write) -> None:
    made = {f"full {number}": write(Client, "ping", queue="a") for number in range(5)}
    made |= {queue: write(Client, "ping", queue=queue) for queue in ("b", "c")}
    assert app.run_batch(limit=3, concurrency=1).succeeded == 3
    started = [name for name, starts in _starts(engine, made).items() if starts]
    assert {"b", "c"} < set(started)
    assert app.run_batch(concurrency=1).succeeded == 4


# For a time


@pytest.mark.slow
@pytest.mark.parametrize("nothing", [0, 0.0, dt.timedelta(0)])
def test_without_any_time_nothing_is_started_and_what_is_left_is_counted(
    app: AsyncTask, engine: Engine, write: Write, nothing: Any
) -> None:
    made = [write(Client, "ping") for _ in range(3)]
    write(Client, "ping", scheduled_at=_in(3600))
    write(renamed)
    write(Client, "ping", queue="other")
    suspect = write(Client, "ping")
    _change(engine, suspect, num_attempts=1, num_crashes=1)
    before = [row_of(engine, one.id) for one in made]
    report = app.run_batch(max_seconds=nothing, queues=["default"], targets=[Client])
    assert report == BatchReport(left=4, seconds=report.seconds)
    assert [row_of(engine, one.id) for one in made] == before


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let ten minutes pass for the batch."""
    clock = types.SimpleNamespace(monotonic=time.monotonic)
    monkeypatch.setattr(batch_workload, "time", clock)

    def pass_ten_minutes() -> None:
        clock.monotonic = lambda: time.monotonic() + 600

    return pass_ten_minutes


@pytest.mark.slow
def test_at_the_deadline_running_calls_are_finished_and_nothing_is_started(
    app: AsyncTask, write: Write, later: Callable[[], None]
) -> None:
    meet = threading.Barrier(2, later)
    will(lambda: meet.wait(30))
    for _ in range(5):
        write(act_leased)
    report = app.run_batch(max_seconds=600, concurrency=2)
    assert (report.claimed, report.succeeded, report.left) == (2, 2, 3)


@pytest.mark.slow
def test_a_deadline_after_the_last_call_leaves_nothing(app: AsyncTask, write: Write, later: Callable[[], None]) -> None:
    will(later)
    write(act)
    report = app.run_batch(max_seconds=600)
    assert (report.succeeded, report.left) == (1, 0)


@pytest.mark.slow
def test_left_is_zero_when_a_limit_or_a_signal_ends_the_batch(app: AsyncTask, write: Write) -> None:
    for _ in range(3):
        write(Client, "ping")
    stop = threading.Event()
    stop.set()
    assert app.run_batch(stop=stop, max_seconds=60).left == 0
    report = app.run_batch(limit=1, max_seconds=60)
    assert (report.claimed, report.left) == (1, 0)


def test_left_is_counted_up_to_a_maximum(app: AsyncTask, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "MOST_COUNTED", 2)
    for _ in range(3):
        write(Client, "ping")
    assert app.run_batch(max_seconds=0).left == 2


# Watched


@pytest.mark.slow
def test_progress_is_reported_at_the_beginning_and_after_each_commit(app: AsyncTask, write: Write) -> None:
    for method in ("ping", "fail", "ping"):
        write(Client, method)
    told: list[BatchReport] = []
    report = app.run_batch(progress=told.append)
    assert [(one.claimed, one.left) for one in told] == [(0, 3), (1, 2), (2, 1), (3, 0)]
    assert (told[-1].succeeded, told[-1].retried) == (report.succeeded, report.retried) == (2, 1)
    assert told[-1].seconds <= report.seconds


@pytest.mark.slow
def test_progress_counts_no_more_than_the_limit_as_left(app: AsyncTask, write: Write) -> None:
    for _ in range(3):
        write(Client, "ping")
    told: list[BatchReport] = []
    app.run_batch(limit=2, progress=told.append)
    assert [(one.claimed, one.left) for one in told] == [(0, 2), (1, 1), (2, 0)]


@pytest.mark.slow
def test_a_progress_function_that_raises_ends_the_batch_and_charges_nothing(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    made = {str(number): write(Client, "ping") for number in range(3)}

    def watch(report: BatchReport) -> None:
        if report.claimed:
            raise LookupError("lost sight")

    with pytest.raises(LookupError):
        app.run_batch(concurrency=1, progress=watch)
    assert sorted(_starts(engine, made).values()) == [0, 0, 1]
    assert app.run_batch().succeeded == 2


@pytest.mark.slow
def test_nothing_is_counted_without_a_progress_function(
    app: AsyncTask, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "left", lambda *_: pytest.fail("it was counted"))
    write(Client, "ping")
    assert app.run_batch(max_seconds=60).succeeded == 1


@pytest.mark.slow
def test_a_batch_job_of_the_users_own_respects_the_options(
    engine: Engine, door: str, async_engine_url: str, write: Write
) -> None:
    class MyBatch(AttemptBatchJob):
        def perform(self, limit: int | None = None, concurrency: int = 1) -> BatchReport:
            return super().perform(limit, concurrency)

    app = application(engine, door, async_engine_url, batch_job=MyBatch)
    for queue in ("default", "mail", "mail"):
        write(Client, "ping", queue=queue)
    assert app.run_batch(max_seconds=0, queues=["mail"]).left == 2
    assert app.run_batch(queues=["mail"], targets=[Client]).succeeded == 2
    app.close()


# What it would do


@pytest.mark.slow
def test_a_preview_counts_due_orphaned_and_overdue_attempts_and_writes_nothing(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    for queue, number in (("default", 2), ("mail", 1)):
        for _ in range(number):
            write(Client, "ping", queue=queue)
    write(renamed)
    write(Client, "ping", scheduled_at=_in(3600))
    write(Client, "ping", expires_at=_in(1))
    lost = write(Client, "ping")
    fetch.claim_one(engine, TABLE, "gone:1:0", dt.timedelta(seconds=1), lost.id, uuid.uuid4())
    let_pass(engine, 2)
    before = _everything(engine)
    found = app.preview_batch()
    expected = (DueCalls("default", "test.client", 2), DueCalls("default", "test.renamed", 1))
    expected += (DueCalls("mail", "test.client", 1),)
    assert found == BatchPreview(due=4, calls=expected, to_recover=1, to_expire=1, overlapped=None)
    part = app.preview_batch(queues=["default"], targets=[Client])
    assert (part.due, part.calls) == (2, expected[:1])
    assert _everything(engine) == before
    assert app.run_batch().claimed == found.due + found.to_recover


def test_a_preview_names_what_this_process_cannot_perform(app: AsyncTask, engine: Engine, write: Write) -> None:
    strange = {"target": "nobody.knows", "method_name": "pong", "encryptor": "test.unheard_of"}
    for column, value in strange.items():
        _change(engine, write(Client, "ping", queue=column), **{column: value})
    write(Client, "ping", queue="method_name")
    by_queue = {one.queue: one for one in app.preview_batch().calls}
    assert {queue: (one.due, one.unperformable) for queue, one in by_queue.items()} == {
        "target": (1, 1), "method_name": (2, 1), "encryptor": (1, 1),
    }  # fmt: skip
    problems = {queue: one.problems[0] for queue, one in by_queue.items()}
    assert problems["target"].startswith("UnknownTarget: no target is registered as 'nobody.knows'")
    assert problems["method_name"].startswith("UnknownMethod: test.client has no method 'pong' (did you mean 'ping'?)")
    assert problems["encryptor"].startswith("UnknownEncryptor: no encryptor is named 'test.unheard_of'")


def test_a_preview_names_calls_under_a_key_that_this_process_does_not_have(
    app: AsyncTask, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encryptors, "_known", dict(encryptors._known))
    old, new = Key.generate(id="k1"), Key.generate(id="k2")
    for key in (old, new):
        register_encryptor(AesGcmEncryptor([key]))
        write(Client, "ping", encryptor="aes-gcm")
    (found,) = app.preview_batch().calls
    assert (found.due, found.unperformable) == (2, 1)
    assert found.problems == (
        "DecryptionFailed: they are under the key 'k1' of 'aes-gcm', which this process does not have: it has k2",
    )
    register_encryptor(AesGcmEncryptor([new, old]))
    (found,) = app.preview_batch().calls
    assert (found.due, found.unperformable, found.problems) == (2, 0, ())


@pytest.mark.slow
def test_a_preview_names_a_running_batch(app: AsyncTask, write: Write) -> None:
    name = uuid.uuid4().hex
    gate = gates[name] = Gate()
    write(Gated, "leased", {"gate": name})
    with ThreadPoolExecutor(1) as threads:
        working = threads.submit(app.run_batch)
        gate.await_call()
        found = app.preview_batch()
        gates.pop(name).opened.set()
        working.result()
    assert found.overlapped is not None
    assert app.preview_batch().overlapped is None


def test_a_preview_sends_no_statement_that_writes_or_locks(engine: Engine, write: Write) -> None:
    write(Client, "ping")
    sent: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
        sent.append(statement)

    try:
        AsyncTask(engine).preview_batch()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert sent
    assert not [one for one in sent if "FOR " in one or one.split()[0] in ("INSERT", "UPDATE", "DELETE")]


def _starts(engine: Engine, made: dict[str, Attempt]) -> dict[str, int]:
    return {name: row_of(engine, attempt.id).num_attempts for name, attempt in made.items()}


def _change(engine: Engine, attempt: Attempt, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == attempt.id).values(**values))


def _everything(engine: Engine) -> dict[str, list[Any]]:
    both: list[MetaData] = [metadata, outbox.more_metadata]
    with engine.connect() as connection:
        return {
            table.name: sorted(connection.execute(select(table)).all(), key=str)
            for one in both
            for table in one.sorted_tables
        }


def _in(seconds: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
