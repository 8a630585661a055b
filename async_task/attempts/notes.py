"""Notes on jobs: what people write beside an attempt, or beside a row that attempts perform.

A note is an event of kind `note`. It is inserted and nothing else, so that it waits for no running call and changes no
row. Notes outlive their job; pruning leaves them.
"""

import datetime as dt
import uuid
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Table, insert, inspect, select
from sqlalchemy.orm import Mapper, Session, foreign, registry, relationship

from async_task.attempts.messages import MessageKind, send_message
from async_task.attempts.options import SyncSession
from async_task.database.sessions import blocking_session, read_arguments, routed_as_writes
from async_task.error_text import storable
from async_task.errors import ConfigurationError, InvalidArguments
from async_task.schema.audit import NOTE, current_actor
from async_task.schema.jobs import attempts_of, job_of, key_in_sql
from async_task.schema.tables import companion_tables, table_of

LONGEST_NOTE = 64 * 1024
"""Bytes of UTF-8."""
MOST_NOTES = 10_000


@dataclass(frozen=True, slots=True)
class NoteInfo:
    """A note on a job. `author`: the actor who has written it. `text`: Markdown. `created_at`: by the database's
    clock, in UTC. `id`: later notes have a higher one."""

    id: int
    author: str
    text: str
    created_at: dt.datetime


def add_note(session: SyncSession, job: Any, text: str) -> NoteInfo:
    """Add a note to a job, in your transaction: to an attempt, a `Pollable`, an Asyncable.

        with acting("anna@host"), SessionLocal.begin() as session:
            add_note(session, batch, "The provider **knows**: see ticket 17.")
        await session.run_sync(add_note, batch, "...")  # with an AsyncSession

    `text`: Markdown, up to 64 KB (65,536 bytes of UTF-8). The author is the actor of `acting(...)`. Flushes, and locks
    nothing: it does not wait for a running call, and changes no row. The user of the job gets a message after the
    commit (`AsyncTask(on_message=...)`). Raises InvalidArguments for an empty or longer text, without an actor, and for
    what is no job.
    """
    own, written, author = blocking_session(session), checked_text(text), _author()
    own.flush()
    meant = job_of(job)
    events = meant.events
    values = {"job_type": meant.type, "job_id": meant.id, "kind": NOTE, "actor": author, "message": written}
    with routed_as_writes(own, meant.mapper) as connection:
        made: Any = connection.execute(insert(events).values(values)).inserted_primary_key
        row = connection.execute(_notes(events).where(events.c.id == made[0])).one()
    send_message(own, job, MessageKind.NOTE_ADDED)
    return _info(row)


def unwritten_note(text: str) -> NoteInfo:
    """What `add_note` returns of an attempt that is not written, in the mode "off". Raises InvalidArguments."""
    return NoteInfo(0, _author(), checked_text(text), dt.datetime.now(dt.UTC))


def notes_of(session: SyncSession, job: Any, *, limit: int = 100, after: int | None = None) -> tuple[NoteInfo, ...]:
    """Read the notes on a job, the newest first; also those on a row that is deleted, if it has its key.

    `limit`: how many, up to 10,000. `after`: the `id` of a note, to go on with older ones. Raises InvalidArguments for
    what is no job, and ConfigurationError for an invalid `limit` or `after`.
    """
    check_page(limit, after)
    own, meant = blocking_session(session), job_of(job)
    found = _of_job(meant.events, meant.type, meant.id, limit, after)
    return tuple(_info(row) for row in own.execute(found, bind_arguments=read_arguments(meant.mapper)))


def notes_of_attempt(
    session: Session, table: Table, attempt_id: uuid.UUID, limit: int, after: int | None
) -> list[NoteInfo]:
    """The same of an attempt that need not exist any more."""
    events = companion_tables(table).events
    return [_info(row) for row in session.execute(_of_job(events, table.name, str(attempt_id), limit, after))]


def checked_text(text: object) -> str:
    """The text as every database stores it. Raises InvalidArguments."""
    if not isinstance(text, str):
        raise InvalidArguments(f"text: a note is a text, not {type(text).__name__}")
    if not text.strip():
        raise InvalidArguments("text: a note has a text, and this one is empty")
    written = storable(text)
    if (length := len(written.encode())) > LONGEST_NOTE:
        raise InvalidArguments(f"text: a note has at most {LONGEST_NOTE:,} bytes, and this one has {length:,}")
    return written


def check_page(limit: object, after: object) -> None:
    if type(limit) is not int or not 1 <= limit <= MOST_NOTES:
        raise ConfigurationError(f"limit is a whole number from 1 to {MOST_NOTES:,}: it was {limit!r}")
    if after is not None and (type(after) is not int or not 0 <= after < 2**63):
        raise ConfigurationError(f"after takes the `id` of a note, a whole number: it was {after!r}")


def _author() -> str:
    author = current_actor()
    if author is None:
        raise InvalidArguments("a note has an author: write it inside of `with acting('anna@host'):`")
    return author


def _of_job(events: Table, job_type: str, job_id: str, limit: int, after: int | None) -> Any:
    c = events.c
    mine = [c.job_type == job_type, c.job_id == job_id, c.kind == NOTE]
    older = [] if after is None else [c.id < after]
    return _notes(events).where(*mine, *older).order_by(c.id.desc()).limit(limit)


def _notes(events: Table) -> Any:
    c = events.c
    return select(c.id, c.actor, c.message, c.created_at)


def _info(row: Any) -> NoteInfo:
    number, author, text, created_at = row
    return NoteInfo(number, author or "", text or "", created_at)


# As a relationship of a model.


class JobNote:
    """A note as an object of the relationship `job_notes`: see `NoteInfo`. Never changed."""

    id: int
    author: str
    text: str
    created_at: dt.datetime


def notes_relationship(model: type[Any]) -> Any:
    """The relationship `job_notes` of a model of jobs: its `JobNote`s, the newest first. To be read only; `add_note`
    adds one.

    For a `declared_attr` of a mixin. It finds the notes on rows whose key is made of integers, UUIDs and texts, and has
    up to 64 characters as text; `notes_of` finds all.
    """
    events = companion_tables(attempts_of(model)).events

    def mine() -> Any:
        mapper: Mapper[Any] = inspect(model).base_mapper
        is_of_model = (events.c.job_type == table_of(model).name) & (events.c.kind == NOTE)
        return (foreign(events.c.job_id) == key_in_sql(mapper.primary_key)) & is_of_model

    return relationship(_note_class(events), primaryjoin=mine, order_by=events.c.id.desc(), viewonly=True, uselist=True)


@cache
def _note_class(events: Table) -> type[JobNote]:
    """Mapped on this table of events: each metadata has its own."""
    made = type("JobNote", (JobNote,), {"__doc__": JobNote.__doc__, "__module__": JobNote.__module__})
    named = {"author": events.c.actor, "text": events.c.message}
    registry(metadata=events.metadata).map_imperatively(
        made, events, properties=named, include_properties=["id", "created_at", *named]
    )
    return made
