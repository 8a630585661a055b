"""Models that are their own jobs, on every database: what is kept of the system that this is inherited from, and what
is mended."""

import asyncio
import contextlib
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, delete, event, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from async_task import (
    Again,
    AsyncTask,
    Attempt,
    ConfigurationError,
    Discard,
    Expired,
    InvalidArguments,
    InvalidState,
    NoTransaction,
    Retried,
    Status,
    Succeeded,
)
from async_task.asyncable.columns import columns_of
from async_task.asyncable.registration import register
from async_task.database.clock import instant_in
from conftest import by_one_door
from elsewhere import await_
from outbox import Client, calls
from reviews import (
    DAY,
    HOUR,
    SECRET,
    AsyncSessionReview,
    Board,
    CoroutineReview,
    Desk,
    LeasedReview,
    OldReview,
    Review,
    SessionReview,
)
from workers import working

MINUTE = 60.0


class Broken(Exception): ...


def of(desk: Desk, model: type[Any]) -> Desk:
    register(model)
    return Desk(desk.app, desk.engine, model)


# Kept


@pytest.mark.in_turns
@pytest.mark.parametrize("model", [Review, LeasedReview, CoroutineReview, SessionReview, OldReview])
def test_a_row_is_processed_after_the_commit_of_its_submission(desk: Desk, board: Board, model: type[Any]) -> None:
    mine = of(desk, model)
    made = mine.submitted()
    assert (board.asked, mine.status(made)) == ([], "submitted")
    assert [type(one) for one in mine.go_on()] == [Succeeded]
    row = mine.row(made)
    assert board.asked == [f"{model.__name__} {made}"]
    assert (row.asyncable_status, row.decision, row.error) == ("processed", "granted", None)
    assert None not in (row.submitted_at, row.last_submitted_at, row.attempted_at, row.processed_at)
    assert mine.go_on() == []


@pytest.mark.slow
@pytest.mark.parametrize("door", ["async"])
@pytest.mark.parametrize("model", [AsyncSessionReview, SessionReview])
def test_a_process_on_an_async_engine_takes_a_session_of_either_kind(
    desk: Desk, board: Board, model: type[Any]
) -> None:
    mine = of(desk, model)
    board.will_raise(Broken("not now"), None)
    made = mine.submitted()
    assert [type(one) for one in mine.go_on()] == [Retried]
    assert (mine.row(made).error, mine.row(made).decision) == ("Broken: not now", None)
    mine.pass_by(3 * HOUR)
    assert [type(one) for one in mine.go_on()] == [Succeeded]
    assert (mine.row(made).error, mine.row(made).decision) == (None, "granted")
    with Session(mine.engine) as session:
        assert session.scalars(select(Review.decision)).all() == ["by another"]


def test_nothing_is_submitted_if_the_transaction_of_the_caller_rolls_back(desk: Desk, engine: Engine) -> None:
    with Session(engine) as session:
        Review().submit_for_processing(session)
        session.rollback()
    assert desk.attempts() == []


@pytest.mark.slow
@pytest.mark.parametrize("model", [Review, LeasedReview, CoroutineReview])
def test_what_raises_leaves_the_attempt_the_error_and_nothing_of_its_writes(
    desk: Desk, board: Board, model: type[Any]
) -> None:
    mine = of(desk, model)
    board.will_raise(Broken(f"the {SECRET} is refused"), None)
    made = mine.submitted()
    (outcome,) = mine.go_on()
    assert isinstance(outcome, Retried)
    assert outcome.after == dt.timedelta(hours=3)
    row = mine.row(made)
    assert (row.asyncable_status, row.decision) == ("attempted", None)
    assert (row.error, row.sanitized_error) == ("Broken: the [hidden] is refused", "Broken")
    assert row.attempted_at is not None
    (attempt,) = mine.attempts()
    assert SECRET not in str(attempt.last_error)
    mine.pass_by(3 * HOUR)
    mine.go_on()
    assert (mine.status(made), mine.row(made).error) == ("processed", None)


@pytest.mark.long
def test_a_row_retries_every_interval_until_its_window_is_over_and_its_attempt_then_expires(
    desk: Desk, board: Board
) -> None:
    board.will_raise(Broken("never"))
    made, outcomes = desk.submitted(), []
    while not outcomes or isinstance(outcomes[-1], Retried):
        outcomes += desk.go_on()
        desk.pass_by(3 * HOUR)
    assert len(outcomes) == 4 * 24 / 3
    assert isinstance(outcomes[-1], Expired)
    desk.pass_by(3 * HOUR)
    assert desk.row(made).is_expired_without_processing
    assert desk.app.process_models().dispatched == 0
    (attempt,) = desk.attempts()
    assert (attempt.status, attempt.num_errors) == (Status.EXPIRED, 32)


@pytest.mark.slow
@pytest.mark.parametrize("model", [Review, OldReview])
def test_a_delay_makes_it_due_and_submitted_when_it_has_passed(desk: Desk, board: Board, model: type[Any]) -> None:
    mine = of(desk, model)
    at = mine.app.now() + dt.timedelta(hours=1)
    later, exact = mine.submitted(delay=dt.timedelta(hours=21)), mine.submitted(delay=at)
    first, second = mine.attempts()
    assert abs((first.due_at - mine.app.now()).total_seconds() - 21 * HOUR) < MINUTE
    assert second.due_at == at
    assert mine.go_on() == []
    with Session(mine.engine) as session:
        for scope in (model.processable, model.requires_processing, model.potentially_stuck):
            assert session.scalars(scope()).all() == []
        assert len(session.scalars(model.unexpired()).all()) == 2
    mine.pass_by(1.1 * HOUR)
    mine.go_on()
    assert (mine.status(exact), mine.status(later)) == ("processed", "submitted")


@pytest.mark.slow
@by_one_door
@pytest.mark.parametrize("model", [Review, OldReview])
def test_a_delay_until_an_instant_of_the_past_is_none(desk: Desk, board: Board, model: type[Any]) -> None:
    mine = of(desk, model)
    made = mine.submitted(delay=mine.app.now() - dt.timedelta(days=400))
    assert abs(mine.row(made).submitted_at - mine.row(made).last_submitted_at) < dt.timedelta(seconds=1)
    mine.go_on()
    assert mine.status(made) == "processed"


# Mended


@pytest.mark.slow
def test_a_restart_enqueues_the_job_in_the_same_transaction_also_when_it_has_expired(
    desk: Desk, board: Board, engine: Engine
) -> None:
    board.will_raise(Broken("never"))
    made = desk.submitted()
    desk.go_on()
    desk.pass_by(5 * DAY)
    desk.go_on()
    first = desk.row(made).submitted_at
    with Session(engine) as session:
        session.get_one(Review, made).restart()
        session.rollback()
    assert desk.go_on() == []
    desk.do(made, "restart")
    row = desk.row(made)
    assert (row.submitted_at, row.attempted_at, row.error, row.asyncable_status) == (first, None, None, "submitted")
    (attempt,) = desk.attempts()
    assert (attempt.status, attempt.num_errors) == (Status.PENDING, 0)
    assert attempt.expires_at == row.last_submitted_at + dt.timedelta(days=4)
    assert [type(one) for one in desk.go_on()] == [Retried]


@pytest.mark.slow
def test_a_processed_or_canceled_row_can_be_restarted(desk: Desk, board: Board) -> None:
    made = desk.submitted()
    for number in (1, 2, 3):
        desk.go_on()
        assert (desk.status(made), len(board.asked)) == ("processed", number)
        desk.do(made, "restart", reason="the board has moved")
    desk.do(made, "cancel")
    assert desk.go_on() == []
    desk.do(made, "restart")
    desk.go_on()
    assert (desk.status(made), len(board.asked)) == ("processed", 4)
    assert desk.row(made).canceled_at is None


@pytest.mark.slow
@by_one_door
@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.parametrize("restarts", [0, 2])
def test_a_restart_enqueues_also_if_the_attempt_has_succeeded_since_its_transaction_first_read(
    desk: Desk, board: Board, engine: Engine, restarts: int
) -> None:
    made = desk.submitted()
    with Session(engine) as session, session.begin():
        row = session.get_one(Review, made)  # MySQL goes on to see the attempt as it is now
        assert session.query(Attempt).one().status is Status.PENDING
        desk.go_on()
        for _ in range(restarts):
            desk.do(made, "restart")
            desk.go_on()
        row.restart()
    desk.go_on()
    assert (desk.status(made), len(board.asked), len(desk.attempts())) == ("processed", restarts + 2, restarts + 2)


@pytest.mark.slow
def test_a_waiting_retry_is_hurried_by_a_restart(desk: Desk, board: Board) -> None:
    board.will_raise(Broken("once"), None)
    made = desk.submitted()
    desk.go_on()
    desk.do(made, "restart")
    desk.go_on()
    assert (desk.status(made), len(desk.attempts())) == ("processed", 1)


def check_restart_meanwhile(mine: Desk, board: Board, error: Exception | None) -> None:
    def restart_once(row: Any) -> None:
        if len(board.asked) == 1:
            mine.do(row.id, "restart")
            if error is not None:
                raise error

    board.does = restart_once
    made = mine.submitted()
    mine.go_on()
    mine.pass_by(1)
    mine.go_on()
    assert (mine.status(made), len(board.asked), mine.row(made).error) == ("processed", 2, None)
    assert len(mine.attempts()) == 1


def check_cancel_meanwhile(mine: Desk, board: Board, error: Exception | None) -> None:
    def cancel(row: Any) -> None:
        assert mine.do(row.id, "cancel") is True
        if error is not None:
            raise error

    board.does = cancel
    made = mine.submitted()
    mine.go_on()
    mine.pass_by(3 * HOUR)
    mine.go_on()
    row = mine.row(made)
    assert (row.asyncable_status, row.processed_at, row.error, len(board.asked)) == ("canceled", None, None, 1)


@pytest.mark.slow
@pytest.mark.parametrize("error", [None, Broken("late"), Discard("no")])
def test_a_row_that_is_restarted_while_it_is_processed_is_processed_once_more(
    desk: Desk, board: Board, error: Exception | None
) -> None:
    check_restart_meanwhile(of(desk, LeasedReview), board, error)


@pytest.mark.slow
@by_one_door
@pytest.mark.parametrize("end", [None, Broken, Again])
def test_a_row_that_is_restarted_at_the_end_of_its_window_has_a_new_one(
    desk: Desk, board: Board, end: type[Any] | None
) -> None:
    mine = of(desk, LeasedReview)

    def restart_once(row: Any) -> Any:
        if len(board.asked) > 1:
            return None
        mine.do(row.id, "restart")
        if end is Broken:
            raise Broken("late")
        return None if end is None else Again(after=HOUR)

    board.does = restart_once
    made = mine.submitted()
    mine.pass_by(4 * DAY - MINUTE)
    (attempt,) = mine.attempts()
    assert isinstance(mine.app.perform(attempt.id), Retried)
    (attempt,) = mine.attempts()
    assert (attempt.is_due, attempt.expires_at) == (True, mine.row(made).last_submitted_at + dt.timedelta(days=4))
    mine.go_on()
    assert (mine.status(made), len(mine.attempts())) == ("processed", 1)


@pytest.mark.slow
@pytest.mark.parametrize("error", [None, Broken("late")])
def test_a_row_that_is_canceled_while_it_is_processed_stays_canceled(
    desk: Desk, board: Board, error: Exception | None
) -> None:
    check_cancel_meanwhile(of(desk, LeasedReview), board, error)


@pytest.mark.in_turns
@by_one_door
@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.parametrize("check", [check_restart_meanwhile, check_cancel_meanwhile])
@pytest.mark.parametrize("error", [None, Broken("late")])
def test_nobody_waits_behind_a_transaction_in_which_a_row_is_processed(
    desk: Desk, board: Board, error: Exception | None, check: Callable[..., None]
) -> None:
    check(desk, board, error)


@pytest.mark.slow
def test_attempted_is_committed_before_the_work_and_survives_its_rollback(
    desk: Desk, board: Board, engine: Engine
) -> None:
    seen: list[Any] = []

    def look(row: Any) -> None:
        with engine.connect() as connection:
            seen.append(connection.scalar(select(Review.attempted_at).where(Review.id == row.id)))
        raise Broken("now")

    board.does = look
    made = desk.submitted()
    desk.go_on()
    assert seen == [desk.row(made).attempted_at]
    assert None not in seen


@pytest.mark.slow
@pytest.mark.parametrize("model", [Review, CoroutineReview])
def test_what_a_process_writes_commits_with_its_success_alone(desk: Desk, board: Board, model: type[Any]) -> None:
    mine = of(desk, model)

    def call(row: Any) -> None:
        Attempt.call(Client.fulfill, "token", order_number=len(board.asked))
        if len(board.asked) == 1:
            raise Broken("after the call")

    board.does = call
    mine.submitted()
    mine.go_on()
    assert len(mine.attempts()) == 1
    mine.pass_by(3 * HOUR)
    mine.go_on()
    assert calls == [("token", 2)]


def test_what_a_process_does_to_the_six_columns_is_not_kept(desk: Desk, board: Board) -> None:
    mine = of(desk, LeasedReview)

    def forge(row: Any) -> None:
        row.error, row.canceled_at, row.submitted_at = "forged", mine.app.now(), None

    board.does = forge
    made = mine.submitted()
    mine.go_on()
    row = mine.row(made)
    assert (row.asyncable_status, row.error, row.canceled_at) == ("processed", None, None)
    assert row.submitted_at is not None


@pytest.mark.slow
def test_a_row_that_needs_no_work_any_more_is_not_processed(desk: Desk, board: Board, engine: Engine) -> None:
    gone, processed, canceled, expired = (desk.submitted() for _ in range(4))
    desk.do(processed, "processed")
    desk.change(canceled, canceled_at=desk.app.now())
    desk.change(expired, last_submitted_at=desk.app.now() - dt.timedelta(days=5))
    with engine.begin() as connection:
        connection.execute(delete(Review).where(Review.id == gone))
    desk.go_on()
    assert board.asked == []
    assert [one.status for one in desk.attempts()] == ["failed", "succeeded", "succeeded", "failed"]
    assert f"there is no Review {gone} any more" in str(desk.attempts()[0].last_error)
    assert f"Review {expired} is expired" in str(desk.attempts()[3].last_error)
    assert desk.row(expired).error is None


def test_a_row_that_was_put_off_by_hand_waits_and_no_error_is_counted(desk: Desk, board: Board) -> None:
    made = desk.submitted()
    desk.change(made, last_submitted_at=desk.app.now() + dt.timedelta(hours=1))
    (outcome,) = desk.go_on()
    assert isinstance(outcome, Retried)
    assert abs(outcome.after.total_seconds() - HOUR) < MINUTE
    assert (board.asked, desk.row(made).attempted_at) == ([], None)


@pytest.mark.slow
def test_a_process_that_is_not_finished_is_called_again(desk: Desk, board: Board) -> None:
    board.does = lambda row: Again(after=60) if len(board.asked) == 1 else None
    made = desk.submitted()
    (outcome,) = desk.go_on()
    assert (outcome, desk.status(made), desk.row(made).decision) == (
        Retried(outcome.attempt_id, dt.timedelta(seconds=60)), "attempted", "granted",
    )  # fmt: skip
    desk.pass_by(60)
    desk.go_on()
    assert desk.status(made) == "processed"


class Awaitable:
    def __await__(self) -> Any:
        raise AssertionError("nobody awaits it")


@by_one_door
@pytest.mark.in_turns
@pytest.mark.parametrize("model", [Review, LeasedReview, CoroutineReview])
@pytest.mark.parametrize("made_answer", [lambda: (one for one in "x"), Awaitable])
def test_an_answer_of_which_nothing_has_run_is_an_error(
    desk: Desk, board: Board, model: type[Any], made_answer: Callable[[], Any]
) -> None:
    mine = of(desk, model)
    board.does = lambda row: made_answer()
    made = mine.submitted()
    (outcome,) = mine.go_on()
    assert isinstance(outcome, Retried)
    row, name = mine.row(made), type(made_answer()).__name__
    assert row.error == f"TypeError: process() returned a {name}, which was never run"
    assert (row.asyncable_status, row.decision) == ("attempted", None)


# Verbs


@pytest.mark.in_turns
@by_one_door
@pytest.mark.parametrize(
    ("values", "verb", "state"),
    [
        ({"submitted_at": 0}, "submit_for_processing", "submitted"),
        ({"processed_at": 0}, "submit_for_processing", "processed"),
        ({"canceled_at": 0}, "submit_for_processing", "canceled"),
        ({"submitted_at": 0, "processed_at": 0}, "processed", "processed"),
        ({"submitted_at": 0, "canceled_at": 0}, "processed", "canceled"),
        ({"submitted_at": 0, "processed_at": 0}, "attempted", "processed"),
        ({"canceled_at": 0}, "attempted", "canceled"),
        ({}, "restart", "not_yet_submitted"),
        ({"attempted_at": 0}, "restart", "attempted"),
    ],
)
def test_a_verb_that_is_not_legal_names_the_state(desk: Desk, values: dict[str, Any], verb: str, state: str) -> None:
    made = desk.by_hand(**dict.fromkeys(values, desk.app.now()))
    before = desk.row(made).__dict__
    with pytest.raises(InvalidState, match=rf"{verb}: Review {made} is {state}$"):
        desk.do(made, verb)
    after = desk.row(made).__dict__
    assert {k: v for k, v in before.items() if k[0] != "_"} == {k: v for k, v in after.items() if k[0] != "_"}
    assert desk.attempts() == []


@by_one_door
def test_each_verb_changes_what_it_says(desk: Desk) -> None:
    made = desk.by_hand()
    desk.do(made, "attempted")
    assert (desk.status(made), desk.row(made).submitted_at) == ("attempted", None)
    desk.do(made, "update_error", "Broken: \0")
    assert desk.row(made).error == "Broken: \\0"
    desk.do(made, "clear_error")
    assert desk.row(made).error is None
    desk.do(made, "update_error", "Broken: again")
    desk.do(made, "processed")
    assert (desk.status(made), desk.row(made).error) == ("processed", None)
    assert desk.do(made, "cancel") is False
    assert desk.row(made).canceled_at is None


@by_one_door
def test_a_verb_says_that_a_row_is_gone(desk: Desk, engine: Engine) -> None:
    made = desk.by_hand()
    with Session(engine) as session:
        row = session.get_one(Review, made)
        session.execute(delete(Review).where(Review.id == made).execution_options(synchronize_session=False))
        for verb in (row.cancel, row.attempted, row.clear_error):
            with pytest.raises(InvalidState, match=rf"{verb.__name__}: Review {made} is gone"):
                verb()


@by_one_door
def test_cancel_cancels_the_attempt_that_waits(desk: Desk, board: Board) -> None:
    made = desk.submitted()
    assert desk.do(made, "cancel", reason="withdrawn") is True
    assert desk.do(made, "cancel") is False
    assert [(one.status, one.last_error) for one in desk.attempts()] == [(Status.CANCELED, "withdrawn")]
    assert (desk.status(made), board.asked) == ("canceled", [])


@by_one_door
def test_verbs_refuse_what_makes_no_sense(desk: Desk) -> None:
    with pytest.raises(NoTransaction, match="this Review is attached to no session"):
        Review().submit_for_processing()
    made = desk.by_hand()
    for delay in (-1, "1h", dt.datetime(2026, 1, 1), dt.datetime(9999, 12, 30, tzinfo=dt.UTC)):
        with pytest.raises(InvalidArguments, match="delay"):
            desk.do(made, "submit_for_processing", delay=delay)
    assert desk.status(made) == "not_yet_submitted"
    for given in ([""], []):
        with pytest.raises(InvalidArguments, match="update_error: takes a text"):
            desk.do(made, "update_error", *given)
    with Session(desk.engine) as one, Session(desk.engine) as other:
        row = one.get_one(Review, made)
        with pytest.raises(InvalidState, match="attached to another session"):
            row.submit_for_processing(other)


@pytest.mark.parametrize("door", ["async"])
def test_verbs_run_in_an_async_session(desk: Desk, board: Board, async_engine_url: str) -> None:
    async def submit() -> int:
        engine = create_async_engine(async_engine_url)
        async with AsyncSession(engine, expire_on_commit=False) as session, session.begin():
            row = Review()
            await session.run_sync(row.submit_for_processing)
            await session.run_sync(row.update_error, "E")
            await session.run_sync(row.clear_error)
            made = row.id
        await engine.dispose()
        return made

    made = asyncio.run(submit())
    desk.go_on()
    assert desk.status(made) == "processed"


@pytest.mark.parametrize("door", ["async"])
def test_a_verb_outside_of_run_sync_says_how_an_async_session_is_awaited(
    desk: Desk, board: Board, async_engine_url: str
) -> None:
    async def submit() -> None:
        engine = create_async_engine(async_engine_url)
        async with AsyncSession(engine) as session, session.begin():
            row = Review()
            session.add(row)
            with pytest.raises(ConfigurationError, match="AsyncSession must be awaited"):
                row.submit_for_processing()
        await engine.dispose()

    asyncio.run(submit())


@pytest.mark.slow
@pytest.mark.parametrize("is_new", [True, False])
def test_a_row_can_be_submitted_again_after_its_savepoint_was_rolled_back(
    desk: Desk, engine: Engine, is_new: bool
) -> None:
    with Session(engine, expire_on_commit=False) as session, session.begin():
        row = Review()
        session.execute(select(1))
        if not is_new:
            session.add(row)
            session.flush()
        with contextlib.suppress(Broken), session.begin_nested():
            row.submit_for_processing(session)
            raise Broken
        assert not row.is_submitted
        row.submit_for_processing(session)
        assert row.is_submitted
    assert [desk.status(row.id), len(desk.attempts())] == ["submitted", 1]


def test_a_new_row_can_be_submitted_again_after_a_rollback(desk: Desk, engine: Engine) -> None:
    with Session(engine) as session:
        row = Review()
        row.submit_for_processing(session)
        session.rollback()
        assert not row.is_submitted
        row.submit_for_processing(session)
        session.commit()
        assert desk.status(row.id) == "submitted"


@pytest.mark.slow
def test_an_error_is_cut_to_the_length_of_its_column(desk: Desk, board: Board) -> None:
    mine = of(desk, OldReview)
    board.will_raise(Broken("x" * 100))
    made = mine.submitted()
    mine.go_on()
    assert mine.row(made).error == f"Broken: {'x' * 28} ..."


@pytest.mark.slow
def test_a_worker_processes_a_row_when_it_is_submitted(desk: Desk, board: Board) -> None:
    with working(desk.app, poll=60):
        made = desk.submitted()
        await_(lambda: desk.status(made) == "processed", "the row is processed")


@by_one_door
@pytest.mark.only_on("postgresql", "mysql")
def test_columns_without_a_time_zone_hold_utc_whatever_the_session_says(
    desk: Desk, board: Board, engine: Engine
) -> None:
    register(OldReview)
    abroad = create_engine(engine.url)
    zone = {"postgresql": "SET TIME ZONE 'Asia/Kolkata'", "mysql": "SET time_zone = '+05:30'"}[engine.dialect.name]

    @event.listens_for(abroad, "connect")
    def travel(driver: Any, _: Any) -> None:
        cursor = driver.cursor()
        cursor.execute(zone)
        driver.commit()

    mine = Desk(AsyncTask(abroad), abroad, OldReview)
    at = mine.app.now() + dt.timedelta(hours=1)
    now, later = mine.submitted(), mine.submitted(delay=at)
    assert [one.due_at == at for one in mine.attempts()] == [False, True]
    mine.go_on()
    assert (mine.status(now), mine.status(later)) == ("processed", "submitted")
    with Session(engine) as session:
        columns = columns_of(OldReview)
        times = [instant_in(columns[name]) for name in ("submitted_at", "last_submitted_at", "processed_at")]
        for seen in session.execute(select(*times).where(OldReview.id == now)).one():
            assert abs((seen - mine.app.now()).total_seconds()) < MINUTE
    mine.app.close()
    abroad.dispose()
