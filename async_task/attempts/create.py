"""An attempt added to the caller's own transaction, in which it is written at the flush. `create` awaits nothing."""

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, inspect, select
from sqlalchemy.orm import Mapper, Session

from async_task.attempts import unwritten
from async_task.attempts.ambient import ambient_session, check_writable, note_created
from async_task.attempts.draft import Draft, from_now, named_draft
from async_task.attempts.numbered import Numbered
from async_task.attempts.own_columns import own_values, own_values_by_column
from async_task.attempts.telemetry import Writing, traced
from async_task.attempts.uniqueness import Uniqueness
from async_task.database.current_reads import first_committed
from async_task.database.dialects import insert_into, skips_conflicts
from async_task.database.sessions import blocking_session, routed_as_writes, sync_session
from async_task.errors import AsyncTaskError, ConfigurationError
from async_task.wakeup.after_commit import call_after_commit
from async_task.wakeup.commit_hooks import wake_after_commit

M = TypeVar("M")


def add(model: type[M], made: Draft, session: object | None) -> M:
    """A new instance of `model` in `session`, or in the one transaction that is open here."""
    if unwritten.is_off:
        return unwritten.unwritten(model, made)
    own = ambient_session() if session is None else sync_session(session)
    check_writable(own)
    mapper: Any = inspect(model)
    attempt: M = traced(mapper.base_mapper.local_table, "create", (made,), partial(_add, own, mapper, made))
    if session is None:
        note_created(own)
    if made.is_due_at_once:
        wake_after_commit(own, mapper, {made.form.queue: 1}, (made.id,))
    return attempt


def _add(own: Session, mapper: Mapper[Any], made: Draft, writing: Writing | None) -> Any:
    table: Any = mapper.base_mapper.local_table
    placed = made.numbered(table).stamped(from_now)
    if writing is not None:
        placed = placed._replace(trace_context=writing.trace_context)
    values = placed.given_values
    values["encoded_args"] = values.pop("method_args")
    if made.columns:
        values |= own_values(mapper, made.columns)
    # It is written by the unit of work. An INSERT of our own at the flush saves a fifth of the cost, and can be had: a
    # state that `before_flush` registers with the UOWTransaction as `listonly` is not inserted and becomes persistent.
    # But that is SQLAlchemy's own, mapper events would not fire, and no foreign key would order the rows.
    attempt = mapper.class_(**values)
    own.add(attempt)
    if writing is not None:
        call_after_commit(own, mapper, writing.committed)
    return attempt


def ensure(model: type[Any], arguments: Mapping[str, Any], session: object | None) -> Any:
    """The attempt with this target, method and token, created unless it exists. If it does, nothing is aborted."""
    uniqueness = Uniqueness.of(arguments)
    made = named_draft("ensure", {name: value for name, value in arguments.items() if name not in _OF_ENSURE})
    made = uniqueness.with_token(made)
    mapper, table = single_table(model, "ensure")
    if unwritten.is_off:
        return unwritten.unwritten(model, made)
    asked = session if session is not None else arguments.get("session")
    own = ambient_session() if asked is None else blocking_session(asked)
    check_writable(own)
    own.flush()
    with routed_as_writes(own, mapper) as connection:
        made = uniqueness.in_window(made, connection)
        insert = partial(_insert_traced, own, connection, mapper, uniqueness, made)
        there = traced(table, "ensure", (made,), insert)
    if there.id == made.id:
        if asked is None:
            note_created(own)
        if made.is_due_at_once:
            wake_after_commit(own, mapper, {made.form.queue: 1}, (made.id,))
    return there


_OF_ENSURE = ("session", "within", "until_done")
_TOKEN = ("target", "method_name", "idempotence_token")


def _insert_traced(
    own: Session, connection: Connection, mapper: Mapper[Any], uniqueness: Uniqueness, made: Draft,
    writing: Writing | None,
) -> Any:  # fmt: skip
    if writing is None:
        return _insert_unique(own, connection, mapper, uniqueness, made)
    traced_draft = made._replace(trace_context=writing.trace_context)
    there = _insert_unique(own, connection, mapper, uniqueness, traced_draft)
    if there.id == made.id:
        call_after_commit(own, mapper, writing.committed)
    else:
        writing.found(there.id)
    return there


def _insert_unique(
    own: Session, connection: Connection, mapper: Mapper[Any], uniqueness: Uniqueness, made: Draft
) -> Any:
    if uniqueness.until_done:
        insert = partial(_insert_or_find, own, connection, mapper, may_look=False)
        return Numbered(own, connection, mapper, made).open_one(insert)
    there = _under_a_former_name(own, connection, mapper, made)
    return _insert_or_find(own, connection, mapper, made) if there is None else there


def _with_its_token(mapper: Mapper[Any], made: Draft) -> Any:
    # Of any class in the table: a token is unique in the table.
    table, given = mapper.local_table, made.values
    found: Any = select(mapper.base_mapper.class_).where(*(table.c[name] == given[name] for name in _TOKEN))
    return found.execution_options(populate_existing=True)  # the session was flushed, and may hold an old state


def _insert_or_find(
    own: Session, connection: Connection, mapper: Mapper[Any], made: Draft, *, may_look: bool = True
) -> Any:
    """`may_look`: whether one that a plain read finds is the one to return."""
    table: Any = mapper.local_table
    find = _with_its_token(mapper, made)
    own_columns = own_values_by_column(mapper, table, made.columns)
    values = made.numbered(table).stamped(from_now).given_values | own_columns
    insert = insert_into(connection.dialect, table).values(values)
    if not skips_conflicts(connection.dialect):
        # The INSERT waits for the lock of a call that is being performed; this plain read does not.
        if may_look and (there := own.scalars(find).first()) is not None:
            return there
        connection.execute(insert.on_duplicate_key_update(id=table.c.id))
        there = own.scalars(find.with_for_update(read=True)).unique().one_or_none()
        if there is None:  # the row was not refused for its token, but by a unique column of the user's own
            connection.execute(insert)
        return there
    unless_there = insert.on_conflict_do_nothing(
        index_elements=_TOKEN, index_where=table.c.idempotence_token.is_not(None)
    )
    for _ in range(3):  # the other attempt may be pruned between our INSERT and our SELECT
        connection.execute(unless_there)
        if (there := own.scalars(find).first()) is not None:
            return there
    raise AsyncTaskError("ensure: the attempt with this token appeared and disappeared three times; try again")


def _under_a_former_name(own: Session, connection: Connection, mapper: Mapper[Any], made: Draft) -> Any:
    """The attempt with this method and token that was written before its target was renamed; None without one."""
    method = made.form.method
    former = method.target.aliases
    if not former:
        return None
    table: Any = mapper.local_table
    same = (table.c.method_name == method.name, table.c.idempotence_token == made.idempotence_token)
    find: Any = select(mapper.base_mapper.class_).where(table.c.target.in_(former), *same)
    return first_committed(own, connection, find, table.c.id)


def given(session: object | None) -> Session | None:
    """As `blocking_session`; None stays None."""
    return None if session is None else blocking_session(session)


def single_table(model: type[Any], verb: str) -> tuple[Mapper[Any], Table]:
    """The model's mapper and its one table. Raises ConfigurationError where there are two."""
    mapper: Mapper[Any] = inspect(model)
    table = mapper.local_table
    if table is not mapper.base_mapper.local_table:
        raise ConfigurationError(f"{verb}: {model.__name__} is in two tables (joined inheritance): use create() for it")
    assert isinstance(table, Table)
    return mapper, table
