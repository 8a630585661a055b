"""Rows of models that are their own jobs and are stuck: how they are told, and restarted."""

import datetime as dt
import shlex
from typing import Any

import pytest
from sqlalchemy import Engine, delete, insert
from sqlalchemy.orm import Session

from async_task import Attempt, ConfigurationError, InvalidArguments, RestartReport, StuckGroup, UnknownTarget
from async_task.asyncable.registration import register
from async_task.asyncable.stuck import StuckModels
from async_task.attempts.row_keys import key_meant
from async_task.schema.jobs import key_text
from conftest import by_one_door
from databases import rows_read
from mess import worker_runs
from outbox import more_metadata
from reviews import HOUR, Board, Desk, Pair, Review
from said import Run

DAY = 24 * HOUR


def stuck(desk: Desk) -> dict[str, StuckGroup]:
    return {one.cause: one for one in desk.app.attempts.stuck().groups}


@pytest.fixture
def mess(desk: Desk, engine: Engine) -> dict[str, int]:
    """A row for each cause, and three that are not stuck."""
    worker_runs(engine)
    made = {"window_over": desk.submitted(), "canceled": desk.submitted()}
    desk.do(made["canceled"], "cancel")
    desk.pass_by(4 * DAY)
    made["no_job"] = desk.submitted()
    with engine.begin() as connection:
        connection.execute(delete(Attempt))
    desk.pass_by(3 * HOUR)
    made["not_submitted"] = desk.by_hand(error="Broken: order 7")
    made["fresh"], made["later"] = desk.submitted(), desk.submitted(delay=dt.timedelta(days=1))
    return made


@by_one_door
def test_rows_without_a_job_past_their_window_or_never_submitted_are_stuck(desk: Desk, mess: dict[str, int]) -> None:
    found = stuck(desk)
    assert {cause: [one.job_id for one in group.jobs] for cause, group in found.items()} == {
        cause: [str(mess[cause])] for cause in ("window_over", "no_job", "not_submitted")
    }
    assert {(one.count, one.is_counted, one.subject) for one in found.values()} == {(1, True, "test.review")}
    (late,), (lost,), (never,) = (found[cause].jobs for cause in ("window_over", "no_job", "not_submitted"))
    row = desk.row(mess["window_over"])
    assert late.since == row.last_submitted_at + dt.timedelta(days=4)
    assert lost.since == desk.row(mess["no_job"]).last_submitted_at + dt.timedelta(hours=3)
    assert (never.job_type, never.call, never.error) == ("reviews", "test.review.process", "Broken")
    assert found["window_over"].words == "1 row of test.review was not processed within 4 days, 0:00:00"


@by_one_door
def test_each_remedy_works_as_it_is_typed(run: Run, desk: Desk, board: Board, mess: dict[str, int]) -> None:
    for group in stuck(desk).values():
        said = run(*shlex.split(group.remedy)[1:])
        assert (said.code, said.err) == (0, "")
    assert stuck(desk) == {}
    desk.go_on()
    assert {name: desk.status(made) for name, made in mess.items()} == {
        **dict.fromkeys(("window_over", "no_job", "not_submitted", "fresh"), "processed"),
        "canceled": "canceled", "later": "submitted",
    }  # fmt: skip


@by_one_door
def test_a_row_whose_second_attempt_waits_has_a_job(desk: Desk, board: Board, engine: Engine) -> None:
    worker_runs(engine)
    made = desk.submitted()
    desk.go_on()
    desk.do(made, "restart")
    desk.pass_by(3 * HOUR)
    assert [one.status for one in desk.attempts()] == ["succeeded", "pending"]
    assert "no_job" not in stuck(desk)


@by_one_door
def test_a_class_whose_table_is_missing_hides_no_other(
    desk: Desk, mess: dict[str, int], caplog: pytest.LogCaptureFixture, engine: Engine
) -> None:
    register(Pair)
    table = more_metadata.tables["review_pairs"]
    table.drop(engine)
    try:
        assert "no_job" in stuck(desk)
    finally:
        table.create(engine)
    assert "test.review_pair could not be looked at" in caplog.text


@by_one_door
@pytest.mark.only_on("mysql")
def test_rows_that_are_done_are_not_read(desk: Desk, engine: Engine) -> None:
    now = desk.app.now()
    rows = [{"submitted_at": now, "last_submitted_at": now, "processed_at": now} for _ in range(5_000)]
    with Session(engine) as session, session.begin():
        session.execute(insert(Review), rows)
        connection = session.connection()
        before = rows_read(connection)
        assert list(StuckModels([Review]).stuck(session, 10)) == []
        assert rows_read(connection) - before < 100


@by_one_door
def test_restart_names_what_it_refuses_and_leaves_what_is_past_the_limit(
    run: Run, desk: Desk, board: Board, engine: Engine
) -> None:
    made = [desk.submitted() for _ in range(3)]
    desk.pass_by(4 * DAY)
    app = desk.app
    assert app.restart_models(Review, reason="mended", limit=1, dry_run=True) == RestartReport((str(made[0]),), {}, 2)
    assert {desk.row(one).is_expired_without_processing for one in made} == {True}
    report = app.restart_models("test.review", [made[2], 999], reason="mended")
    assert report == RestartReport((str(made[2]),), {"999": "there is no Review with this key"})
    dry = run("restart", "test.review", "--expired", "--dry-run", "--limit", "1")
    assert (dry.code, dry.out) == (0, f"{made[0]}  would be restarted\n")
    assert dry.err == "1 row is left: give a higher --limit, or run it again.\n"
    said = run("restart", "test.review", str(made[0]), "999", "--reason", "mended", "--json")
    assert said.code == 1
    assert [(one["key"], one["ok"]) for one in said.lines] == [(str(made[0]), True), ("999", False)]
    desk.go_on()
    assert [desk.status(one) for one in made] == ["processed", "submitted", "processed"]
    events = [one.message for attempt in desk.attempts() for one in desk.app.attempts.events(attempt.id)]
    assert events.count("mended") == 2


@by_one_door
def test_a_wrong_model_key_or_reason_is_one_sentence(run: Run, desk: Desk) -> None:
    with pytest.raises(UnknownTarget, match=r"called 'test.reviw' .did you mean 'test.review'"):
        desk.app.restart_models("test.reviw", reason="mended")
    with pytest.raises(ConfigurationError, match="model is an Asyncable"):
        desk.app.restart_models(Pair, reason="mended")
    with pytest.raises(InvalidArguments, match="'x' is no key of Review: it has the columns id"):
        desk.app.restart_models(Review, ["x"], reason="mended")
    with pytest.raises(ConfigurationError, match="say why"):
        desk.app.restart_models(Review, reason=" ")
    assert run("restart", "test.review", "--reason", "mended").code == 2
    assert run("restart", "test.review", "17").code == 2
    assert run("restart", "test.review", "x", "--reason", "mended").code == 2
    assert run("restart", "test.reviw", "17", "--reason", "mended").code == 1


@pytest.mark.parametrize("key", [("Paris, centre", 7), ("a\\b", 1)])
def test_a_key_of_several_columns_is_read_as_it_is_told(key: Any) -> None:
    columns = list(Pair.__table__.primary_key)
    assert key_meant(Pair, key_text(columns, key)) == key
