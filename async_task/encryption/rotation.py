"""Key rotation: arguments under an old key are encrypted again under the first one, page by page, while workers run.

1. Read a page of rows, in the order of their ids, whose text is under another key than it should be. No lock.
2. Decrypt and encrypt them in memory, with no transaction open. A row that cannot be decrypted is reported and left.
3. Write in one short transaction, only the rows that nobody has locked, and whose text is still the one that was read.
4. Repeat from the beginning, for the rows that were locked, until none is left.

So locks last for the writes only, and no other transaction is waited for.
There is no state between runs: a row's text identifies its key.
"""

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Engine, Table, and_, bindparam, case, false, func, literal, or_, select, update

from async_task.database.transactions import retry_transient
from async_task.encryption.ciphers import STORED_HEAD, KeyedEncryptor, key_id_stored, stored_head_of
from async_task.encryption.encryptors import (
    Encryptor,
    NullEncryptor,
    context_of,
    encryptor_named,
    known_encryptors,
    seal,
    unseal,
)
from async_task.errors import AsyncTaskError
from async_task.schema.states import is_emptied, is_pending

PATIENCE = 60.0
"""Seconds without progress after which locked rows are left to the next run: a call may lock its row for that long."""


@dataclass(frozen=True, slots=True)
class RotationReport:
    """What a rotation did. `rotated`: the number of attempts. `left`: how many are still to be rotated (locked by
    others, after a stop, or in a dry run). `unreadable`: why attempts could not be decrypted or encrypted, by id."""

    rotated: int = 0
    left: int = 0
    unreadable: dict[uuid.UUID, str] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Selection:
    """Which attempts to rotate. `encryptor`: only those under this one. `policy`: returns the encryptor's name in the
    policy of a target and method, None without; rows under another encryptor than that are rotated too."""

    encryptor: str | None = None
    pending_only: bool = False
    policy: Callable[[str, str], str | None] | None = None


@dataclass(frozen=True, slots=True)
class KeyUse:
    """How many attempts are under a key. `key_id`: None if the encryptor has no keys, or did not write the text.
    `is_first`: new attempts are under it. `is_known`: this process has it."""

    encryptor: str
    key_id: str | None
    is_first: bool
    is_known: bool
    pending: int = 0
    total: int = 0


def rotate(
    engine: Engine, table: Table, selection: Selection, *, page: int,
    stop: threading.Event | None = None, tell: Callable[[int], object] | None = None,
) -> RotationReport:  # fmt: skip
    """Rotate the selected attempts, `page` rows in a transaction, until none is left or `stop` is set.

    `tell` is called after each page with the number of rotated rows. Raises ConfigurationError without keys, and
    UnknownEncryptor.
    """
    began = time.monotonic()
    run = _Run(
        engine, table, _wanted(engine, table, selection), page, stop or threading.Event(), tell or (lambda _: None)
    )
    run.until_done()
    left = 0 if run.is_done else _count(engine, table, run.wanted) - len(run.unreadable)
    return RotationReport(run.rotated, max(left, 0), run.unreadable, time.monotonic() - began)


def count(engine: Engine, table: Table, selection: Selection) -> int:
    """The number of attempts that `rotate` would rotate."""
    return _count(engine, table, _wanted(engine, table, selection))


def key_head(table: Table) -> ColumnElement[str]:
    """A column "head": the beginning of the row's text, which identifies its key; "" if its encryptor has no keys or is
    not known here."""
    keyed = [one.name for one in known_encryptors() if isinstance(one, KeyedEncryptor)]
    return case((table.c.encryptor.in_(keyed), stored_head(table)), else_="").label("head")


def key_uses(engine: Engine, table: Table) -> list[KeyUse]:
    """Every key that this process knows, or that a row is under, sorted by encryptor. Reads the whole table."""
    encryptors = {one.name: one for one in known_encryptors()}
    head = key_head(table)
    pending = func.sum(case((is_pending(table), 1), else_=0))
    query = select(table.c.encryptor, head, pending, func.count()).group_by(table.c.encryptor, head)
    with engine.begin() as connection:
        found = connection.execute(query).all()
    uses = {(one.encryptor, one.key_id): one for name in encryptors for one in _unused(encryptors[name])}
    for name, stored, waiting, total in found:
        key_id = key_id_stored(stored)
        known = uses.get((name, key_id), KeyUse(name, key_id, is_first=False, is_known=False))
        # Several heads may have the key id None: texts that the encryptor did not write.
        sums = {"pending": known.pending + int(waiting), "total": known.total + total}
        uses[name, key_id] = replace(known, **sums)
    return sorted(uses.values(), key=lambda use: (use.encryptor, not use.is_first, use.key_id or ""))


def _unused(encryptor: Encryptor) -> Iterator[KeyUse]:
    if isinstance(encryptor, KeyedEncryptor):
        for number, key_id in enumerate(encryptor.keys.ids):
            yield KeyUse(encryptor.name, key_id, is_first=number == 0, is_known=True)
    else:
        yield KeyUse(encryptor.name, None, is_first=False, is_known=True)


class _Run:
    """A running rotation."""

    def __init__(
        self, engine: Engine, table: Table, wanted: "_Wanted", page: int, stop: threading.Event,
        tell: Callable[[int], object],
    ) -> None:  # fmt: skip
        self.engine, self.table, self.wanted, self.page = engine, table, wanted, page
        self.stop, self.tell = stop, tell
        self.rotated = 0
        self.unreadable: dict[uuid.UUID, str] = {}
        self.is_done = False

    def until_done(self) -> None:
        pause, since = 0.05, time.monotonic()
        while not self.stop.is_set() and time.monotonic() - since < PATIENCE:
            before = self.rotated
            self.is_done = self._pass() and not self.stop.is_set()
            if self.is_done:
                return
            if self.rotated > before:
                pause, since = 0.05, time.monotonic()
            self.stop.wait(pause)
            pause = min(2 * pause, 2.0)

    def _pass(self) -> bool:
        """Go over all rows once. Returns whether all changes could be written: none was locked or changed by others."""
        after, is_all = None, True
        while not self.stop.is_set():
            rows = retry_transient(partial(_read, self.engine, self.table, self.wanted.condition, after, self.page))
            sealed = dict(self._resealed(row) for row in rows if row.id not in self.unreadable)
            changes = {one: values for one, values in sealed.items() if values is not None}
            written = retry_transient(partial(_write, self.engine, self.table, changes)) if changes else 0
            self.rotated += written
            is_all = is_all and written == len(changes)
            self.tell(self.rotated)
            if len(rows) < self.page:
                break
            after = rows[-1].id
        return is_all

    def _resealed(self, row: Any) -> tuple[uuid.UUID, dict[str, Any] | None]:
        context = context_of(row.id, row.target, row.method_name)
        try:
            text = unseal(row.method_args, encryptor_named(row.encryptor), context)
            sealer = self.wanted.encryptor_of(row)
            return row.id, {"old": row.method_args, "new": seal(text, sealer, context), "under": sealer.name}
        except AsyncTaskError as error:
            self.unreadable[row.id] = f"{type(error).__name__}: {error}"
            return row.id, None


class _Wanted:
    """Which rows are to be rotated, and the encryptor that each row should have."""

    def __init__(self, condition: ColumnElement[bool], by_call: dict[tuple[str, str], Encryptor]) -> None:
        self.condition = condition
        self._by_call = by_call

    def encryptor_of(self, row: Any) -> Encryptor:
        return self._by_call.get((row.target, row.method_name)) or encryptor_named(row.encryptor)


def _wanted(engine: Engine, table: Table, selection: Selection) -> _Wanted:
    within = [is_pending(table)] if selection.pending_only else []
    if selection.encryptor is not None:
        encryptor_named(selection.encryptor)
        within.append(table.c.encryptor == selection.encryptor)
    calls = (table.c.target, table.c.method_name) if selection.policy else ()
    with engine.begin() as connection:
        found = connection.execute(select(table.c.encryptor, *calls).distinct().where(*within)).all()
    by_call = _by_policy(selection.policy, {(row.target, row.method_name) for row in found}) if selection.policy else {}
    names = {row.encryptor for row in found}
    old = or_(false(), *(_under_an_old_key(table, name) for name in names))
    elsewhere = [_under_another_encryptor(table, call, encryptor) for call, encryptor in by_call.items()]
    return _Wanted(and_(*within, or_(old, *elsewhere)), by_call)


def _by_policy(
    policy: Callable[[str, str], str | None], calls: set[tuple[str, str]]
) -> dict[tuple[str, str], Encryptor]:
    """The encryptor of each call, if its policy names one that this process has."""
    by_call = {}
    for call in calls:
        name = policy(*call)
        with contextlib.suppress(AsyncTaskError):
            if name is not None and name != NullEncryptor.name:
                by_call[call] = encryptor_named(name)
    return by_call


def _under_an_old_key(table: Table, name: str) -> ColumnElement[bool]:
    """Rows under this encryptor, but not under its first key. All of its rows if it is not known here, so that they are
    reported; none if it has no keys."""
    under = table.c.encryptor == name
    try:
        encryptor = encryptor_named(name)
    except AsyncTaskError:
        return under
    if not isinstance(encryptor, KeyedEncryptor):
        return false()
    return and_(under, stored_head(table) != stored_head_of(encryptor.keys.first.id))


def _under_another_encryptor(table: Table, call: tuple[str, str], encryptor: Encryptor) -> ColumnElement[bool]:
    target, method_name = call
    mine = (table.c.target == target, table.c.method_name == method_name)
    return and_(*mine, table.c.encryptor != encryptor.name, ~is_emptied(table))


def stored_head(table: Table) -> ColumnElement[str]:
    """The beginning of a row's text: it identifies the key, if its encryptor has keys."""
    return func.substr(table.c.method_args, literal(1), literal(STORED_HEAD))


def _count(engine: Engine, table: Table, wanted: _Wanted) -> int:
    with engine.begin() as connection:
        return connection.scalar(select(func.count()).select_from(table).where(wanted.condition)) or 0


def _read(
    engine: Engine, table: Table, condition: ColumnElement[bool], after: uuid.UUID | None, page: int
) -> list[Any]:
    columns = (table.c.id, table.c.target, table.c.method_name, table.c.method_args, table.c.encryptor)
    behind = () if after is None else (table.c.id > after,)
    with engine.begin() as connection:
        return list(connection.execute(select(*columns).where(condition, *behind).order_by(table.c.id).limit(page)))


def _write(engine: Engine, table: Table, changes: dict[uuid.UUID, dict[str, Any]]) -> int:
    """Write the rows that nobody has locked and that still have the text that was read; returns their number."""
    free = (
        select(table.c.id, table.c.method_args)
        .where(table.c.id.in_(list(changes)))
        .order_by(table.c.id)
        .with_for_update(skip_locked=True, key_share=True)
    )
    text = table.c.method_args.type
    change = (
        update(table)
        .where(table.c.id == bindparam("row_id"), table.c.method_args == bindparam("old", type_=text))
        .values(method_args=bindparam("new", type_=text), encryptor=bindparam("under"))
    )
    with engine.begin() as connection:
        found = connection.execute(free).all()
        still = [{"row_id": row.id, **changes[row.id]} for row in found if row.method_args == changes[row.id]["old"]]
        if still:
            connection.execute(change, still)
        return len(still)
