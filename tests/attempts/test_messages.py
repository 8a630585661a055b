"""Messages to the user of a job: `AsyncTask(on_message=...)`."""

import asyncio
import datetime as dt
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, NullPool, event, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

from async_task import (
    AsyncTask,
    Attempt,
    BaseAttempt,
    ConfigurationError,
    MessageKind,
    Retried,
    Succeeded,
    acting,
    add_note,
)
from async_task.attempts.messages import due_message, message_about_outcome, set_message_hook
from async_task.execution.in_flight import Settlement
from async_task.execution.messages import tell_user
from async_task.schema.columns import Name
from async_task.schema.tables import JobEvent, table_of
from claims import claimed
from clockwork import let_pass
from conftest import by_one_door
from elsewhere import await_
from operations import Batch
from outbox import (
    Client,
    HookedAttempt,
    Rows,
    act,
    act_in_async_session,
    act_in_session,
    act_later,
    application,
    events_of,
    will,
)
from workers import working

Write = Callable[..., Attempt]
Sessions = sessionmaker[Session]
DAY = dt.timedelta(days=1)
HOUR = dt.timedelta(hours=1)


class Review(Rows):
    """A model whose rows attempts perform."""

    __tablename__ = "told_reviews"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str | None] = mapped_column(Name(100))

    @classmethod
    def __attempts_model__(cls) -> type[BaseAttempt]:
        return Attempt

    @property
    def asyncable_user(self) -> str | None:
        return self.owner

    @property
    def label(self) -> str:
        return f"review {self.id}"


class Heard:
    """What the hook was told; with `sees`, also what `meanwhile` then returned."""

    def __init__(self) -> None:
        self.all: list[tuple[Any, MessageKind, str]] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def __call__(self, user: Any, kind: MessageKind, text: str) -> None:
        self.meanwhile()
        self.all.append((user, kind, text))

    @property
    def kinds(self) -> list[str]:
        return [kind.value for _, kind, _ in self.all]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
    """The user of every attempt is "ada"."""
    monkeypatch.setattr(Attempt, "message_user", lambda self: "ada")
    yield Heard()
    set_message_hook(table_of(Attempt), None)


@pytest.fixture
def app_with_hook(engine: Engine, door: str, async_engine_url: str, heard: Heard) -> Iterator[AsyncTask]:
    made = application(engine, door, async_engine_url, on_message=heard)
    yield made
    made.close()


def raising(error: BaseException | None = None) -> Callable[..., object]:
    def act(*_: object) -> None:
        raise error or RuntimeError("secret")

    return act


def age(engine: Engine, by: dt.timedelta) -> None:
    """Let time pass, also for events; it is due again."""
    let_pass(engine, by, also=(JobEvent,))


@pytest.mark.parametrize(
    ("age", "last", "has_failed", "kind"),
    [
        (DAY, None, True, MessageKind.FAILING),
        (DAY - dt.timedelta(microseconds=1), None, True, None),
        (9 * DAY, MessageKind.FAILING, True, None),
        (9 * DAY, MessageKind.FAILING, False, MessageKind.RECOVERED),
        (9 * DAY, None, False, None),
        (9 * DAY, MessageKind.RECOVERED, False, None),
        (9 * DAY, MessageKind.RECOVERED, True, None),
    ],
)
def test_what_is_due_to_be_said_after_a_try(
    age: dt.timedelta, last: MessageKind | None, has_failed: bool, kind: MessageKind | None
) -> None:
    assert due_message(age, last, has_failed=has_failed) is kind


def _perform(app: AsyncTask, attempt: Attempt) -> None:
    app.perform(attempt.id)


def _run_batch(app: AsyncTask, _: Attempt) -> None:
    app.run_batch()


@pytest.mark.in_turns
@by_one_door
@pytest.mark.parametrize("perform", [_perform, _run_batch])
@pytest.mark.parametrize("target", [act, act_in_session, act_later])
def test_a_job_that_fails_for_a_day_is_told_once_and_its_success_too(
    engine: Engine, app_with_hook: AsyncTask, write: Write, heard: Heard, perform: Any, target: object
) -> None:
    attempt = write(target)
    will(raising())
    for hours, told in ((0, []), (23, []), (1, ["failing"]), (24, ["failing"])):
        age(engine, dt.timedelta(hours=hours))
        perform(app_with_hook, attempt)
        assert heard.kinds == told
    will(lambda *_: None)
    age(engine, HOUR)
    perform(app_with_hook, attempt)
    assert heard.kinds == ["failing", "recovered"]
    assert [(one.message, one.actor) for one in events_of(engine, attempt.id, "message")] == [
        ("failing", None), ("recovered", None),
    ]  # fmt: skip
    assert {user for user, _, _ in heard.all} == {"ada"}
    for _, _, text in heard.all:
        assert str(attempt.id) in text
        assert "secret" not in text
        assert "RuntimeError" not in text


@by_one_door
def test_workers_tell_it_too(engine: Engine, app_with_hook: AsyncTask, write: Write, heard: Heard) -> None:
    write(Client, "fail")
    age(engine, DAY)
    with working(app_with_hook):
        await_(lambda: heard.kinds == ["failing"], "the message")


@by_one_door
def test_a_success_without_a_message_before_says_nothing(
    engine: Engine, app_with_hook: AsyncTask, write: Write, heard: Heard
) -> None:
    attempt = write(act)
    will(raising())
    app_with_hook.perform(attempt.id)
    will(lambda: None)
    age(engine, 2 * DAY)
    assert app_with_hook.perform(attempt.id) == Succeeded(attempt.id)
    assert heard.all == []
    assert events_of(engine, attempt.id, "message") == []


@pytest.mark.slow
@by_one_door
def test_a_retry_of_an_ended_attempt_is_another_submission_and_one_of_a_waiting_one_is_not(
    engine: Engine, app_with_hook: AsyncTask, write: Write, sessions: Sessions, heard: Heard
) -> None:
    attempt = write(Client, "fail", max_attempts=2)

    def retry() -> None:
        with sessions.begin() as session:
            session.get_one(Attempt, attempt.id).retry_now()

    age(engine, 2 * DAY)
    app_with_hook.perform(attempt.id)
    retry()
    app_with_hook.perform(attempt.id)  # fails for good
    assert heard.kinds == ["failing"]
    retry()
    age(engine, 23 * HOUR)
    app_with_hook.perform(attempt.id)
    assert heard.kinds == ["failing"]
    age(engine, HOUR)
    app_with_hook.perform(attempt.id)
    assert heard.kinds == ["failing", "failing"]


@by_one_door
def test_a_note_and_a_cancel_are_told_after_their_commit_and_not_after_a_rollback(
    engine: Engine, app_with_hook: AsyncTask, write: Write, sessions: Sessions, heard: Heard
) -> None:
    attempt = write(Client, "ping")
    seen: list[int] = []
    heard.meanwhile = lambda: seen.append(len(events_of(engine, attempt.id)))
    with acting("anna"), sessions() as session:
        mine = session.get_one(Attempt, attempt.id)
        add_note(session, mine, "never")
        session.rollback()
        with session.begin_nested() as inner:
            add_note(session, mine, "nor this")
            inner.rollback()
        with session.begin_nested():
            add_note(session, mine, "**secret**")
        assert heard.all == []
        session.commit()
        assert heard.all == [("ada", "note_added", f"anna added a note to test.client.ping ({attempt.id}).")]
        mine.cancel(reason="secret")
        session.commit()
    assert heard.all[1:] == [("ada", "canceled", f"test.client.ping ({attempt.id}) was canceled by anna.")]
    assert seen == [1, 2]


@by_one_door
def test_of_many_workers_that_fail_at_once_one_tells_it(
    engine: Engine, app_with_hook: AsyncTask, write: Write, heard: Heard
) -> None:
    attempt = write(Client, "ping")
    age(engine, DAY)
    claim = claimed(engine, attempt.id)
    meet = threading.Barrier(4)

    def one(_: int) -> None:
        with app_with_hook._runtime("worker") as runtime, runtime.lane() as lane:
            context = runtime.performer.context_on(lane)
            settlement = Settlement(Retried(attempt.id, HOUR, "x"), RuntimeError())
            meet.wait(30)
            lane.run(lambda: tell_user(context, claim, settlement))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(one, range(4)))
    assert heard.kinds == ["failing"]
    assert len(events_of(engine, attempt.id, "message")) == 1


def test_a_note_on_an_async_session_is_told(
    app_with_hook: AsyncTask, async_engine_url: str, write: Write, heard: Heard
) -> None:
    attempt = write(Client, "ping")

    async def add() -> None:
        own = create_async_engine(async_engine_url, poolclass=NullPool)
        async with AsyncSession(own) as session:
            with acting("anna"):
                await session.run_sync(add_note, attempt, "x")
            assert heard.all == []
            await session.commit()
        await own.dispose()

    asyncio.run(add())
    assert heard.kinds == ["note_added"]


@pytest.mark.in_turns
@by_one_door
@pytest.mark.parametrize("error", [RuntimeError("secret"), asyncio.CancelledError("secret"), GeneratorExit("secret")])
def test_a_hook_that_raises_is_logged_and_changes_nothing(
    engine: Engine, app_with_hook: AsyncTask, write: Write, sessions: Sessions, heard: Heard,
    caplog: pytest.LogCaptureFixture, error: BaseException,
) -> None:  # fmt: skip
    attempt = write(Client, "fail")
    heard.meanwhile = raising(error)
    with acting("anna"), sessions.begin() as session:
        add_note(session, attempt, "x")
    age(engine, DAY)
    app_with_hook.perform(attempt.id)
    app_with_hook.perform(attempt.id)
    assert [event.kind for event in events_of(engine, attempt.id)] == ["note", "error", "message"]
    said = [record.getMessage() for record in caplog.records if "on_message" in record.getMessage()]
    assert said == [
        f"on_message raised {type(error).__name__}: secret for test.client.fail ({attempt.id}) ({kind})"
        for kind in ("note_added", "failing")
    ]


@pytest.mark.slow
@by_one_door
def test_without_a_user_or_without_a_hook_nothing_is_told_or_written(
    engine: Engine, app_with_hook: AsyncTask, write: Write, sessions: Sessions, heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def mess_up() -> Attempt:
        attempt = write(Client, "fail")
        age(engine, DAY)
        app_with_hook.perform(attempt.id)
        with acting("anna"), sessions.begin() as session:
            mine = session.get_one(Attempt, attempt.id)
            mine.add_note(text="x")
            mine.cancel()
        return attempt

    monkeypatch.setattr(Attempt, "message_user", lambda self: None)
    first = mess_up()
    monkeypatch.setattr(Attempt, "message_user", lambda self: "ada")
    AsyncTask(engine)  # the last application decides
    second = mess_up()
    assert heard.all == []
    assert events_of(engine, first.id, "message") == events_of(engine, second.id, "message") == []


@pytest.mark.slow
@by_one_door
@pytest.mark.parametrize("target", [act, act_in_session, act_later])
def test_without_a_hook_a_try_executes_no_more_statements(
    engine: Engine, app_with_hook: AsyncTask, write: Write, heard: Heard, target: object
) -> None:
    """Nor does one of a young attempt with a hook, and one that succeeds at first."""

    def count(app: AsyncTask, ago: dt.timedelta) -> int:
        app.check_schema()  # once for each application
        attempt = write(target)
        age(engine, ago)
        with counted(engine) as statements:
            app.perform(attempt.id)
        return len(statements)

    will(raising())
    young, told = count(app_with_hook, HOUR), count(app_with_hook, DAY)
    will(lambda *_: None)
    good = [count(app_with_hook, ago) for ago in (HOUR, DAY)]
    without = AsyncTask(engine)
    assert good == [count(without, HOUR)] * 2
    will(raising())
    assert young == count(without, HOUR) == count(without, DAY) < told


class counted:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.statements = engine, list[str]()

    def _note(self, _c: Any, _u: Any, statement: str, *_: Any) -> None:
        self.statements.append(statement)

    def __enter__(self) -> list[str]:
        event.listen(self.engine, "before_cursor_execute", self._note)
        return self.statements

    def __exit__(self, *_: object) -> None:
        event.remove(self.engine, "before_cursor_execute", self._note)


# From a session that a call was given.


def test_a_call_s_own_session_tells_after_the_commit_of_its_outcome(
    engine: Engine, app_with_hook: AsyncTask, door: str, write: Write, heard: Heard
) -> None:
    other, attempt = write(Client, "ping"), write(act_in_session if door == "sync" else act_in_async_session)

    def note_and_cancel(session: Session) -> None:
        with acting("robot"):
            add_note(session, session.get_one(Attempt, other.id), "seen")
            session.get_one(Attempt, other.id).cancel()
        session.commit()
        assert heard.all == []

    seen: list[int] = []
    heard.meanwhile = lambda: seen.append(len(events_of(engine, other.id)))
    will(note_and_cancel if door == "sync" else lambda session: session.run_sync(note_and_cancel))
    assert app_with_hook.perform(attempt.id) == Succeeded(attempt.id)
    assert heard.kinds == ["note_added", "canceled"]
    assert seen == [2, 2]


@by_one_door
def test_what_a_failed_call_did_is_not_told(
    engine: Engine, app_with_hook: AsyncTask, write: Write, heard: Heard
) -> None:
    other, attempt = write(Client, "ping"), write(act_in_session)

    def note_and_raise(session: Session) -> None:
        with acting("robot"):
            add_note(session, session.get_one(Attempt, other.id), "seen")
        session.commit()
        raise RuntimeError

    will(note_and_raise)
    app_with_hook.perform(attempt.id)
    will(lambda session: None)
    let_pass(engine, HOUR)
    assert app_with_hook.perform(attempt.id) == Succeeded(attempt.id)
    assert heard.all == []
    assert events_of(engine, other.id) == []


def test_a_cancel_in_the_error_hook_is_told(engine: Engine, sessions: Sessions, monkeypatch: Any) -> None:
    heard = Heard()
    monkeypatch.setattr(HookedAttempt, "message_user", lambda self: "ada")
    monkeypatch.setattr("outbox.hooks", [lambda attempt, error: attempt.cancel()])
    app = AsyncTask(engine, model=HookedAttempt, on_message=heard)
    try:
        with sessions.begin() as session:
            attempt_id = HookedAttempt.create(target=Client, method_name="fail", session=session).id
        app.perform(attempt_id)
    finally:
        set_message_hook(table_of(HookedAttempt), None)
    assert heard.kinds == ["canceled"]


@by_one_door
def test_a_session_on_a_connection_tells_when_that_is_returned(
    engine: Engine, app_with_hook: AsyncTask, write: Write, heard: Heard
) -> None:
    attempt = write(Client, "ping")
    for ends in ("rollback", "commit"):
        with engine.connect() as connection:
            transaction = connection.begin()
            with acting("anna"), Session(connection, join_transaction_mode="create_savepoint") as session:
                add_note(session, attempt, ends)
                session.commit()
            getattr(transaction, ends)()
            assert heard.all == []
    assert heard.kinds == ["note_added"]


@by_one_door
def test_or_when_it_begins_its_next_transaction_which_may_be_rolled_back(
    engine: Engine, app_with_hook: AsyncTask, write: Write, heard: Heard
) -> None:
    attempt = write(Client, "ping")
    with engine.connect() as connection:
        for text, end in (("kept", "commit"), ("undone", "rollback")):
            transaction = connection.begin()
            with acting("anna"), Session(connection, join_transaction_mode="create_savepoint") as session:
                add_note(session, attempt, text)
                session.commit()
            getattr(transaction, end)()
        assert heard.kinds == ["note_added"]
        connection.execute(select(1))
    assert heard.kinds == ["note_added"]


@by_one_door
def test_what_a_savepoint_of_the_connection_undoes_is_not_told(
    engine: Engine, app_with_hook: AsyncTask, write: Write, heard: Heard
) -> None:
    attempt = write(Client, "ping")

    def note(connection: Connection, text: str) -> None:
        with acting("anna"), Session(connection, join_transaction_mode="create_savepoint") as session:
            add_note(session, attempt, text)
            session.commit()

    with engine.connect() as connection:
        transaction = connection.begin()
        first = connection.begin_nested()
        note(connection, "undone with what is in it")
        first.rollback()
        note(connection, "kept")
        second = connection.begin_nested()
        note(connection, "undone too")
        second.rollback()
        transaction.commit()
    assert heard.kinds == ["note_added"]


# Of other models.


@by_one_door
def test_operations_have_notes_that_are_told(
    engine: Engine, app_with_hook: AsyncTask, sessions: Sessions, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batch, "message_user", lambda self: "bert")
    with acting("anna"), sessions.begin() as session:
        batch = Batch(id=7)
        session.add(batch)
        add_note(session, batch, "x")
    assert heard.all == [("bert", "note_added", "anna added a note to Batch 7.")]


@pytest.fixture
def review(sessions: Sessions) -> int:
    with sessions.begin() as session:
        session.add(Review(id=17, owner="carl"))
    return 17


def _tell(engine: Engine, key: int, since: dt.timedelta, *, has_failed: bool) -> MessageKind | None:
    with Session(engine) as session, session.begin():
        row = session.get_one(Review, key, with_for_update=True)
        return message_about_outcome(session, row, since, has_failed=has_failed)


@by_one_door
def test_a_model_tells_its_outcomes_by_one_call_once_for_each_submission(
    engine: Engine, app_with_hook: AsyncTask, sessions: Sessions, review: int, heard: Heard
) -> None:
    with counted(engine) as statements:
        assert _tell(engine, review, DAY - HOUR, has_failed=True) is None
    assert len(statements) == 1  # that of `_tell`
    with ThreadPoolExecutor(4) as threads:
        meet = threading.Barrier(4)

        def one(_: int) -> None:
            meet.wait(30)
            _tell(engine, review, DAY, has_failed=True)

        if engine.dialect.name == "sqlite":  # there, one transaction writes at a time, and others may not wait
            _tell(engine, review, DAY, has_failed=True)
        else:
            list(threads.map(one, range(4)))
    assert heard.all == [("carl", "failing", "review 17 has not succeeded for 24 hours, and is failing.")]
    assert _tell(engine, review, DAY + HOUR, has_failed=False) is MessageKind.RECOVERED
    assert heard.all[1:] == [("carl", "recovered", "review 17 was failing, and has succeeded now.")]
    assert _tell(engine, review, DAY + HOUR, has_failed=False) is None
    let_pass(engine, 2 * DAY, also=(JobEvent,))
    assert _tell(engine, review, DAY + HOUR, has_failed=False) is None  # that was another submission
    assert _tell(engine, review, DAY + HOUR, has_failed=True) is MessageKind.FAILING
    with sessions.begin() as session:
        session.get_one(Review, review).owner = None
    let_pass(engine, 2 * DAY, also=(JobEvent,))
    assert _tell(engine, review, DAY + HOUR, has_failed=True) is None
    assert len(heard.all) == 3


def test_an_invalid_hook_is_refused(engine: Engine) -> None:
    async def later(user: Any, kind: MessageKind, text: str) -> None:
        """Nobody awaits it."""

    with pytest.raises(ConfigurationError, match=r"on_message takes a function, called as on_message\(user, kind, te"):
        AsyncTask(engine, on_message="mail")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"on_message is called as on_message\(user, kind, text\), which "):
        AsyncTask(engine, on_message=lambda user, text: None)  # type: ignore[misc,arg-type]
    with pytest.raises(ConfigurationError, match="on_message takes a plain function, not a coroutine function"):
        AsyncTask(engine, on_message=later)
