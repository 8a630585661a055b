"""The private databases that faults are injected into. Each has a folder of its own, and can be stopped."""

import abc
import contextlib
import pathlib
import shutil
import signal
import socket
import subprocess
import time
from typing import Any, Literal, Protocol

from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

import launch_postgres

SECONDS_TO_START = 60
Stop = Literal["fast", "at once"]


class NotHere(Exception):
    """This machine cannot run such a database; the message says why."""


class Place(Protocol):
    """A database. `port` is None if it has no server."""

    name: str
    port: int | None

    @property
    def url(self) -> str: ...
    @property
    def async_url(self) -> str: ...
    @property
    def engine(self) -> Engine:
        """For the tables of the invariants. It keeps no connection."""
        ...

    def connections(self) -> int:
        """How many clients are connected, besides this one."""
        ...


class Server(Place, Protocol):
    """A database that can be stopped."""

    def stop(self, how: Stop) -> None: ...
    def start(self) -> None: ...
    def end_connections(self, share: float) -> None:
        """End about this share of the clients' connections."""
        ...


class _Server(abc.ABC):
    """A server process in a folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self._who = launch_postgres.owner_of(folder)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abc.abstractmethod
    def url(self) -> str: ...

    @property
    def engine(self) -> Engine:
        return create_engine(self.url, poolclass=NullPool)

    def _launch(self, *words: str | pathlib.Path) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                env=launch_postgres.server_environment(self.folder), **self._who,
            )  # fmt: skip
        until = time.monotonic() + SECONDS_TO_START
        while not self._answers():
            if time.monotonic() > until or self._process.poll() is not None:
                raise NotHere((self.folder / "server.log").read_text(errors="replace")[-500:])
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with self.engine.connect() as connection:
                return bool(connection.scalar(text("SELECT 1")))
        except DBAPIError:
            return False

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None

    def close(self) -> None:
        """End it, and delete its folder."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._end(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


class PostgreSQL(_Server):
    name = "PostgreSQL"

    def __init__(self, folder: pathlib.Path) -> None:
        super().__init__(folder)
        try:
            _, self._binaries = launch_postgres.first_that_runs(launch_postgres.installed(), folder, self._who)
            launch_postgres.initialise(self._binaries, folder, self._who)
        except launch_postgres.NoServer as error:
            raise NotHere(str(error)) from error
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def async_url(self) -> str:
        return self.url

    def start(self) -> None:
        settings = (f"port={self.port}", "listen_addresses=127.0.0.1", "max_connections=90", "shared_buffers=128MB")
        options = [word for one in settings for word in ("-c", one)]
        self._launch(self._binaries / "postgres", "-D", self.folder / "data", "-k", str(self.folder), *options)

    def stop(self, how: Stop) -> None:
        self._end(signal.SIGINT if how == "fast" else signal.SIGQUIT)

    def end_connections(self, share: float) -> None:
        with self.engine.begin() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' AND random() < :share"
                ),
                {"share": share},
            )

    def connections(self) -> int:
        return _number(
            self.engine,
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
        )


class MariaDB(_Server):
    name = "MariaDB"

    def __init__(self, folder: pathlib.Path) -> None:
        super().__init__(folder)
        programs = {name: shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/bin") for name in _MARIADB}
        if absent := [name for name, found in programs.items() if found is None]:
            raise NotHere(f"no {' and no '.join(absent)} on this machine")
        self._server, install = (str(programs[name]) for name in _MARIADB)
        made = subprocess.run(
            [install, "--no-defaults", f"--datadir={folder}/data", "--auth-root-authentication-method=normal",
             "--skip-test-db"],
            check=False, capture_output=True, text=True, cwd=folder, **self._who,
        )  # fmt: skip
        if made.returncode:
            raise NotHere(f"mariadb-install-db failed: {made.stderr.strip()[-300:]}")
        self.start()
        with create_engine(self._url("mysql+pymysql", ""), poolclass=NullPool).begin() as connection:
            connection.execute(text("CREATE DATABASE IF NOT EXISTS faults CHARACTER SET utf8mb4"))

    @property
    def url(self) -> str:
        return self._url("mysql+pymysql", "faults")

    @property
    def async_url(self) -> str:
        return self._url("mysql+aiomysql", "faults")

    def _url(self, driver: str, database: str) -> str:
        return f"{driver}://root@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        self._launch(
            self._server, "--no-defaults", f"--datadir={self.folder}/data", f"--port={self.port}",
            "--bind-address=127.0.0.1", f"--socket={self.folder}/socket", "--innodb-flush-log-at-trx-commit=2",
            "--max-connections=90", f"--pid-file={self.folder}/pid",
        )  # fmt: skip

    def _answers(self) -> bool:
        try:
            with create_engine(self._url("mysql+pymysql", ""), poolclass=NullPool).connect() as connection:
                return bool(connection.scalar(text("SELECT 1")))
        except DBAPIError:
            return False

    def stop(self, how: Stop) -> None:
        self._end(signal.SIGTERM if how == "fast" else signal.SIGKILL)

    def end_connections(self, share: float) -> None:
        found = "SELECT id FROM information_schema.processlist WHERE id <> connection_id() AND db = 'faults'"
        with self.engine.connect() as connection:
            for number in connection.scalars(text(f"{found} AND rand() < :share"), {"share": share}).all():
                with contextlib.suppress(DBAPIError):  # it has gone meanwhile
                    connection.execute(text(f"KILL {number}"))

    def connections(self) -> int:
        return _number(
            self.engine,
            "SELECT count(*) FROM information_schema.processlist WHERE id <> connection_id() AND db = 'faults'",
        )


_MARIADB = ("mariadbd", "mariadb-install-db")


class SQLite:
    """A file."""

    name = "SQLite"
    port = None

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder}/faults.sqlite"

    @property
    def async_url(self) -> str:
        return f"sqlite+aiosqlite:///{self.folder}/faults.sqlite"

    @property
    def engine(self) -> Engine:
        return create_engine(self.url, poolclass=NullPool, connect_args={"timeout": 60})

    def connections(self) -> int:
        return 0

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


PLACES: dict[str, Any] = {kind.name: kind for kind in (PostgreSQL, MariaDB, SQLite)}


def _number(engine: Engine, query: str) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text(query)) or 0)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
