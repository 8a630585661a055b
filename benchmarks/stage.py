"""What a measure uses: the server, new databases, jobs in them, and workers."""

import contextlib
import copy
import itertools
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from psycopg import Connection
from psycopg.sql import SQL, Identifier, Literal

from benchmarks.child import Broken, Child, Worker, worker
from benchmarks.places import ELSEWHERE, HOME, Place
from benchmarks.plan import Plan
from benchmarks.server import Server
from benchmarks.system import Cannot

PATIENCE = 60.0
DAY = 86_400.0


class Stage:
    """`names`: the measured systems. `place`: where databases are made, at first the `server`. `places`: the other ones
    that were used so far."""

    def __init__(self, server: Server, folder: pathlib.Path, plan: Plan, names: list[str]) -> None:
        self.server, self.folder, self.plan, self.names = server, folder, plan, names
        self.place: Place = server
        self.places: dict[str, Place] = {}
        self._children = {name: Child(name, folder / f"{name.replace('/', '-')}.log") for name in names}
        self._templates: dict[str, str] = {}
        self._numbers = itertools.count()

    def close(self) -> None:
        for child in self._children.values():
            child.close()

    def at(self, place: str) -> "Stage":
        """The same stage on another database; "": this one. Raises Cannot if that database does not answer.

        Only where databases are made differs. So the measures are the same on all databases, and jobs need not be
        copied in three dialects.
        """
        if not place:
            return self
        if place != HOME and place not in self.places:
            self.places[place] = ELSEWHERE[place](self.folder)
        there = copy.copy(self)
        there.place, there.plan = self.places.get(place, self.server), self.plan.for_each_place()
        return there

    def ask(self, name: str, do: str, **words: Any) -> Any:
        """The answer of the system. Raises Cannot and Broken."""
        return self._children[name].ask(do, **words)

    @contextlib.contextmanager
    def database(self, name: str) -> Iterator[str]:
        """A new database with the tables of this system. It is dropped at the end."""
        database = f"async_task_bench_{os.getpid()}_{next(self._numbers)}"
        with contextlib.ExitStack() as until:
            until.callback(self.place.drop, database)
            if self._is_at_home:
                self.server.create(database, self._template(name))
            else:
                self.place.create(database)
                self.ask(name, "prepare", url=self.place.url(database))
            yield database

    def fill(self, name: str, database: str, count: int, kind: str = "noop", *, delay: float = 0.0,
             fresh: dict[str, str] | None = None) -> None:  # fmt: skip
        """Write `count` jobs of a kind.

        On PostgreSQL the system enqueues one job and the others are copies of its row, so that a million rows take
        seconds and are alike for all systems. On other databases the system enqueues all of them.
        """
        door = 1 if self._is_at_home else count
        self.ask(name, "enqueue", url=self.place.url(database), kind=kind, numbers=[0] * door, delay=delay)
        if door == count:
            return
        changes = {**self.ask(name, "fresh"), **(fresh or {})}
        newest = "ctid = (SELECT max(ctid) FROM {table})"  # PostgreSQL 14 and newer
        with self.server.connect(database) as connection:
            _copy(connection, self.ask(name, "table"), count - 1, changes, newest, self.ask(name, "also"))

    def fill_finished(self, name: str, database: str, count: int, *, fresh: dict[str, str] | None = None) -> None:
        """Write `count` finished jobs, with `fresh` values in columns. Raises Cannot if finished jobs leave the table
        of the system."""
        done = self.ask(name, "finished")
        if done is None:
            raise Cannot("finished jobs leave its table")
        self.ask(name, "enqueue", url=self.server.url(database), kind="noop", numbers=[0], delay=0.0)
        with self.worker(name, database) as one:
            self.await_(lambda: self.unfinished(name, database) == 0, "one job was done", [one])
        changes = {**self.ask(name, "fresh"), **(fresh or {})}
        with self.server.connect(database) as connection:
            _copy(connection, self.ask(name, "table"), count - 1, changes, done, self.ask(name, "also"))

    @contextlib.contextmanager
    def held(self, name: str, database: str) -> Iterator[None]:
        """Lock the jobs table of the system, so that nothing reads or writes it meanwhile."""
        with self.server.connect(database) as connection, connection.transaction():
            table = SQL(".").join(map(Identifier, self.ask(name, "table").split(".")))
            connection.execute(SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
            yield

    def unfinished(self, name: str, database: str) -> int:
        return self.place.number(database, self.ask(name, "unfinished"))

    @contextlib.contextmanager
    def worker(self, name: str, database: str, *, url: str | None = None, **options: Any) -> Iterator[Worker]:
        """A running worker process of this system."""
        with worker(name, url or self.place.url(database), self.folder, options) as one:
            yield one

    def await_(
        self, condition: Callable[[], bool], what: str, workers: list[Worker], patience: float = PATIENCE,
        every: float = 0.002,
    ) -> float:  # fmt: skip
        """Wait until the condition is true; return when that was (monotonic). Raises Broken if it stays false, or a
        worker ends."""
        until, look = time.monotonic() + patience, 0
        while not condition():
            look += 1
            if look % 50 == 0:
                for one in workers:
                    one.check()
            if time.monotonic() > until:
                raise Broken(f"after {patience:.0f} s it was still not so that {what}")
            time.sleep(every)
        return time.monotonic()

    @property
    def _is_at_home(self) -> bool:
        return self.place is self.server

    def _template(self, name: str) -> str:
        if name not in self._templates:
            database = f"template_{next(self._numbers)}"
            self.server.create(database)
            self.ask(name, "prepare", url=self.server.url(database))
            self._templates[name] = database
        return self._templates[name]


def _copy(
    connection: Connection[Any], table: str, count: int, fresh: dict[str, str], which: str, also: list[str]
) -> None:
    """Insert `count` copies of the one row, with `fresh` values in columns that must differ."""
    if count < 1:
        return
    schema, _, name = table.rpartition(".")
    known = connection.execute(
        "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = coalesce(%s, 'public') "
        "AND table_name = %s AND is_generated = 'NEVER' AND is_identity = 'NO'",
        [schema or None, name],
    ).fetchall()
    columns = [column for column, _ in known if fresh.get(column) != "DEFAULT"]
    new = SQL(", ").join(_raw(fresh[one]) if one in fresh else SQL("one.") + Identifier(one) for one in columns)
    statement = (
        "INSERT INTO {table} ({columns}) SELECT {new} FROM (SELECT * FROM {table} WHERE {which} LIMIT 1) one, "
        "generate_series(1, {count}) n"
    )
    place, names = Identifier(schema or "public", name), SQL(", ").join(map(Identifier, columns))
    row = _raw(which).format(table=place)
    connection.execute(SQL(statement).format(table=place, columns=names, new=new, which=row, count=Literal(count)))
    for more in also:
        connection.execute(_raw(more))


def _raw(text: Any) -> SQL:
    """SQL text that one of our own files brings, unchanged."""
    return SQL(text)
