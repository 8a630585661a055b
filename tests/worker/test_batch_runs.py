"""The record that each run leaves: when, with which figures, and why it stopped."""

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, insert, select

from async_task import AsyncTask, Attempt, JobEvent, acting
from async_task.schema.tables import Worker
from async_task.worker import batch_runs
from async_task.worker.batch_report import BatchReport
from conftest import by_one_door
from outbox import Client

Write = Callable[..., Attempt]


class Torn(Exception):
    pass


@pytest.mark.slow
def test_each_run_leaves_its_figures_and_why_it_stopped(app: AsyncTask, write: Write) -> None:
    assert app.runs() == ()
    for method in ("ping", "ping", "fail"):
        write(Client, method)
    with acting("anna@web"):
        first = app.run_batch()
    stop = threading.Event()
    stop.set()
    app.run_batch(stop=stop)
    for _ in range(2):
        write(Client, "ping")
    app.run_batch(max_seconds=0)
    app.run_batch(1, concurrency=1)

    def tear(report: BatchReport) -> None:
        if report.claimed:
            raise Torn("in the middle")

    with pytest.raises(Torn):
        app.run_batch(progress=tear)
    runs = app.runs()
    assert [(one.why, one.report.claimed, one.report.succeeded, one.report.left) for one in runs] == [
        ("error", 1, 1, 0),
        ("limit", 1, 1, 0),
        ("time", 0, 0, 2),
        ("stopped", 0, 0, 0),
        ("done", 3, 2, 0),
    ]
    assert runs[0].error is not None
    assert "Torn: in the middle" in runs[0].error
    done = runs[-1]
    assert (done.report.retried, done.report.seconds, done.error) == (1, first.seconds, None)
    assert done.started_at < done.ended_at <= app.now()
    assert (done.actor, done.worker != "anna@web", runs[0].actor) == ("anna@web", True, runs[0].worker)
    assert app.runs(limit=2) == runs[:2]
    assert app.runs(after=runs[1].id) == runs[2:]


@by_one_door
def test_a_run_that_did_nothing_because_of_another_leaves_no_record(app: AsyncTask, engine: Engine) -> None:
    with engine.begin() as connection:
        me = {"name": "other", "host": "h", "pid": 1, "process_started": "", "kind": "run-batch"}
        connection.execute(insert(Worker).values(me | {"job_type": app.table_name}))
    assert app.run_batch(overlap="skip").overlapped is not None
    assert app.runs() == ()


@pytest.mark.slow
@by_one_door
def test_the_newest_runs_are_kept_and_disturb_no_other_reader(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runs, "KEPT", 3)
    attempt = write(Client, "fail")
    with acting("anna@web"):
        for _ in range(5):
            app.run_batch()
    assert [one.report.claimed for one in app.runs()] == [0, 0, 0]
    with engine.connect() as connection:
        kinds = connection.scalars(select(JobEvent.kind).order_by(JobEvent.id)).all()
    assert kinds == ["error", "run", "run", "run"]
    read = app.attempts
    assert [one.attempt_id for one in read.errors()] == [attempt.id]
    assert [one.count for one in read.failures().groups] == [1]
    assert [one.kind for one in read.events(attempt.id)] == ["error"]
    assert (read.audit().events, read.stuck().groups) == ((), ())
    app.prune(0, statuses=["succeeded", "failed", "expired", "canceled"])
    assert len(app.runs()) == 3


@by_one_door
def test_a_run_whose_record_cannot_be_written_ends_as_it_would(
    app: AsyncTask, write: Write, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(batch_runs, "_write", fail)
    write(Client, "ping")
    assert app.run_batch().succeeded == 1
    assert [one.message for one in caplog.records] == ["the record of a run is not written: OSError: the disk is full"]
