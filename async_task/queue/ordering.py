"""Order: attempts with one order key are performed one at a time, in the order in which they were created.

1. A keyed attempt arrives unreleased: no claim sees it.
2. A poll that finds arrivals releases the first attempt of each key, unless one of that key is released already.
3. The worker that settles a released attempt releases the next one, in another transaction after that commit: only a
   new snapshot sees what arrived meanwhile.
4. If its process dies in between, or somebody else has that row locked, a worker finds the key a few seconds later:
   each looks at a page of the keys now and then, and each sweep at all.

A unique index allows one released attempt for each key, whatever this module does wrong.
"""

import datetime as dt
import logging
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    String,
    Table,
    any_,
    bindparam,
    column,
    func,
    literal,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError, IntegrityError

from async_task.database.dialects import probes_laterally, walks_index_names
from async_task.database.driver_errors import is_transient
from async_task.error_text import describe
from async_task.schema.states import PENDING, clearing_arrived, is_pending, releasing_order_key
from async_task.wakeup.notify import notify_sleepers

logger = logging.getLogger("async_task")
PAGE = 500
Silent = Collection[str] | None
MOST_KEYS = 10_000
"""How many keys a preview looks at."""


class Turn(NamedTuple):
    """An attempt whose turn it is in its order key. `is_new`: it has just arrived."""

    id: uuid.UUID
    target: str
    method_name: str
    queue: str
    created_at: dt.datetime
    is_new: bool


def release(engine: Engine, table: Table, keys: Iterable[str]) -> list[str]:
    """Release the first pending attempt of each of these keys, unless one of that key is released. Returns the queue of
    each that was released.

    To be called when the outcome of a keyed attempt is committed.
    """
    with engine.begin() as connection:
        return release_in(connection, table, keys)


def release_arrived(engine: Engine, table: Table, limit: int = PAGE, *, silent: Silent = ()) -> int:
    """Release those of up to `limit` arrivals whose turn it is. Returns how many arrivals there were; 0 costs one look
    into an empty index. Sleeping workers are notified, but not of the queues `silent`; None: of no queue."""
    with engine.begin() as connection:
        found = connection.execute(_arrivals(table, limit)).all()
        if not found:
            return 0
        ids = [row.id for row in found]
        # By id alone: these rows are locked, and by the status MySQL would wait for other locks.
        connection.execute(update(table).where(table.c.id.in_(ids)).values(clearing_arrived()))
    # In a transaction of its own: a worker that settled meanwhile skipped the rows that were locked here.
    with engine.begin() as connection:
        release_and_notify(connection, table, {row.order_key for row in found}, silent=silent)
    return len(found)


def release_overlooked(
    engine: Engine, table: Table, limit: int = PAGE, after: str | None = None
) -> tuple[int, str | None]:
    """Among the next `limit` keys behind `after`, release those whose worker died before it released the next attempt,
    or could not lock it. A key whose first attempt has just arrived is left to `release_arrived`. Returns how many were
    released, and the last key if there may be more behind it."""
    with engine.begin() as connection:
        keys, last = overlooked(connection, table, limit, after)
    return len(release_keys(engine, table, keys)), last


def overlooked(connection: Connection, table: Table, limit: int, after: str | None) -> tuple[list[str], str | None]:
    """These keys, and the last one that was looked at if there may be more behind it. One statement, which only
    reads."""
    found = connection.execute(_keys(connection, table, limit, after)).all()
    keys = [row.key for row in found if not (row.is_released or row.is_new)]
    return keys, found[-1].key if len(found) == limit else None


def release_keys(engine: Engine, table: Table, keys: Sequence[str], *, silent: Silent = ()) -> list[str]:
    """`release` for keys that were overlooked. `silent`: as for `release_arrived`."""
    if not keys:
        return []
    with engine.begin() as connection:
        released = release_and_notify(connection, table, keys, silent=silent)
    if released:  # nobody need act; and a worker may be between its commit and its own release, which is no fault
        logger.info("attempts released that waited for others of their order key, which had ended: %d", len(released))
    return released


def to_release(connection: Connection, table: Table, limit: int) -> list[Turn]:
    """The attempts whose turn it is, one of a key, as `release_arrived` and `release_overlooked` would release them:
    `limit` at most of the first MOST_KEYS keys. Of each the call, `created_at`, and whether it `is_new`."""
    keys = connection.execute(_keys(connection, table, MOST_KEYS, None)).all()
    waiting = {row.key: bool(row.is_new) for row in keys if not row.is_released}
    wanted = list(waiting)[:limit]
    c = table.c
    shown: Any = select(c.id, c.target, c.method_name, c.queue, c.created_at)
    found: list[Turn] = []
    for key in wanted:
        row = connection.execute(shown.where(is_pending(table), c.order_key == key).order_by(c.seq).limit(1)).first()
        if row is not None:
            found.append(Turn(row.id, row.target, row.method_name, row.queue, row.created_at, waiting[key]))
    return found


def release_in(connection: Connection, table: Table, keys: Iterable[str | None]) -> list[str]:
    """As `release`, in the caller's transaction, which stays usable if another process is faster."""
    wanted = sorted({key for key in keys if key is not None})
    if not wanted:
        return []
    if not probes_laterally(connection.dialect):
        return [queue for key in wanted for queue in _release_one(connection, table, key)]
    pages = [wanted[start : start + PAGE] for start in range(0, len(wanted), PAGE)]
    return [queue for page in pages for queue in _release_many(connection, table, page)]


def release_and_notify(
    connection: Connection, table: Table, keys: Iterable[str | None], *, silent: Silent = ()
) -> list[str]:
    """As `release_in`. `silent`: as for `release_arrived`."""
    released = release_in(connection, table, keys)
    if silent is not None:
        notify_sleepers(connection, table, Counter(queue for queue in released if queue not in silent))
    return released


def queue_of_released(engine: Engine, table: Table, key: str) -> str | None:
    """The queue of the released attempt of this key; None without one."""
    with engine.begin() as connection:
        row = connection.execute(_released(table, key)).first()
    return None if row is None else row.queue


def ahead(table: Table) -> Any:
    """For each row of the enclosing statement: the id of the attempt that it waits for, else null."""
    other = table.alias("other")
    waits = (is_pending(table), ~table.c.released)
    found: Any = select(other.c.id).where(other.c.order_slot == table.c.order_key, *waits)
    return found.correlate(table).scalar_subquery()


def waits_behind(connection: Connection, table: Table, key: str) -> Any:
    """The id of the attempt that the others of this key wait for; None when there is none."""
    return connection.scalar(_released(table, key))


def _released(table: Table, key: str) -> Any:
    return select(table.c.id, table.c.queue).where(table.c.order_slot == key)


def _release_many(connection: Connection, table: Table, keys: Sequence[str]) -> list[str]:
    """All in one statement (PostgreSQL); one by one if another process was faster with one of them, or the database
    refuses one of them."""
    try:
        with connection.begin_nested():
            return list(connection.scalars(_releasing_all(table, keys)))
    except DBAPIError as error:
        if len(keys) > 1 and not _is_of_the_infrastructure(error):
            return [queue for key in keys for queue in _release_many(connection, table, [key])]
        return _unreleased(error, keys[0])


def _release_one(connection: Connection, table: Table, key: str) -> list[str]:
    of_key = _first(table, table.c.order_key == key).where(~_has_released(table, literal(key)))
    first = connection.execute(of_key).first()
    if first is None or connection.scalar(_free(table, table.c.id == first.id)) is None:
        return []
    try:
        connection.execute(update(table).where(table.c.id == first.id).values(releasing_order_key()))
    except DBAPIError as error:
        return _unreleased(error, key)
    return [first.queue]


def _unreleased(error: DBAPIError, key: str) -> list[str]:
    """Nothing, as another process was faster, or the database refuses this key, which must not hold up others. Raises
    an error of the infrastructure."""
    if _is_of_the_infrastructure(error):
        raise error
    if not isinstance(error, IntegrityError):
        logger.error("order key %s cannot be released: %s", key, describe(error).summary)
    return []


def _is_of_the_infrastructure(error: DBAPIError) -> bool:
    return error.connection_invalidated or is_transient(error.orig)


def _releasing_all(table: Table, keys: Sequence[str]) -> Any:
    wanted = func.unnest(bindparam("wanted", list(keys), postgresql.ARRAY(String))).table_valued(
        column("key", String), name="wanted"
    )
    keyed = wanted.render_derived()
    line: Any = table.alias("line")
    first = _first(line, line.c.order_key == keyed.c.key).lateral("first")
    heads = select(first.c.id).select_from(keyed.join(first, true())).where(~_has_released(table, keyed.c.key))
    free = _free(table, table.c.id == any_(func.array(heads.scalar_subquery())))
    change = update(table).where(table.c.id == any_(func.array(free.scalar_subquery()))).values(releasing_order_key())
    return change.returning(table.c.queue)


def _first(table: Any, of_key: ColumnElement[bool]) -> Select[Any]:
    first: Any = select(table.c.id, table.c.queue)
    found: Select[Any] = first.where(is_pending(table), of_key).order_by(table.c.seq).limit(1)
    return found


def _has_released(table: Table, key: Any) -> ColumnElement[bool]:
    """Whether an attempt of this key is released."""
    slot = table.alias("slot")
    return select(slot.c.id).where(slot.c.order_slot == key).exists()


def _free(table: Table, which: ColumnElement[bool]) -> Select[Any]:
    """Lock these rows if they are free: a process that has one locked releases it, or ends it and releases the next."""
    still = (which, is_pending(table), ~table.c.released)
    return select(table.c.id).where(*still).with_for_update(skip_locked=True, key_share=True)


def _arrivals(table: Table, limit: int) -> Select[Any]:
    arrived: Any = select(table.c.id, table.c.order_key).where(is_pending(table), table.c.arrived)
    found: Select[Any] = arrived.limit(limit).with_for_update(skip_locked=True, key_share=True)
    return found


def _keys(connection: Connection, table: Table, limit: int, after: str | None) -> Any:
    """The next keys of pending attempts: one look into the index for each, however many wait for it."""
    is_walked = walks_index_names(connection.dialect)
    walk: Any = _walked(table, after) if is_walked else _distinct(table, limit, after)
    line: Any = table.alias("line")
    of_key = (is_pending(line), line.c.order_key == walk.c.key)
    first_arrived = select(line.c.arrived).where(*of_key).order_by(line.c.seq).limit(1).scalar_subquery()
    shown = select(walk.c.key, _has_released(table, walk.c.key).label("is_released"), first_arrived.label("is_new"))
    found = shown.where(walk.c.key.is_not(None)).limit(limit)
    return found if is_walked else found.order_by(walk.c.key)


def _walked(table: Table, after: str | None) -> Any:
    behind: Any = table.alias("behind")
    first = select(func.min(table.c.order_key).label("key")).where(is_pending(table), table.c.order_key > (after or ""))
    walk = first.cte("walk", recursive=True)
    following = select(func.min(behind.c.order_key)).where(is_pending(behind), behind.c.order_key > walk.c.key)
    return walk.union_all(select(following.scalar_subquery()).where(walk.c.key.is_not(None)))


def _distinct(table: Table, limit: int, after: str | None) -> Any:
    """MariaDB does not go from key to key in its index: it took 24 ms for each. By the columns of the index alone it
    reads these keys in 5 ms."""
    c = table.c
    keys = select(c.order_key.label("key")).where(c.status == PENDING, c.order_key > (after or "")).distinct()
    return keys.order_by(c.order_key).limit(limit).cte("walk")
