"""`app.attempts.stuck`: what is stuck, by cause, with the command that helps."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, event, update
from sqlalchemy.orm import Session

from async_task import (
    AsyncTask,
    Attempt,
    Attempts,
    ConfigurationError,
    StuckGroup,
    StuckJob,
    StuckReport,
)
from async_task.encryption.encryptors import encryptor_named
from async_task.reading import row_problems, waiting_sample
from async_task.reading.stuck_groups import StuckFound
from async_task.schema.tables import companion_tables
from claims import TABLE, claimed, seconds_from_now
from conftest import by_one_door
from mess import CAUSES, HEALTHY, LONG_AGO, changed, ended, erred, mess, worker_runs
from outbox import Client, act

Write = Callable[..., Attempt]
MINUTE = dt.timedelta(minutes=1)


def by_cause(report: StuckReport) -> dict[str, StuckGroup]:
    assert len({one.cause for one in report.groups}) == len(report.groups)
    return {one.cause: one for one in report.groups}


@pytest.mark.slow
@by_one_door
def test_a_mess_with_one_row_for_each_cause_is_named_rightly(
    app: AsyncTask, engine: Engine, write: Write, own_encryptors: None
) -> None:
    made = mess(engine, write)
    report = app.attempts.stuck()
    found = by_cause(report)
    assert [one.cause for one in report.groups] == list(CAUSES)
    stuck = {**made, "blocked": made["blocked"][1:]}
    del stuck[HEALTHY]
    assert {cause: {job.job_id for job in one.jobs} for cause, one in found.items()} == {
        cause: {str(attempt.id) for attempt in attempts} for cause, attempts in stuck.items()
    }
    assert {cause: one.count for cause, one in found.items()} == {cause: len(some) for cause, some in stuck.items()}
    assert all(one.is_counted and one.effect and one.remedy.startswith("async-task ") for one in report.groups)
    assert report.is_complete


@pytest.mark.slow
@by_one_door
def test_each_row_of_the_mess_is_explained_with_a_remedy(
    app: AsyncTask, engine: Engine, write: Write, own_encryptors: None
) -> None:
    made = mess(engine, write)
    found = {cause: app.attempts.explain(some[0].id).reasons for cause, some in made.items()}
    assert {cause: [one.kind for one in reasons] for cause, reasons in found.items()} == {
        "orphan": ["lost"],
        "lease_past": ["lost"],
        "not_served": ["not_served"],
        "paused": ["paused"],
        "unknown_target": ["unknown_target"],
        "key_missing": ["key_missing"],
        "unfit": ["unfit"],
        "crash_limit": ["crash_limit"],
        "same_error": ["ended"],
        "blocked": ["not_due"],
        "overdue": ["overdue"],
        HEALTHY: ["next"],
    }
    assert "'k-old'" in found["key_missing"][0].words
    assert all(one.remedy.startswith("async-task ") for reasons in found.values() for one in reasons)
    (later,) = found["blocked"]
    assert later.until == app.attempts.get(made["blocked"][0].id).due_at
    (behind, *_) = app.attempts.explain(made["blocked"][1].id).reasons
    assert (behind.kind, behind.remedy) == ("waits_behind", f"async-task explain {made['blocked'][0].id}")


@by_one_door
def test_everything_that_blocks_one_attempt_is_named(app: AsyncTask, engine: Engine, write: Write) -> None:
    worker_runs(engine, queues=("default",))
    first, second = (write(Client, "ping", order_key="c-1", queue="mail") for _ in range(2))
    changed(engine, first, released=True, arrived=None)
    changed(engine, second, arrived=None, due_at=seconds_from_now(600), num_losses=1, num_attempts=1)
    app.pause("mail")
    app.pause(target=Client)
    reasons = app.attempts.explain(second.id).reasons
    found = [one.kind for one in reasons]
    assert found == ["waits_behind", "not_due", "paused", "paused", "not_served", "suspect"]
    resumes = {"async-task resume --queue mail", "async-task resume --target test.client"}
    assert {one.remedy for one in reasons if one.kind == "paused"} == resumes


@pytest.mark.slow
@by_one_door
def test_what_is_young_or_goes_on_by_itself_is_not_stuck(app: AsyncTask, engine: Engine, write: Write) -> None:
    """Due for a minute without a worker, paused just now, running under a lock, retried for the second time, one error
    after another, failed by a person, and an order key whose first one is next."""
    fresh, retried, changing, by_hand, running = (write(Client, "ping") for _ in range(5))
    changed(engine, fresh, due_at=seconds_from_now(-60))
    assert app.attempts.stuck().groups == ()
    worker_runs(engine)
    mail = changed(engine, write(Client, "ping", queue="mail"), due_at=LONG_AGO)
    app.pause("mail")
    later = {"due_at": seconds_from_now(600), "last_error": "Broken: order 7"}
    changed(engine, retried, num_errors=4, num_attempts=4, **later)
    changed(engine, changing, num_errors=6, num_attempts=6, **later)
    for number, fingerprint in enumerate(("a" * 12, "b" * 12, "a" * 12, "c" * 12, "a" * 12, "b" * 12)):
        erred(engine, changing, "error", f"Broken: {number}", fingerprint)
    erred(engine, by_hand, "error", "Broken: order 7", "a" * 12)
    app.write(lambda session: session.get(Attempt, by_hand.id).fail(reason="nobody wants it"))
    claimed(engine, running.id, "host:7:aaaaaaaa")
    changed(engine, running, lease_until=seconds_from_now(-30))
    ordered = [write(Client, "ping", order_key="c-1") for _ in range(2)]
    changed(engine, ordered[0], released=True, arrived=None)
    changed(engine, ordered[1], arrived=None)
    assert app.attempts.stuck().groups == ()
    assert app.attempts.get(mail.id).is_due


@by_one_door
def test_a_worker_that_does_not_tell_its_targets_may_know_any(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = changed(engine, write(Client, "ping"), target="shop.gone", due_at=LONG_AGO)
    worker_runs(engine, "host:7:bbbbbbbb", target_names=None)
    assert app.attempts.stuck().groups == ()
    with engine.begin() as connection:
        connection.execute(companion_tables(TABLE).workers.delete())
    worker_runs(engine, target_names=["shop.other"])
    worker_runs(engine, "host:7:cccccccc", queues=("mail",), target_names=["shop.gone"])
    assert [one.cause for one in app.attempts.stuck().groups] == ["unknown_target"]
    assert [one.kind for one in app.attempts.explain(attempt.id).reasons] == ["unknown_target"]


@pytest.mark.slow
@by_one_door
def test_order_keys_of_which_no_worker_has_decided_count_as_not_served(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempt = changed(engine, write(Client, "ping", order_key="c-1"), due_at=LONG_AGO)
    [group] = app.attempts.stuck().groups
    assert (group.cause, group.jobs[0].job_id) == ("not_served", str(attempt.id))
    assert group.remedy == "async-task run-batch --queue default"
    assert app.run_batch(queues=["default"]).succeeded == 1
    assert app.attempts.stuck().groups == ()


@by_one_door
def test_a_group_names_the_oldest_counts_all_and_can_be_asked_for(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [write(Client, "ping") for _ in range(4)]
    for minutes, one in enumerate(made, start=6):
        changed(engine, one, due_at=seconds_from_now(-60 * minutes))
    changed(engine, write(Client, "ping"), expires_at=LONG_AGO)
    [group] = app.attempts.stuck(cause="not_served", limit=2).groups
    assert [job.job_id for job in group.jobs] == [str(made[3].id), str(made[2].id)]
    assert (group.count, group.is_counted, group.subject) == (4, True, "default")
    monkeypatch.setattr(waiting_sample, "MOST_COUNTED", 3)
    monkeypatch.setattr(waiting_sample, "READ", 4)
    monkeypatch.setattr(waiting_sample, "FEWEST", 2)
    report = app.attempts.stuck(cause="not_served")
    assert (report.is_complete, report.groups[0].count, report.groups[0].is_counted) == (False, 3, False)
    assert "3 attempts or more" in report.groups[0].words
    with pytest.raises(ConfigurationError, match=r"cause is one of .*did you mean 'orphan'"):
        app.attempts.stuck(cause="orphans")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="limit is a whole number"):
        app.attempts.stuck(limit=0)


@by_one_door
def test_a_source_of_other_jobs_joins_in_the_same_order(app: AsyncTask, engine: Engine, write: Write) -> None:
    class Reviews:
        def stuck(self, session: Session, limit: int) -> StuckFound:
            job = StuckJob("reviews", "17", "Review", LONG_AGO - 10 * MINUTE, "Away")
            words = ("same_error", "reviews", "1 review fails")
            return StuckFound([StuckGroup(*words, 1, True, (job,)[:limit], "async-task x", "Does.")], False)

    ended(engine, failed := write(Client, "ping"), "Broken: order 7")
    erred(engine, failed, "error", "Broken: order 7", "e" * 12)
    claimed(engine, (lost := write(act)).id)
    changed(engine, lost, lease_until=LONG_AGO)
    attempts = Attempts(app.model, lambda _verb, work: app.read(work), (Reviews(),))
    report = attempts.stuck()
    assert not report.is_complete
    assert [(one.cause, one.jobs[0].job_type) for one in report.groups] == [
        ("orphan", TABLE.name),
        ("same_error", "reviews"),
        ("same_error", TABLE.name),
    ]


@pytest.mark.long
@by_one_door
def test_a_thousand_stuck_rows_take_as_many_statements_as_ten(
    app: AsyncTask, engine: Engine, write: Write, own_encryptors: None
) -> None:
    sent: list[str] = []

    def number() -> int:
        sent.clear()
        app.attempts.stuck()
        return len(sent)

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    mess(engine, write)
    rows = [{"target": Client, "method_name": "ping"}] * 300
    app.check_schema()
    event.listen(engine, "before_cursor_execute", note)
    try:
        few = number()
        with engine.begin() as connection:
            ids = Attempt.create_many(connection, rows)
            connection.execute(update(TABLE).where(TABLE.c.id.in_(ids[:150])).values(method_args='{"nobody": 1}'))
            connection.execute(update(TABLE).where(TABLE.c.id.in_(ids[150:])).values(target="shop.gone"))
            keyed = [{"target": Client, "method_name": "ping", "order_key": f"k-{n // 2}"} for n in range(240)]
            ids = Attempt.create_many(connection, keyed)
            first = {"released": True, "num_errors": 1, "num_attempts": 1, "due_at": seconds_from_now(600)}
            connection.execute(update(TABLE).where(TABLE.c.id.in_(ids)).values(arrived=None))
            connection.execute(update(TABLE).where(TABLE.c.id.in_(ids[::2])).values(first))
        many = number()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert many == few
    report = app.attempts.stuck()
    assert [one.cause for one in report.groups].count("blocked") == 100  # behind the oldest ones
    assert report.is_complete is False


@by_one_door
def test_many_rows_of_one_key_or_encryptor_ask_for_it_once(
    app: AsyncTask, engine: Engine, write: Write, own_encryptors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def named(name: str) -> Any:
        asked.append(name)
        return encryptor_named(name)

    monkeypatch.setattr(row_problems, "encryptor_named", named)
    with engine.begin() as connection:
        ids = Attempt.create_many(connection, [{"target": Client, "method_name": "ping"}] * 20)
        connection.execute(update(TABLE).where(TABLE.c.id.in_(ids)).values(encryptor="gone"))
    [group] = app.attempts.stuck().groups
    assert (group.cause, group.subject, group.count) == ("key_missing", "gone", 20)
    assert len(asked) <= 2  # to judge, and to say why
