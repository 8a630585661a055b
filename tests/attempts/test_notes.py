"""Notes on jobs: attempts, operations, and other models that attempts perform."""

import asyncio
import dataclasses
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, select, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, joinedload, mapped_column, selectinload, sessionmaker

from async_task import (
    AsyncTask,
    Attempt,
    BaseAttempt,
    ConfigurationError,
    InvalidArguments,
    JobNote,
    NoTransaction,
    Succeeded,
    UnknownAttempt,
    acting,
    add_note,
    notes_of,
)
from async_task.attempts.notes import notes_relationship
from async_task.schema.columns import Identifier, Name
from clockwork import row_of
from conftest import by_one_door
from databases import Database
from ended import ended, events_in, ids_in
from operations import Batch, Child, Pair, Parent
from outbox import Client, Effect, Rows, act, events_of, will

Write = Callable[..., Attempt]
Sessions = sessionmaker[Session]
ONE, TWO = uuid.UUID(int=1), uuid.UUID(int=0xABCDEF << 64)


class Own(DeclarativeBase):
    """A metadata without the tables of async-task."""


class Columns:
    @classmethod
    def __attempts_model__(cls) -> type[BaseAttempt]:
        return Attempt


class Document(Columns, Rows):
    """A job with a UUID for its key."""

    __tablename__ = "noted_documents"
    id: Mapped[uuid.UUID] = mapped_column(Identifier(), primary_key=True)


class Page(Columns, Rows):
    """A job with two UUIDs for its key."""

    __tablename__ = "noted_pages"
    document: Mapped[uuid.UUID] = mapped_column(Identifier(), primary_key=True)
    number: Mapped[uuid.UUID] = mapped_column(primary_key=True)


class Line(Columns, Rows):
    """A job with three columns for its key."""

    __tablename__ = "noted_lines"
    document: Mapped[str] = mapped_column(Name(100), primary_key=True)
    page: Mapped[str] = mapped_column(Name(100), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)


class Review(Columns, Own):
    """A job of another metadata, with a text for its key."""

    __tablename__ = "noted_reviews"
    name: Mapped[str] = mapped_column(Name(200), primary_key=True)


for one in (Document, Page, Line, Review):
    one.job_notes = notes_relationship(one)  # type: ignore[attr-defined]

LONG = "a" * 65
JOBS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "number": lambda: (Batch(id=7), Batch(id=70)),
    "class of a family": lambda: (Child(id=1), Parent(id=11)),
    "text and UUID": lambda: (Pair(tenant="a,b\\", number=TWO), Pair(tenant="a", number=TWO)),
    "UUID": lambda: (Document(id=TWO), Document(id=ONE)),
    "UUIDs": lambda: (Page(document=ONE, number=TWO), Page(document=TWO, number=ONE)),
    "texts with commas": lambda: (
        Line(document="a,b", page="c\\", number=1), Line(document="a", page="b,c\\", number=1),
    ),
    "text": lambda: (Review(name="Äpfel %"), Review(name="äpfel %")),
    "long text": lambda: (Review(name=f"{LONG}b"), Review(name=LONG[:64])),
}  # fmt: skip


@pytest.fixture
def tables(engine: Engine) -> None:
    Own.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(Review.__table__.delete())  # type: ignore[attr-defined]


def note(session: Session, job: Any, *texts: str) -> None:
    for text in texts:
        with acting("anna"):
            add_note(session, job, text)


def texts_of(notes: Any) -> list[tuple[str, str]]:
    return [(one.author, one.text) for one in notes]


@pytest.mark.in_turns
@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("kind", JOBS)
def test_any_job_has_notes_and_a_model_has_them_as_a_relationship_newest_first(
    engine: Engine, sessions: Sessions, kind: str
) -> None:
    one, other = JOBS[kind]()
    with sessions(expire_on_commit=False) as session, session.begin():
        session.add_all([one, other])
        note(session, one, "first", "**second**")
        note(session, other, "of the other")
    wanted = [("anna", "**second**"), ("anna", "first")]
    with sessions() as session:
        assert texts_of(notes_of(session, one)) == wanted
        assert texts_of(notes_of(session, one, limit=1)) == wanted[:1]
        newest = notes_of(session, one)[0]
        assert texts_of(notes_of(session, one, after=newest.id)) == wanted[1:]
        assert dataclasses.asdict(newest).keys() == {"id", "author", "text", "created_at"}
        assert newest.created_at.tzinfo is not None
    if kind == "long text":  # its notes are found by `notes_of` alone
        return
    for loading in (None, selectinload, joinedload):
        with sessions() as session:
            options = [] if loading is None else [loading(type(one).job_notes)]
            found = session.scalars(select(type(one)).options(*options)).unique().all()
            mine = next(row for row in found if row == session.merge(one, load=False))
            assert texts_of(mine.job_notes) == wanted
            assert all(isinstance(row, JobNote) for row in mine.job_notes)
            [theirs] = [row for row in session.scalars(select(type(other))).unique() if row is not mine]
            assert texts_of(theirs.job_notes) == [("anna", "of the other")]


def test_an_attempt_has_notes_by_its_verb_and_outside_of_any_session(
    app: AsyncTask, engine: Engine, write: Write, sessions: Sessions
) -> None:
    attempt, other = write(Client, "ping"), write(Client, "ping")
    before = row_of(engine, attempt.id)
    with acting("anna"), sessions.begin() as session:
        made = session.get_one(Attempt, attempt.id).add_note(text="seen")
    with acting("bert"), sessions.begin() as session:
        attempt.add_note(session, text="Mended.\n\n- see #17")
        assert attempt not in session
    newest, first = app.attempts.notes(attempt.id)
    assert (first, newest.author, newest.text) == (made, "bert", "Mended.\n\n- see #17")
    assert app.attempts.notes(attempt.id.hex[-8:], limit=1) == (newest,)
    assert app.attempts.notes(attempt.id, after=newest.id) == (first,)
    assert app.attempts.notes(other.id) == ()
    assert [(event.kind, event.actor) for event in app.attempts.events(attempt.id)] == [
        ("note", "anna"), ("note", "bert"),
    ]  # fmt: skip
    assert row_of(engine, attempt.id) == before


def test_a_note_is_part_of_the_callers_transaction_and_flushes_first(engine: Engine, sessions: Sessions) -> None:
    with acting("anna"), sessions() as session:
        attempt = Attempt.create(target=Client, method_name="ping", session=session)
        add_note(session, attempt, "made by hand")
        attempt_id = attempt.id
        assert texts_of(notes_of(session, attempt)) == [("anna", "made by hand")]
        session.rollback()
    assert events_of(engine, attempt_id) == []


def test_a_note_is_added_and_read_on_an_async_session(engine: Engine, async_engine_url: str, write: Write) -> None:
    attempt = write(Client, "ping")

    async def add() -> list[tuple[str, str]]:
        own = create_async_engine(async_engine_url, poolclass=NullPool)
        async with AsyncSession(own) as session, session.begin():
            mine = await session.get_one(Attempt, attempt.id)
            with acting("anna"):
                await session.run_sync(add_note, mine, "one")
                await session.run_sync(mine.add_note, text="two")
            batch = Batch()
            session.add(batch)
            with acting("bert"):
                await session.run_sync(add_note, batch, "of the batch")
            [same] = await session.scalars(select(Batch).options(selectinload(Batch.job_notes)))
            assert texts_of(same.job_notes) == [("bert", "of the batch")]
            found = texts_of(await session.run_sync(notes_of, mine))
        await own.dispose()
        return found

    assert asyncio.run(add()) == [("anna", "two"), ("anna", "one")]


IMPATIENT = {
    "postgresql": "SET lock_timeout = '1s'", "mysql": "SET SESSION innodb_lock_wait_timeout = 1",
}  # fmt: skip


@pytest.mark.only_on("postgresql", "mysql")
def test_a_note_does_not_wait_for_a_locked_row(
    database: Database, engine: Engine, write: Write, sessions: Sessions
) -> None:
    attempt = write(Client, "ping")
    other = create_engine(database.sync_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(update(Attempt).where(Attempt.id == attempt.id).values(priority=1))
        with Session(other) as session, session.begin():
            session.connection().exec_driver_sql(IMPATIENT[database.name])
            note(session, attempt, "it takes long")
    with sessions() as session:
        assert texts_of(notes_of(session, attempt)) == [("anna", "it takes long")]


@by_one_door
def test_a_note_during_the_call_and_notes_survive_retry_and_restart(
    app: AsyncTask, write: Write, sessions: Sessions
) -> None:
    attempt = write(act)

    def write_one() -> None:
        with sessions.begin() as session:
            note(session, attempt, "it runs now")

    will(write_one)
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    failed = write(Client, "give_up", {"reason": "gone"})
    with sessions.begin() as session:
        note(session, failed, "look here")
    app.perform(failed.id)
    with sessions.begin() as session:
        session.get_one(Attempt, failed.id).retry_now()
    app.perform(failed.id)
    assert texts_of(app.attempts.notes(attempt.id)) == [("anna", "it runs now")]
    assert texts_of(app.attempts.notes(failed.id)) == [("anna", "look here")]


@by_one_door
def test_pruning_leaves_notes_and_deletes_the_other_events(
    app: AsyncTask, engine: Engine, write: Write, sessions: Sessions
) -> None:
    gone, emptied = ended(engine, write, 31, events=2), ended(engine, write, 31, events=1, idempotence_token="a")
    for attempt_id in (gone, emptied):
        with sessions.begin() as session:
            note(session, session.get_one(Attempt, attempt_id), f"on {attempt_id}")
    assert app.prune("30d", dry_run=True).events == 3
    report = app.prune("30d")
    assert (report.deleted, report.emptied, report.events) == (1, 1, 3)
    assert ids_in(engine) == {emptied}
    assert sorted(events_in(engine)) == sorted([str(gone), str(emptied)])
    for attempt_id in (gone, emptied):
        assert texts_of(app.attempts.notes(attempt_id)) == [("anna", f"on {attempt_id}")]
    with pytest.raises(UnknownAttempt, match="give the whole id"):
        app.attempts.notes(gone.hex[-8:])


@pytest.mark.parametrize("text", ["a" * 65_536, "ü" * 32_768, "nul \0, half \ud83d, whole 😀", "  x  "])
def test_a_note_of_64_kb_and_with_any_character_is_stored(sessions: Sessions, write: Write, text: str) -> None:
    attempt = write(Client, "ping")
    with sessions.begin() as session:
        note(session, attempt, text)
    stored = text.replace("\0", "\\0").replace("\ud83d", "\\ud83d")
    with sessions() as session:
        assert texts_of(notes_of(session, attempt)) == [("anna", stored)]


@pytest.mark.in_turns
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "this one is empty"),
        (" \n\t", "this one is empty"),
        (None, "a note is a text, not NoneType"),
        ("a" * 65_537, "at most 65,536 bytes, and this one has 65,537"),
        ("ü" * 32_769, "this one has 65,538"),
    ],
)
def test_an_empty_and_a_longer_note_are_refused(
    engine: Engine, sessions: Sessions, write: Write, text: Any, words: str
) -> None:
    attempt = write(Client, "ping")
    with sessions.begin() as session, pytest.raises(InvalidArguments, match=words):
        note(session, attempt, text)
    assert events_of(engine, attempt.id) == []


def test_what_is_no_job_and_a_note_without_an_author_are_refused(sessions: Sessions, write: Write) -> None:
    attempt = write(Client, "ping")
    with sessions() as session:
        for job in (Effect(), object(), Attempt):
            with pytest.raises(InvalidArguments, match="is not a job: a job is an attempt, a Pollable or an Asyncable"):
                note(session, job, "x")
        with pytest.raises(InvalidArguments, match="this Batch has no key yet"):
            notes_of(session, Batch())
        with pytest.raises(InvalidArguments, match="a note has an author"):
            add_note(session, attempt, "x")
        with pytest.raises(ConfigurationError, match="limit is a whole number"):
            notes_of(session, attempt, limit=0)
        with pytest.raises(ConfigurationError, match="after takes the `id` of a note"):
            notes_of(session, attempt, after=-1)
    with acting("anna"), pytest.raises(NoTransaction, match="attached to no session"):
        attempt.add_note(text="x")
