"""Behind a pooler in transaction mode, where each transaction may have another session of the server."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, make_url, select
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt
from databases import Database
from elsewhere import await_
from outbox import Client, act, acts, effect
from workers import counted, make, working

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
pytestmark = [
    pytest.mark.only_on("postgresql"),
    pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed here (the package pgbouncer)"),
]
SETTINGS = """
[databases]
* = host={host} port={port} user={user} {password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
"""


@pytest.fixture
def pooled(database: Database, engine: Engine) -> Iterator[str]:
    """The URL of this test's database through a PgBouncer with two sessions."""
    url = make_url(database.sync_url)
    host, port = (str(url.query.get(name) or getattr(url, name) or "") for name in ("host", "port"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own_port = free.getsockname()[1]
    password = f"password={url.password}" if url.password else ""
    text = SETTINGS.format(
        host=host or "127.0.0.1", port=port or 5432, user=url.username, password=password, own_port=own_port
    )
    with tempfile.TemporaryDirectory(prefix="async-task-pgbouncer-") as folder:
        settings = pathlib.Path(folder, "pgbouncer.ini")
        settings.write_text(text)
        given: dict[str, Any] = {}
        if os.getuid() == 0:  # PgBouncer refuses to run as root
            owner = pathlib.Path(host).stat().st_uid if host.startswith("/") else 0
            given = {"user": owner or 65534, "extra_groups": []}
            for one in (folder, settings):
                os.chown(one, given["user"], -1)
        with subprocess.Popen([str(PGBOUNCER), "-q", str(settings)], **given) as pooler:
            try:
                await_(lambda: _answers(own_port), "the pooler listens")
                yield url.set(host="127.0.0.1", port=own_port, query={}).render_as_string(hide_password=False)
            finally:
                pooler.terminate()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _everything(engine: Engine) -> int:
    """Attempts of each kind of call; how many."""
    acts[:] = [lambda: None]
    make(engine, act, 40)
    make(engine, effect, 40)
    make(engine, Client, 20, method_name="fulfill_later", method_args={"customer_token": "a", "order_number": 1})
    with Session(engine) as session, session.begin():
        for _ in range(5):
            Attempt.options(session=session, order_key="one").call(Client.ping)
    return 105


def _counters(engine: Engine) -> set[tuple[int, int, int]]:
    with engine.connect() as connection:
        columns = (Attempt.num_attempts, Attempt.num_errors, Attempt.num_crashes)
        return {(row[0], row[1], row[2]) for row in connection.execute(select(*columns))}


def test_a_worker_without_listen_performs_everything_once(
    engine: Engine, pooled: str, caplog: pytest.LogCaptureFixture
) -> None:
    number = _everything(engine)
    with contextlib.closing(AsyncTask(pooled)) as app, working(app, listen=False, concurrency=4):
        await_(lambda: counted(engine) == {"succeeded": number}, "all are done")
    assert _counters(engine) == {(1, 0, 0)}
    assert [one.getMessage() for one in caplog.records if one.levelname != "INFO"] == []


def test_collisions_of_prepared_statements_charge_nothing(engine: Engine, pooled: str) -> None:
    """On an engine of one's own, on which psycopg prepares statements."""
    own = create_engine(pooled)
    number = 30
    make(engine, effect, number)
    with working(AsyncTask(own), listen=False, concurrency=4):
        await_(lambda: counted(engine) == {"succeeded": number}, "all are done")
    own.dispose()
    assert {(errors, crashes) for _, errors, crashes in _counters(engine)} == {(0, 0)}
