"""One part of the run: faults in one database, then rest, and then a look at what must hold."""

import contextlib
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from faults import application, invariants
from faults.fleet import LEASE, Fleet
from faults.injection import DATABASE, FAULTS, NETWORK, PROCESSES, Injector
from faults.places import PLACES, NotHere, Place
from faults.recovery import Recovery, recoveries

SECONDS_TO_REST = 120
NUM_POISON = 1
"""How many calls of a part kill their process."""
RATE = {"PostgreSQL": 6.0, "MariaDB": 4.0, "SQLite": 2.0}
"""Transactions a second of each producer."""


@dataclass(frozen=True)
class Part:
    """`seconds`: of faults. `is_control`: with a broken fence, which must be found out."""

    place: str
    seconds: float
    is_control: bool = False


@dataclass
class Result:
    """What a part has shown. `attempts`: their number by status. `not_run`: what this machine cannot do, and why.
    `folder`: where the logs are kept after a violation."""

    part: Part
    attempts: dict[str, int] = field(default_factory=dict)
    recoveries: list[Recovery] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    seconds_to_rest: float = 0.0
    folder: pathlib.Path | None = None

    @property
    def is_good(self) -> bool:
        """Nothing was violated. Of the control, something was, or it was not run at all."""
        return bool(self.violations) is self.part.is_control or bool(self.not_run and not self.attempts)


def play(part: Part, seed: int, say: Callable[[str], object]) -> Result:
    """Play one part. `say` is told what happens."""
    result = Result(part)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        with _open_place(part.place) as place:
            _Play(place, folder, result, seed, say).run()
    except NotHere as error:
        result.not_run.append(f"{part.place}: {error}")
    if result.is_good:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        result.folder = folder
    return result


@contextlib.contextmanager
def _open_place(name: str) -> Iterator[Place]:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="faults-database-"))
    place = None
    try:
        place = PLACES[name](folder)
        yield place
    finally:
        if place is None:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            place.close()


class _Play:
    def __init__(
        self, place: Place, folder: pathlib.Path, result: Result, seed: int, say: Callable[[str], object]
    ) -> None:
        self._place = place
        self._result = result
        self._part = result.part
        self._say = say
        self._fleet = Fleet(place, folder, is_broken=self._part.is_control, seed=seed)
        self._injector = Injector(self._fleet, say)

    def run(self) -> None:
        """Create the tables, inject faults, come to rest, and end all processes."""
        self._create_tables()
        self._note_what_is_not_run()
        violations = self._result.violations
        try:
            self._inject()
            self._rest()
        finally:
            self._injector.settle()
            violations += self._fleet.end()
        violations += self._injector.odd
        violations += invariants.violations(self._place.engine, self._fleet.marks)
        if left := self._place.connections():
            violations.append(f"connections are left: {left}")
        self._result.attempts = self._by_status()
        self._result.recoveries = list(recoveries(self._injector.injected, self._fleet.marks))

    def _create_tables(self) -> None:
        app = application.make_app(self._place.url)
        app.create_schema()
        app.close()
        application.metadata.create_all(self._place.engine)

    def _note_what_is_not_run(self) -> None:
        if self._part.is_control:
            return
        if self._place.port is not None and not self._fleet.can_shift_clocks:
            self._result.not_run.append(f"{self._place.name}: clocks that are wrong: no C compiler")
        absent = [name for name, fault in FAULTS.items() if self._place.name not in fault.places]
        if absent:
            self._result.not_run.append(f"{self._place.name}: {', '.join(absent)}: not a fault of this database")

    def _inject(self) -> None:
        """Faults of processes, then of the database alone, then all. Nobody may be charged in the second part."""
        seconds = self._part.seconds
        self._fleet.begin(RATE[self._place.name], num_poison=0 if self._part.is_control else NUM_POISON)
        time.sleep(2)
        if self._part.is_control:
            self._injector.inject({"freeze": 1}, seconds)
            return
        self._injector.inject(PROCESSES, seconds * 0.4)
        self._injector.settle()
        self._wait_until(self._poison_has_ended, SECONDS_TO_REST)
        time.sleep(4 * LEASE)  # crashes of the first part are charged by then
        before, hit = len(self._crashes()), self._pids_hit()
        self._injector.inject(DATABASE, seconds * 0.3)
        time.sleep(4 * LEASE)
        if charged := [one for one in self._crashes()[before:] if not any(f":{pid}:" in one for pid in hit)]:
            self._result.violations.append(f"{len(charged)} crashes while only the database failed: {charged[-1]}")
        self._injector.inject(PROCESSES | DATABASE | NETWORK, seconds * 0.3)

    def _pids_hit(self) -> set[int]:
        """The processes that a fault or a poisonous call has hit: their claims may be charged later."""
        poison = {one["pid"] for one in invariants.marks_in(self._fleet.marks) if one["kind"] == "poison"}
        return poison | {pid for fault in self._injector.injected for pid in fault.pids}

    def _rest(self) -> None:
        self._fleet.stop_producing()
        self._injector.settle()
        self._fleet.fill()
        began = time.monotonic()
        self._wait_until(lambda: invariants.is_at_rest(self._place.engine), SECONDS_TO_REST)
        self._result.seconds_to_rest = time.monotonic() - began
        self._say(f"at rest {self._result.seconds_to_rest:.0f} s after the last fault")

    def _wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(DBAPIError):
                if condition():
                    return
            time.sleep(0.3)

    def _poison_has_ended(self) -> bool:
        table = invariants.A
        with self._place.engine.connect() as connection:
            found = connection.scalars(select(table.c.status).where(table.c.target == "faults.poison")).all()
        return len(found) >= NUM_POISON and "pending" not in found

    def _crashes(self) -> list[str]:
        for _ in range(100):
            with contextlib.suppress(DBAPIError):
                return invariants.crashes(self._place.engine)
            time.sleep(0.3)
        raise RuntimeError("the database does not answer")

    def _by_status(self) -> dict[str, int]:
        table = invariants.A
        with self._place.engine.connect() as connection:
            found = connection.execute(select(table.c.status, func.count()).group_by(table.c.status)).all()
        return {str(getattr(status, "value", status)): number for status, number in found}
