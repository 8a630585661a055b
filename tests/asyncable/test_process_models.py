"""The sweep of models that are their own jobs, on every database."""

import datetime as dt
import threading
from typing import Any

import pytest
from sqlalchemy import Engine, delete, func, insert, select
from sqlalchemy.orm import Session

from async_task import Attempt, ConfigurationError, ModelReport, ProcessReport, Succeeded
from async_task.asyncable import sweep as sweep_module
from async_task.asyncable.registration import register
from async_task.asyncable.sweep import required
from async_task.attempts.chain import Chain
from async_task.database.clock import clock_now
from conftest import by_one_door
from databases import explained, rows_read
from reviews import (
    HOUR,
    Appeal,
    Board,
    Desk,
    Form,
    LeasedReview,
    Letter,
    OldReview,
    Pair,
    Paper,
    Review,
    SessionReview,
    fill,
)

MINUTE = 60.0


def lose_attempts(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(delete(Attempt))


@pytest.mark.slow
def test_a_row_rests_an_interval_before_a_sweep_gives_it_a_job(desk: Desk, board: Board, engine: Engine) -> None:
    made = desk.submitted()
    lose_attempts(engine)
    desk.pass_by(3 * HOUR - MINUTE)
    assert desk.app.process_models() == ProcessReport((ModelReport("test.review"),))
    desk.pass_by(MINUTE)
    assert desk.app.process_models(dry_run=True) == ProcessReport((ModelReport("test.review", dispatched=1),))
    assert desk.attempts() == []
    assert desk.app.process_models() == ProcessReport((ModelReport("test.review", dispatched=1),))
    assert desk.app.process_models() == ProcessReport((ModelReport("test.review", open=1),))
    assert [type(one) for one in desk.go_on()] == [Succeeded]
    assert desk.status(made) == "processed"
    assert desk.app.process_models() == ProcessReport((ModelReport("test.review"),))


@pytest.mark.slow
def test_a_lost_or_ended_attempt_is_replaced_and_a_waiting_one_made_due(
    desk: Desk, board: Board, engine: Engine
) -> None:
    made = [desk.submitted() for _ in range(4)]
    desk.pass_by(3 * HOUR)
    at = desk.app.now() + dt.timedelta(days=2)
    with Session(engine) as session, session.begin():
        lost, failed, canceled, late = session.scalars(select(Attempt).order_by(Attempt.id))
        session.delete(lost)
        failed.fail(reason="by hand")
        canceled.cancel()
        late.reschedule(at=at)
    assert desk.app.process_models().dispatched == 4
    due = [one.is_due for one in desk.attempts()]
    assert due == [True] * 4
    until = {one.expires_at for one in desk.attempts()}
    assert until == {desk.row(one).last_submitted_at + dt.timedelta(days=4) for one in made}
    desk.go_on()
    assert len(board.asked) == len(desk.attempts()) == 4


@pytest.mark.slow
def test_an_attempt_that_is_made_due_keeps_the_count_of_its_errors(desk: Desk, board: Board, engine: Engine) -> None:
    board.will_raise(OSError("no"))
    desk.submitted()
    desk.go_on()
    desk.pass_by(3 * HOUR + 1)
    with Session(engine) as session, session.begin():
        attempt = session.query(Attempt).one()
        attempt.reschedule(at=attempt.due_at + dt.timedelta(hours=1))
        until = attempt.expires_at
    assert desk.app.process_models().dispatched == 1
    (attempt,) = desk.attempts()
    assert (attempt.is_due, attempt.num_errors, attempt.expires_at) == (True, 1, until)


@pytest.mark.slow
def test_the_oldest_come_first_and_the_limit_leaves_the_rest(desk: Desk, board: Board, engine: Engine) -> None:
    made = []
    for _ in range(5):
        made.append(desk.submitted())
        desk.pass_by(MINUTE)
    lose_attempts(engine)
    desk.pass_by(3 * HOUR)
    assert desk.app.process_models(2) == ProcessReport((ModelReport("test.review", dispatched=2, left=3),))
    desk.go_on()
    assert board.asked == [f"Review {one}" for one in made[:2]]
    assert desk.app.process_models(0) == ProcessReport((ModelReport("test.review", left=3),))
    with pytest.raises(ConfigurationError, match="limit is a whole number of at least 0"):
        desk.app.process_models(-1)


@pytest.mark.slow
def test_one_row_or_model_that_fails_stops_no_other(
    desk: Desk, board: Board, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    register(LeasedReview)
    register(OldReview)
    bad, good = desk.submitted(), desk.submitted()
    for model in (LeasedReview, OldReview):
        desk.submitted(model)
    lose_attempts(engine)
    for model in (Review, LeasedReview, OldReview):
        Desk(desk.app, engine, model).pass_by(3 * HOUR)
    dispatch, required_of = sweep_module.dispatch, sweep_module._required

    def refusing(session: Any, model: Any, key: Any, *given: Any) -> bool:
        if (model, key) == (Review, bad):
            raise OSError("no such row")
        return dispatch(session, model, key, *given)

    def missing(engine: Engine, model: Any, limit: int) -> Any:
        if model is LeasedReview:
            raise OSError("no such table")
        return required_of(engine, model, limit)

    def refusing_page(_: Any, session: Any, keys: Any, options: Any) -> Any:
        raise OSError("no such row")

    monkeypatch.setattr(Chain, "begin_all", refusing_page)
    monkeypatch.setattr(sweep_module, "dispatch", refusing)
    monkeypatch.setattr(sweep_module, "_required", missing)
    report = desk.app.process_models()
    assert report.models == (
        ModelReport("test.leased_review", errors=("OSError: no such table",)),
        ModelReport("test.old_review", dispatched=1),
        ModelReport("test.review", dispatched=1, errors=(f"{bad}: OSError: no such row",)),
    )
    assert "test.leased_review could not be swept: OSError: no such table" in caplog.text
    desk.go_on()
    assert f"Review {good}" in board.asked
    assert len(board.asked) == 2


@pytest.mark.slow
@by_one_door
def test_a_row_whose_second_attempt_is_due_takes_no_place_of_another(desk: Desk, board: Board, engine: Engine) -> None:
    first = desk.submitted()
    desk.go_on()
    desk.do(first, "restart")
    desk.pass_by(MINUTE)
    desk.submitted()
    with engine.begin() as connection:
        connection.execute(delete(Attempt).where(Attempt.idempotence_token == str(first + 1)))
    desk.pass_by(3 * HOUR)
    assert [one.status for one in desk.attempts()] == ["succeeded", "pending"]
    wanted = ProcessReport((ModelReport("test.review", dispatched=1, open=1),))
    assert desk.app.process_models(1, dry_run=True) == desk.app.process_models(1) == wanted
    assert len(desk.attempts()) == 3


@pytest.mark.long
@by_one_door
def test_two_sweeps_at_once_give_each_of_1000_rows_of_three_models_one_job(
    desk: Desk, board: Board, engine: Engine
) -> None:
    models = (Review, LeasedReview, SessionReview)
    for number, model in enumerate(models):
        register(model)
        count = 334 if number == 0 else 333
        at = {"submitted_at": clock_now(-4 * HOUR), "last_submitted_at": clock_now(-4 * HOUR)}
        with engine.begin() as connection:
            connection.execute(insert(model.__table__).values([at] * count))
    both = [threading.Thread(target=desk.app.process_models, args=(1_000,)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(desk.attempts()) == 1_000
    desk.app.run_batch()
    assert len(board.asked) == len(set(board.asked)) == 1_000
    with Session(engine) as session:
        for model in models:
            assert session.scalar(select(func.count()).where(model.is_submitted_not_processed)) == 0


@pytest.mark.slow
def test_a_row_that_is_processed_at_this_moment_is_not_taken_again(desk: Desk, board: Board, engine: Engine) -> None:
    register(LeasedReview)
    mine, reports = Desk(desk.app, engine, LeasedReview), []

    def sweep(row: Any) -> None:
        mine.change(row.id, attempted_at=desk.app.now() - dt.timedelta(hours=5))  # as if it had taken that long
        reports.append(threading.Thread(target=lambda: reports.append(desk.app.process_models())))
        reports[0].start()
        reports[0].join()

    board.does = sweep
    mine.submitted()
    mine.go_on()
    assert ModelReport("test.leased_review", open=1) in reports[1].models
    assert len(board.asked) == len(mine.attempts()) == 1


# Keys and classes


@pytest.mark.slow
def test_a_primary_key_of_several_columns_names_one_job(desk: Desk, board: Board, engine: Engine) -> None:
    register(Pair)
    mine = Desk(desk.app, engine, Pair)
    with Session(engine) as session, session.begin():
        for office in ("a/1", "a", "x" * 100):
            Pair(office=office, number=1).submit_for_processing(session)
    lose_attempts(engine)
    with engine.begin() as connection:
        connection.execute(Pair.__table__.update().values(last_submitted_at=clock_now(-4 * HOUR)))
    for _ in range(2):
        mine.app.process_models()
    mine.go_on()
    assert len(board.asked) == len(mine.attempts()) == 3
    assert mine.row(("a", 1)).path == "/jobs/test.review_pair/('a', 1)"


@pytest.mark.slow
def test_the_rows_of_a_subclass_have_its_own_job_alone(desk: Desk, board: Board, engine: Engine) -> None:
    """Also where the base has no identity, as Form."""
    for model in (Paper, Letter, Form, Appeal):
        register(model)
    desk.submitted(Paper)
    desk.submitted(Letter)
    desk.submitted(Appeal)
    lose_attempts(engine)
    for model in (Paper, Form):
        Desk(desk.app, engine, model).pass_by(3 * HOUR)
    found = {one.model: one.dispatched for one in desk.app.process_models().models}
    assert found == {"test.paper": 1, "test.letter": 1, "test.review": 0, "test.form": 0, "test.appeal": 1}
    desk.go_on()
    assert sorted(one.split()[0] for one in board.asked) == ["Appeal", "Letter", "Paper"]


# The plan


@pytest.mark.slow
@by_one_door
def test_a_sweep_walks_along_its_index_and_sorts_nothing(desk: Desk, engine: Engine) -> None:
    """Beside 32,768 rows that are processed and 2,048 that require it. (The plan beside a million rows is the same.)"""
    long_ago = {"submitted_at": clock_now(-30 * HOUR), "last_submitted_at": clock_now(-30 * HOUR)}
    with engine.begin() as connection:
        fill(connection, 15, long_ago | {"processed_at": clock_now()})
        fill(connection, 11, long_ago)
        if statement := {"postgresql": "ANALYZE reviews", "mysql": "ANALYZE TABLE reviews"}.get(engine.dialect.name):
            connection.exec_driver_sql(statement)
        plan = explained(connection, required(Review).limit(100))
        before = rows_read(connection) if engine.dialect.name == "mysql" else 0
        assert len(connection.execute(required(Review).limit(100)).all()) == 100
        read = rows_read(connection) - before if engine.dialect.name == "mysql" else 0
    assert "ix_reviews_asyncable" in plan
    assert not [word for word in ("Seq Scan", "SCAN", "Sort", "filesort", "TEMP B-TREE") if word in plan]
    assert read < 200
