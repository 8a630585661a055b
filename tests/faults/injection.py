"""The faults, each by its name: how it is injected, into which databases, and what it spares."""

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from faults.fleet import LEASE, Fleet, chosen, send
from faults.places import Server

SERVERS = ("PostgreSQL", "MariaDB")
ALL = (*SERVERS, "SQLite")


@dataclass
class Injected:
    """A fault that was injected `at` (time.monotonic). `pids`: the processes that it hit. `until`: when the database
    was there again."""

    name: str
    at: float
    pids: list[int] = field(default_factory=list)
    until: float | None = None


class Injector:
    """Injects faults into a fleet, and remembers them."""

    def __init__(self, fleet: Fleet, say: Callable[[str], object]) -> None:
        self._fleet = fleet
        self._say = say
        self._began = time.monotonic()
        self.injected: list[Injected] = []
        self.odd: list[str] = []
        """What a fault showed at once: a worker that does not end, an exit code."""
        self._frozen: set[int] = set()
        self._helpers: list[threading.Thread] = []

    def inject(self, names: dict[str, int], seconds: float) -> None:
        """Inject these faults at random, by their weights, for this time."""
        until = time.monotonic() + seconds
        possible = {name: weight for name, weight in names.items() if self._fleet.place.name in FAULTS[name].places}
        while time.monotonic() < until:
            name = random.choices(list(possible), list(possible.values()))[0]
            with contextlib.suppress(DBAPIError):
                FAULTS[name].inject(self)
            time.sleep(0.2)
            self._fleet.fill()
            time.sleep(random.uniform(0.3, 3))

    def settle(self) -> None:
        """Wake what is frozen, and wait for what still holds rows."""
        for pid in tuple(self._frozen):
            self._wake(pid)
        for helper in self._helpers:
            helper.join()

    def _note(self, name: str, pids: list[int] | None = None) -> Injected:
        self.injected.append(Injected(name, time.monotonic(), pids or []))
        self._say(f"{time.monotonic() - self._began:6.1f} s  {name}")
        return self.injected[-1]

    @property
    def _server(self) -> Server:
        """The place, for faults that only servers have."""
        place: Any = self._fleet.place
        return place

    # Processes.

    def kill_worker(self) -> None:
        self._kill("kill -9 of a worker", self._fleet.single_pids())

    def kill_child(self) -> None:
        self._kill("kill -9 of a supervised process", self._fleet.child_pids())

    def kill_supervisor(self) -> None:
        pid = self._fleet.workers["supervised"].pid
        self._note("kill -9 of a supervisor", self._fleet.descendants(pid))
        self._fleet.workers["supervised"].kill()
        self._fleet.workers["supervised"].wait()

    def _kill(self, name: str, pids: list[int]) -> None:
        for pid in chosen(pids):
            self._note(name, [pid])
            send(pid, signal.SIGKILL)
            time.sleep(random.choice((0.1, 0.3, 2)))

    def freeze(self) -> None:
        for pid in chosen([*self._fleet.single_pids(), *self._fleet.child_pids()]):
            if pid not in self._frozen:
                self._note("a worker freezes", [pid])
                self._frozen.add(pid)
                send(pid, signal.SIGSTOP)
                threading.Timer(random.choice((1.5 * LEASE, 2 * LEASE, 5 * LEASE)), self._wake, (pid,)).start()

    def _wake(self, pid: int) -> None:
        self._frozen.discard(pid)
        send(pid, signal.SIGCONT)

    def terminate(self) -> None:
        name = random.choice(list(self._fleet.workers))
        self._note("SIGTERM")
        self.odd += self._fleet.terminate(name)

    def terminate_twice(self) -> None:
        name = random.choice(list(self._fleet.workers))
        self._note("SIGTERM twice")
        self._fleet.workers[name].terminate()
        time.sleep(0.3)
        self.odd += self._fleet.terminate(name)

    # The database.

    def end_connections(self) -> None:
        self._note("connections ended by the server")
        self._server.end_connections(random.choice((0.3, 1.0)))

    def restart(self) -> None:
        self._away("restart of the server", 0)

    def go_away(self) -> None:
        self._away("database away", 8)

    def _away(self, name: str, seconds: float) -> None:
        noted = self._note(name)
        self._server.stop(random.choice(("fast", "at once")))
        time.sleep(seconds)
        self._server.start()
        noted.until = time.monotonic()

    def cut(self) -> None:
        self._note("connections cut")
        self._fleet.say("cut")

    def stall(self) -> None:
        noted = self._note("connections silent for 6 s")
        self._fleet.say("stall")
        time.sleep(6)
        self._fleet.say("cut")
        noted.until = time.monotonic()

    def lose_answers(self) -> None:
        self._note("COMMIT without an answer")
        self._fleet.say("deaf 3")

    def hold_snapshot(self) -> None:
        self._hold("old snapshot for 20 s", "SELECT count(*) FROM async_task_attempts", 20, isolation="REPEATABLE READ")

    def lock_rows(self) -> None:
        found = "SELECT id FROM async_task_attempts WHERE status = 'pending' LIMIT 30 FOR UPDATE"
        self._hold("rows locked for 3 to 9 s", found, random.uniform(3, 9), isolation="READ COMMITTED")

    def write_for_long(self) -> None:
        self._hold("the file locked by a writer for 3 s", "BEGIN IMMEDIATE", 3, isolation="AUTOCOMMIT")

    def take_all_connections(self) -> None:
        self._note("no connection left for 4 s")
        with contextlib.ExitStack() as held:
            until = time.monotonic() + 4
            while time.monotonic() < until:
                try:
                    held.enter_context(self._fleet.place.engine.connect())
                except DBAPIError:
                    time.sleep(0.1)

    def _hold(self, name: str, statement: str, seconds: float, *, isolation: str) -> None:
        def hold() -> None:
            engine = self._fleet.place.engine.execution_options(isolation_level=isolation)
            with contextlib.suppress(DBAPIError), engine.connect() as connection:
                connection.execute(text(statement))
                time.sleep(seconds)
                connection.execute(text("ROLLBACK")) if isolation == "AUTOCOMMIT" else connection.rollback()

        self._note(name)
        self._helpers.append(threading.Thread(target=hold))
        self._helpers[-1].start()


@dataclass(frozen=True)
class Fault:
    inject: Callable[[Injector], None]
    places: tuple[str, ...] = ALL


FAULTS: dict[str, Fault] = {
    "kill": Fault(Injector.kill_worker),
    "kill child": Fault(Injector.kill_child),
    "kill supervisor": Fault(Injector.kill_supervisor),
    "freeze": Fault(Injector.freeze),
    "terminate": Fault(Injector.terminate),
    "terminate twice": Fault(Injector.terminate_twice),
    "end connections": Fault(Injector.end_connections, SERVERS),
    "restart": Fault(Injector.restart, SERVERS),
    "away": Fault(Injector.go_away, SERVERS),
    "cut": Fault(Injector.cut, SERVERS),
    "silence": Fault(Injector.stall, SERVERS),
    "lost answers": Fault(Injector.lose_answers, SERVERS),
    "snapshot": Fault(Injector.hold_snapshot, SERVERS),
    "row locks": Fault(Injector.lock_rows, SERVERS),
    "writer": Fault(Injector.write_for_long, ("SQLite",)),
    "no connections": Fault(Injector.take_all_connections, ("PostgreSQL",)),
}
PROCESSES = {
    "kill": 5, "kill child": 3, "kill supervisor": 1, "freeze": 6, "terminate": 1, "terminate twice": 1,
}  # fmt: skip
DATABASE = {
    "end connections": 5, "restart": 2, "away": 1, "cut": 3, "snapshot": 1, "row locks": 2, "no connections": 1,
    "writer": 3,
}  # fmt: skip
NETWORK = {"silence": 2, "lost answers": 3}
