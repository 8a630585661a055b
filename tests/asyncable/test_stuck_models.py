"""Rows of models that are their own jobs and are stuck: how they are told, and restarted."""

import datetime as dt
import shlex
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, Numeric, delete, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from async_task import (
    Attempt,
    ConfigurationError,
    InvalidArguments,
    RestartReport,
    StuckGroup,
    UnknownTarget,
    events_of,
)
from async_task.asyncable import stuck as stuck_module
from async_task.asyncable.registration import register
from async_task.asyncable.stuck import StuckModels
from async_task.attempts.chain import key_of, token_of
from async_task.reading.row_keys import key_in_full, key_meant
from async_task.schema.jobs import key_text
from conftest import by_one_door
from databases import rows_read
from mess import worker_runs
from outbox import more_metadata
from reviews import HOUR, Board, Desk, LeasedReview, Pair, Review
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


@pytest.mark.slow
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
    assert found["window_over"].words == "1 row of test.review was not processed within 4 days"
    assert never.since is None


@pytest.mark.slow
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


@pytest.mark.slow
@by_one_door
def test_a_row_whose_second_attempt_waits_has_a_job(desk: Desk, board: Board, engine: Engine) -> None:
    worker_runs(engine)
    made = desk.submitted()
    desk.go_on()
    desk.do(made, "restart")
    desk.pass_by(3 * HOUR)
    assert [one.status for one in desk.attempts()] == ["succeeded", "pending"]
    assert "no_job" not in stuck(desk)


@pytest.mark.slow
@by_one_door
def test_a_class_whose_table_is_missing_hides_no_other(
    desk: Desk, mess: dict[str, int], run: Run, engine: Engine
) -> None:
    register(LeasedReview)  # it is read before the other one
    table = more_metadata.tables["leased_reviews"]
    table.drop(engine)
    try:
        report = desk.app.attempts.stuck()
        said = run("stuck", "--cause", "paused")
    finally:
        table.create(engine)
    assert {one.cause for one in report.groups} == {"window_over", "no_job", "not_submitted"}
    assert not report.is_complete
    (words,) = report.unread
    assert words.startswith("test.leased_review could not be looked at: ")
    assert (said.code, said.err) == (1, f"Nothing is stuck. Not everything was looked at.\n{words}\n")


@pytest.mark.slow
@by_one_door
def test_what_is_not_looked_at_is_said_and_many_expired_rows_hide_no_other(
    desk: Desk, mess: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stuck_module, "MOST_COUNTED", 2)
    desk.by_hand(error="Broken: order 8")
    assert {cause: one.is_counted for cause, one in stuck(desk).items()} == {
        "window_over": True, "no_job": True, "not_submitted": False,
    }  # fmt: skip
    monkeypatch.setattr(stuck_module, "MOST_COUNTED", 1)
    report = desk.app.attempts.stuck()
    assert [one.cause for one in report.groups] == ["window_over", "no_job", "not_submitted"]
    assert not report.is_complete


@by_one_door
@pytest.mark.only_on("mysql")
def test_rows_that_are_done_are_not_read(desk: Desk, engine: Engine) -> None:
    now = desk.app.now()
    rows = [{"submitted_at": now, "last_submitted_at": now, "processed_at": now} for _ in range(5_000)]
    with Session(engine) as session, session.begin():
        session.execute(insert(Review), rows)
        connection = session.connection()
        before = rows_read(connection)
        assert StuckModels([Review]).stuck(session, 10) == ([], True, [])
        assert rows_read(connection) - before < 100


@pytest.mark.slow
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
    assert run("restart", "test.reviw", "17", "--reason", "mended").code == 78
    with pytest.raises(ConfigurationError, match="keys takes a list"):
        desk.app.restart_models(Review, "17", reason="mended")


@by_one_door
def test_what_stops_one_row_stops_no_other(desk: Desk, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = desk.by_hand(), desk.by_hand()
    submit = Review.submit_for_processing

    def refuse(row: Any, *given: Any, **options: Any) -> None:
        if row.id == bad:
            raise OSError("not today")
        submit(row, *given, **options)

    monkeypatch.setattr(Review, "submit_for_processing", refuse)
    report = desk.app.restart_models(Review, [bad, good], reason="by hand")
    assert report == RestartReport((str(good),), {str(bad): "OSError: not today"})
    with Session(desk.engine) as session:
        (one,) = events_of(session, session.get_one(Review, good))
    assert (one.kind, one.message, one.after) == ("submit_for_processing", "by hand", {"status": "submitted"})


@pytest.mark.parametrize("key", [("Paris, centre", 7), ("a\\b", 1)])
def test_a_key_of_several_columns_is_read_as_it_is_told(key: Any) -> None:
    columns = list(Pair.__table__.primary_key)
    assert key_meant(Pair, key_text(columns, key)) == key_meant(Pair, key) == key


class Base(DeclarativeBase): ...


class Dated(Base):
    __tablename__ = "dated"
    on: Mapped[dt.date] = mapped_column(primary_key=True)


class Flagged(Base):
    __tablename__ = "flagged"
    is_on: Mapped[bool] = mapped_column(primary_key=True)


class Priced(Base):
    __tablename__ = "priced"
    price: Mapped[Decimal] = mapped_column(primary_key=True)


class Fee(Base):
    __tablename__ = "fees"
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2), primary_key=True)


class Hashed(Base):
    __tablename__ = "hashed"
    digest: Mapped[bytes] = mapped_column(primary_key=True)
    weight: Mapped[float] = mapped_column(primary_key=True)


@pytest.mark.parametrize(("model", "key"), [(Priced, Decimal("1.50")), (Hashed, (b"a,\\'\0\"", 0.1))])
def test_a_key_of_numbers_or_bytes_is_read_as_it_is_told(model: type[Any], key: Any) -> None:
    assert key_meant(model, key_in_full(model, key)) == key_meant(model, key) == key


@pytest.mark.parametrize("given", [Decimal("1.5"), Decimal("1.500"), Decimal("1.50"), Decimal("1.495")])
def test_a_row_has_one_token_before_and_after_it_is_read(given: Decimal) -> None:
    assert token_of(key_of(Fee(price=given))) == "1.50"
    assert token_of(key_of(Fee(price=2))) == "2.00"  # type: ignore[arg-type]


def test_a_text_that_cannot_be_read_for_sure_is_no_key() -> None:
    assert key_meant(Dated, "2026-11-29") == dt.date(2026, 11, 29)
    given = [(Priced, one) for one in ("x", "NaN", "sNaN", "1E+999", Decimal("NaN"))]
    given += [(Hashed, f"{one},1") for one in ("7", "b'x", "(" * 500)]
    given += [(Dated, "today"), (Flagged, "False"), (Review, "9" * 25), (Review, 10**25), (Review, None)]
    for model, key in [*given, (Review, (1, 2)), (Review, ""), (Pair, "Paris"), (Pair, ("Paris",)), (Pair, 7)]:
        with pytest.raises(InvalidArguments, match="is no key of"):
            key_meant(model, key)
