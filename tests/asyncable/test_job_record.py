"""Rows that are their own jobs have notes, messages to their user, and the record of what people did with them."""

import asyncio
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, delete, event, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Mapped, Session, joinedload, mapped_column, selectinload

from async_task import (
    Again,
    Asyncable,
    AsyncTask,
    Attempt,
    ConfigurationError,
    InvalidArguments,
    InvalidState,
    Processing,
    Succeeded,
    acting,
    add_note,
    events_of,
    notes_of,
)
from async_task.asyncable.registration import register
from async_task.asyncable.target import RowProcessor
from async_task.attempts.messages import set_message_hook
from async_task.database.lanes import Lane
from async_task.schema.columns import Identifier
from async_task.schema.tables import JobEvent, table_of
from async_task.targets import registry
from async_task.wakeup.after_commit import run_committed
from clockwork import let_pass
from conftest import by_one_door
from elsewhere import await_
from outbox import application
from reviews import (
    DAY,
    HOUR,
    SECRET,
    AsyncSessionReview,
    Base,
    Board,
    CoroutineReview,
    Desk,
    LeasedReview,
    Letter,
    OldReview,
    Pair,
    Paper,
    Review,
    SessionReview,
)
from workers import working

_others = registry.registered_targets()


class Upload(Asyncable, Base):
    """It has a UUID for its key."""

    __tablename__ = "recorded_uploads"
    processing = Processing(name="test.recorded_upload")
    id: Mapped[Any] = mapped_column(Identifier(), primary_key=True)

    def process(self) -> None: ...


class Photo(Paper):
    """It is in the table of another class."""

    __mapper_args__ = {"polymorphic_identity": "photo"}  # noqa: RUF012
    processing = Processing(name="test.recorded_photo")


registry._allowed = registry.AllowList(_others)  # as in reviews.py

Heard = list[tuple[Any, str, str]]
KEYS: dict[type[Any], Any] = {
    Pair: ({"office": "a,b\\", "number": 1}, {"office": "a", "number": 1}),
    Upload: ({"id": uuid.UUID(int=1)}, {"id": uuid.UUID(int=2)}),
}
KINDS = (Review, OldReview, Letter, Photo, Pair, Upload)


class Broken(Exception): ...


def texts_of(notes: Any) -> list[tuple[str, str]]:
    return [(one.author, one.text) for one in notes]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
    """What the hook was told. "ada" is the user of every row, and "bert" of every attempt."""
    monkeypatch.setattr(Asyncable, "asyncable_user", "ada")
    monkeypatch.setattr(Attempt, "message_user", lambda self: "bert")
    yield []
    set_message_hook(table_of(Attempt), None)


@pytest.fixture
def telling(engine: Engine, door: str, async_engine_url: str, heard: Heard, desk: Desk) -> Iterator[AsyncTask]:
    """An application with this hook."""

    def told(user: Any, kind: str, text: str) -> None:
        with Session(engine) as session:  # what it is about is committed
            assert session.scalars(select(JobEvent)).all()
        heard.append((user, str(kind), text))

    made = application(engine, door, async_engine_url, on_message=told)
    desk.app = made
    yield made
    made.close()


def of(desk: Desk, model: type[Any]) -> Desk:
    register(model)
    return Desk(desk.app, desk.engine, model)


def age(desk: Desk, seconds: float) -> None:
    """Let time pass, also for events."""
    let_pass(desk.engine, seconds, also=(desk.model, JobEvent))


def kinds(heard: Heard) -> list[str]:
    return [kind for _, kind, _ in heard]


def history(desk: Desk, made: Any) -> list[Any]:
    with Session(desk.engine) as session:
        return list(events_of(session, session.get_one(desk.model, made)))


# Notes


@pytest.mark.in_turns
@by_one_door
@pytest.mark.parametrize("model", KINDS)
def test_rows_have_notes_that_survive_restart_and_their_attempt(desk: Desk, model: type[Any]) -> None:
    mine = of(desk, model)
    with acting("anna"), Session(mine.engine) as session, session.begin():
        row, other = (model(**values) for values in KEYS.get(model, ({}, {})))
        for one in (row, other):
            one.submit_for_processing(session)
        add_note(session, row, "first")
        add_note(session, row, "**second**")
        add_note(session, other, "of the other")
        row.restart(session)
        session.execute(delete(Attempt))
        session.expunge_all()
    wanted = [("anna", "**second**"), ("anna", "first")]
    with Session(mine.engine) as session:
        assert texts_of(notes_of(session, row)) == wanted
        for loading in (None, selectinload, joinedload):
            session.expire_all()
            options = [] if loading is None else [loading(model.job_notes)]
            found = {
                len(one.job_notes): texts_of(one.job_notes)
                for one in session.scalars(select(model).options(*options)).unique()
            }
            assert found == {2: wanted, 1: [("anna", "of the other")]}


@pytest.mark.slow
def test_a_row_is_noted_and_its_events_are_read_on_an_async_session(desk: Desk, async_engine_url: str) -> None:
    made = desk.submitted()

    async def note() -> Any:
        own = create_async_engine(async_engine_url, poolclass=NullPool)
        async with AsyncSession(own) as session, session.begin():
            row = await session.get_one(Review, made, options=[selectinload(Review.job_notes)])
            with acting("anna"):
                await session.run_sync(add_note, row, "one")
                await session.run_sync(row.restart, reason="again")
            await session.refresh(row, ["job_notes"])
            found = await session.run_sync(events_of, row)
            notes = texts_of(row.job_notes)
        await own.dispose()
        return notes, [(one.kind, one.actor, one.message) for one in found]

    assert asyncio.run(note()) == ([("anna", "one")], [("note", "anna", "one"), ("restart", "anna", "again")])


# Messages


@pytest.mark.in_turns
@pytest.mark.parametrize("model", [Review, LeasedReview, CoroutineReview, SessionReview, OldReview])
def test_a_row_that_fails_for_a_day_is_told_once_a_submission_and_its_success_too(
    telling: AsyncTask, desk: Desk, board: Board, heard: Heard, model: type[Any]
) -> None:
    mine = of(desk, model)
    board.will_raise(Broken(f"the {SECRET} is refused"))
    made = mine.submitted()
    label = f"{model.__name__} {made}"
    for seconds, told in ((0, []), (23.5 * HOUR, []), (3 * HOUR, ["failing"]), (3 * HOUR, ["failing"])):
        age(mine, seconds)
        assert mine.go_on()
        assert kinds(heard) == told
    board.does = lambda row: Again(after=3 * HOUR)
    age(mine, 3 * HOUR)
    mine.go_on()
    assert kinds(heard) == ["failing"]
    mine.do(made, "restart")  # another submission: nothing was said about it
    board.will_raise(None)
    mine.go_on()
    board.will_raise(Broken("no"))
    mine.do(made, "restart")
    age(mine, DAY)
    mine.go_on()
    board.will_raise(None)
    age(mine, 3 * HOUR)
    assert [type(one) for one in mine.go_on()] == [Succeeded]
    failing = ("ada", "failing", f"{label} has not succeeded for 24 hours, and is failing.")
    assert heard == [failing, failing, ("ada", "recovered", f"{label} was failing, and has succeeded now.")]
    told = [(one.kind, one.message) for one in history(mine, made) if one.kind != "restart"]
    assert told == [("message", "failing"), ("message", "failing"), ("message", "recovered")]


@pytest.mark.slow
@pytest.mark.parametrize("door", ["async"])
def test_an_async_process_tells_too(telling: AsyncTask, desk: Desk, board: Board, heard: Heard) -> None:
    mine = of(desk, AsyncSessionReview)
    board.will_raise(Broken("no"), None)
    mine.submitted()
    age(mine, DAY)
    mine.go_on()
    age(mine, 3 * HOUR)
    mine.go_on()
    assert kinds(heard) == ["failing", "recovered"]


@by_one_door
def test_a_note_and_a_cancel_are_told_to_the_user_of_the_row_alone(
    telling: AsyncTask, desk: Desk, heard: Heard
) -> None:
    made = desk.submitted()
    with acting("anna"), Session(desk.engine) as session:
        row = session.get_one(Review, made)
        row.cancel(session)
        session.rollback()
        add_note(session, row, "secret")
        assert row.cancel(session, reason="secret")
        assert not row.cancel(session)
        assert heard == []
        session.commit()
    note, canceled = f"anna added a note to Review {made}.", f"Review {made} was canceled by anna."
    assert heard == [("ada", "note_added", note), ("ada", "canceled", canceled)]
    other = desk.submitted()
    age(desk, DAY)
    desk.do(other, "update_error", "Broken: no")
    desk.do(other, "processed")  # by hand, and nothing was said before
    assert len(heard) == 2


@pytest.mark.slow
@by_one_door
@pytest.mark.parametrize(("verb", "told"), [("restart", []), ("cancel", ["canceled"]), ("processed", [])])
def test_a_try_that_was_overtaken_tells_nothing(
    telling: AsyncTask, desk: Desk, board: Board, heard: Heard, verb: str, told: list[str]
) -> None:
    def fail(_: Any) -> None:
        if len(board.asked) == 1:
            mine.do(made, verb)
            raise Broken("no")

    mine = of(desk, LeasedReview)
    board.does = fail
    made = mine.submitted()
    age(mine, DAY)
    assert mine.go_on()
    assert kinds(heard) == told


@pytest.mark.slow
@by_one_door
@pytest.mark.parametrize("model", [Review, LeasedReview])
def test_a_worker_tells_it_at_once_and_a_failing_row_that_is_processed_by_hand_has_recovered(
    telling: AsyncTask, desk: Desk, board: Board, heard: Heard, model: type[Any]
) -> None:
    mine = of(desk, model)
    board.will_raise(Broken("no"))
    made = mine.submitted()
    age(mine, DAY)
    with working(telling):
        await_(lambda: kinds(heard) == ["failing"], "the message")
    mine.do(made, "processed")
    assert kinds(heard) == ["failing", "recovered"]


@pytest.mark.only_on("postgresql", "mysql")
@by_one_door
def test_of_tries_that_fail_at_once_one_tells_it(telling: AsyncTask, desk: Desk, heard: Heard) -> None:
    made = desk.submitted()
    age(desk, DAY)
    desk.do(made, "attempted")
    [target] = [one.thing for one in registry.registered_targets() if isinstance(one.thing, RowProcessor)]
    meet = threading.Barrier(4)

    def one(_: int) -> None:
        with telling._runtime("worker") as runtime, runtime.lane() as lane:
            meet.wait(30)
            lane.run(lambda: fail(lane))

    def fail(lane: Lane) -> None:
        with lane.engine.begin() as connection:
            assert target.record_error(connection, lane, {"key": made}, Broken("no"), "no") is None
        run_committed(connection)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(one, range(4)))
    assert kinds(heard) == ["failing"]


@by_one_door
def test_what_goes_wrong_with_a_message_undoes_nothing(
    telling: AsyncTask, desk: Desk, board: Board, heard: Heard, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def broken(*_: Any, **__: Any) -> None:
        raise Broken("nobody")

    monkeypatch.setattr("async_task.asyncable.messages.message_about_outcome", broken)
    board.will_raise(Broken("no"), None)
    made = desk.submitted()
    age(desk, DAY)
    desk.go_on()
    assert desk.row(made).error == "Broken: no"
    age(desk, 3 * HOUR)
    desk.go_on()
    assert desk.status(made) == "processed"
    assert heard == []
    said = [one.getMessage() for one in caplog.records if "no message is sent" in one.getMessage()]
    assert said == [f"Review {made}: no message is sent: Broken: nobody"] * 2


@pytest.mark.slow
@by_one_door
def test_without_a_hook_a_try_executes_no_more_statements(
    telling: AsyncTask, desk: Desk, board: Board, engine: Engine
) -> None:
    def count(seconds: float, error: Exception | None) -> int:
        board.will_raise(error)
        desk.submitted()
        age(desk, seconds)
        [attempt] = [one for one in desk.attempts() if one.status == "pending" and not one.num_attempts]
        statements: list[str] = []

        def note(_c: Any, _u: Any, statement: str, *_: Any) -> None:
            statements.append(statement)

        event.listen(engine, "before_cursor_execute", note)
        desk.app.perform(attempt.id)
        event.remove(engine, "before_cursor_execute", note)
        return len(statements)

    count(0, None)
    with_hook = [count(0, None), count(DAY, None), count(0, Broken("no")), count(DAY, Broken("no"))]
    desk.app = AsyncTask(engine)  # the last application decides
    count(0, None)
    good, _, bad, _ = without = [count(0, None), count(DAY, None), count(0, Broken("no")), count(DAY, Broken("no"))]
    assert without == [good, good, bad, bad]
    assert [one - other for one, other in zip(with_hook, without, strict=True)][::2] == [0, 1]
    assert all(one > other for one, other in zip(with_hook[1::2], without[1::2], strict=True))


# Who did what


@pytest.mark.slow
@by_one_door
@pytest.mark.parametrize("model", [Review, OldReview])
def test_each_verb_of_a_person_writes_one_event_in_its_transaction_and_the_job_none(
    desk: Desk, board: Board, model: type[Any]
) -> None:
    mine = of(desk, model)
    made = mine.submitted()
    mine.go_on()
    assert history(mine, made) == []  # the events of its attempt tell that
    processed_at = mine.row(made).processed_at
    with acting("anna"):
        mine.do(made, "restart", reason="the \0 wrong claim")
        mine.do(made, "attempted")
        mine.do(made, "update_error", "E" * 30)
        mine.do(made, "clear_error")
        mine.do(made, "cancel")
        assert mine.do(made, "cancel", reason="no effect") is False
        with pytest.raises(InvalidState):
            mine.do(made, "processed")
        with Session(mine.engine) as session:
            session.get_one(model, made).restart(session)
            session.rollback()
    mine.do(made, "restart")
    mine.do(made, "processed")
    told = history(mine, made)
    assert [(one.kind, one.actor, one.message) for one in told] == [
        ("restart", "anna", "the \\0 wrong claim"), ("attempted", "anna", None), ("update_error", "anna", None),
        ("clear_error", "anna", None), ("cancel", "anna", None), ("restart", None, None), ("processed", None, None),
    ]  # fmt: skip
    assert {(one.job_type, one.job_id) for one in told} == {(model.__tablename__, str(made))}
    assert [(one.before["status"], one.after["status"]) for one in told] == [
        ("processed", "submitted"), ("submitted", "attempted"), ("attempted", "attempted"), ("attempted", "attempted"),
        ("attempted", "canceled"), ("canceled", "submitted"), ("submitted", "processed"),
    ]  # fmt: skip
    first, second, third, *_ = told
    assert first.before.keys() == first.after.keys() == {
        "status", "last_submitted_at", "attempted_at", "processed_at",
    }  # fmt: skip
    assert (first.before["processed_at"], first.after["processed_at"]) == (processed_at, None)
    assert second.before.keys() == {"status", "attempted_at"}
    assert (dict(third.before), third.after["error"]) == ({"status": "attempted", "error": None}, "E" * 30)
    with Session(mine.engine) as session:
        row = session.get_one(model, made)
        assert events_of(session, row, limit=2) == tuple(told[:2])
        assert events_of(session, row, after=told[-2].id) == (told[-1],)


@by_one_door
def test_the_events_of_an_attempt_are_read_alike_and_a_bad_page_is_refused(desk: Desk, board: Board) -> None:
    board.will_raise(Broken("no"))
    desk.submitted()
    desk.go_on()
    with Session(desk.engine) as session:
        [attempt] = session.scalars(select(Attempt))
        [error] = events_of(session, attempt)
        assert (error.kind, error.job_id, error.num_attempt) == ("error", str(attempt.id), 1)
        for page in ({"limit": 0}, {"limit": 10_001}, {"after": -1}):
            with pytest.raises(ConfigurationError, match="whole number"):
                events_of(session, attempt, **page)  # type: ignore[arg-type]
        with pytest.raises(InvalidArguments, match="is not a job"):
            events_of(session, object())
