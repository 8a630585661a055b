"""The attempts of `ensure(until_done=True)` with one token: numbered, so that the unique index lets one follow the last
one that has ended."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, and_, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapper, Session

from async_task.attempts.draft import Draft
from async_task.attempts.tokens import is_numbered, number_of, numbered_token
from async_task.database.current_reads import committed_scalar, first_committed, reads_current
from async_task.database.dialects import is_mariadb
from async_task.database.driver_errors import is_lock_refused
from async_task.errors import AsyncTaskError
from async_task.schema.states import Status, is_overdue, is_pending

MOST_ROUNDS = 10
"""How many attempts may be written, and end or be pruned, while one transaction looks for the last."""


@dataclass(frozen=True, slots=True)
class Numbered:
    """Those with the token of `made`, in the transaction of `own`, which writes them on `connection`."""

    own: Session
    connection: Connection
    mapper: Mapper[Any]
    made: Draft

    def open_one(self, insert: Callable[[Draft], Any]) -> Any:
        """The pending one, or `made`, written by `insert`, which returns the one that is there with its token."""
        target = self.made.form.method.target
        for name in target.aliases:
            there = first_committed(self.own, self.connection, self._find_last(name), self._table.c.id)
            if there is not None and self._is_open(there):
                return there
        there = self._last(target.name)
        for _ in range(MOST_ROUNDS):
            if there is not None and self._is_open(there):
                return there
            if there is not None and not self._keep(there):
                there = self._last(target.name)
                continue
            number = 1 if there is None else number_of(there.idempotence_token) + 1
            there = insert(self.made._replace(idempotence_token=numbered_token(self._token, number)))
            if there.id == self.made.id:
                return there
        raise AsyncTaskError(f"ensure: {MOST_ROUNDS} attempts with this token came and went meanwhile; try again")

    @property
    def _token(self) -> str:
        assert self.made.idempotence_token is not None
        return self.made.idempotence_token

    @property
    def _table(self) -> Table:
        table = self.mapper.local_table
        assert isinstance(table, Table)
        return table

    def _last(self, target: str) -> Any:
        """The last one; None without one."""
        return self.own.scalars(self._find_last(target)).first()

    def _find_last(self, target: str) -> Any:
        # It is at the end of a stretch of the unique index.
        c = self._table.c
        mine = (c.target == target, c.method_name == self.made.form.method.name)
        found: Any = select(self.mapper.base_mapper.class_).where(*mine, *is_numbered(c.idempotence_token, self._token))
        last = found.order_by(c.idempotence_token.desc()).limit(1)
        return last.execution_options(populate_existing=True)

    def _is_open(self, there: Any) -> bool:
        """Whether it is pending, also now, and may still be started. Waits for no call: a row that is locked is being
        performed."""
        if there.status is not Status.PENDING:
            return False
        table = self._table
        # Nobody starts one that is overdue, and the next sweep ends it.
        will_expire = and_(table.c.claim_id.is_(None), is_overdue(table))
        now: Any = select(and_(is_pending(table), ~will_expire)).where(table.c.id == there.id)
        if reads_current(self.connection):
            return there.expires_at is None or bool(self.connection.execute(now).scalar())
        # It may have ended since the transaction began to read. A lock would keep it from being started until this
        # transaction ends, so it is read elsewhere first, where one of this transaction is not seen.
        return bool(committed_scalar(self.connection, now)) or self._is_open_under_lock(now)

    def _is_open_under_lock(self, now: Any) -> bool:
        # SKIP LOCKED would go on to the next row, and keep others from inserting before it. The savepoint fails with a
        # server that rolls back all after a lock timeout.
        try:
            with self.connection.begin_nested():
                look = now.with_for_update(read=is_mariadb(self.connection.dialect), nowait=True)
                return bool(self.connection.execute(look).scalar())
        except DBAPIError as error:
            if not is_lock_refused(error.orig):
                raise
            return True

    def _keep(self, there: Any) -> bool:
        """Keep one that has ended from being pruned until this transaction ends: whoever did not find it would begin
        with the first number again. False if it is pruned by now."""
        c = self._table.c
        found: Any = select(c.id).where(c.id == there.id)
        return self.connection.execute(found.with_for_update(read=True, key_share=True)).first() is not None
