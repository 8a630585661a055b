"""The databases of the tests: they answer, are separate, are emptied, and leave nothing behind."""

import asyncio
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table, create_engine, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

import databases
import launch_postgres
from databases import Database

pytestmark = pytest.mark.long

SECONDS_TO_END = 20


def test_a_database_answers_through_the_sync_driver(database: Database):
    engine = create_engine(database.sync_url)
    with engine.connect() as connection:
        assert connection.scalar(select(1)) == 1
    engine.dispose()


def test_a_database_answers_through_the_async_driver(database: Database):
    async def ask() -> object:
        engine = create_async_engine(database.async_url)
        async with engine.connect() as connection:
            answer = await connection.scalar(select(1))
        await engine.dispose()
        return answer

    assert asyncio.run(ask()) == 1


def test_two_owners_on_one_server_do_not_see_each_other(database: Database):
    table = Table("a_table", MetaData(), Column("id", Integer, primary_key=True))
    with databases.own(database) as first, databases.own(database) as second:
        for owned in (first, second):
            engine = create_engine(owned.sync_url)
            table.create(engine)  # the second would fail if it were the first's
            engine.dispose()


def test_an_owned_database_is_dropped_although_a_transaction_is_open_in_it(database: Database):
    with databases.own(database) as owned:
        engine = create_engine(owned.sync_url)
        left_open = engine.connect()
        left_open.execute(text("CREATE TABLE a_table (id integer)"))
        left_open.execute(text("INSERT INTO a_table VALUES (1)"))
    left_open.invalidate()
    left_open.close()
    with pytest.raises(OperationalError):
        engine.connect()
    engine.dispose()


def test_rows_are_deleted_children_first(database: Database):
    metadata = MetaData()
    parent = Table("parent", metadata, Column("id", Integer, primary_key=True))
    child = Table("child", metadata, Column("parent_id", ForeignKey("parent.id"), primary_key=True))
    with databases.own(database) as owned:
        engine = databases.impatient_engine(owned)
        metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(parent.insert().values(id=1))
            connection.execute(child.insert().values(parent_id=1))
        with engine.begin() as connection:
            databases.delete_rows(connection, metadata)
        with engine.connect() as connection:
            assert [connection.execute(select(table)).all() for table in (parent, child)] == [[], []]
        engine.dispose()


def test_emptying_the_tables_does_not_wait_forever_for_an_open_transaction(database: Database):
    metadata = MetaData()
    table = Table("a_table", metadata, Column("id", Integer, primary_key=True))
    with databases.own(database) as owned:
        engine = databases.impatient_engine(owned, seconds=1)
        metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(table.insert().values(id=1))
        with create_engine(owned.sync_url).connect() as left_open:
            left_open.execute(table.update().values(id=2))
            with pytest.raises(OperationalError), engine.begin() as connection:
                databases.delete_rows(connection, metadata)
        left_open.engine.dispose()
        engine.dispose()


def test_a_private_server_never_runs_as_root_needs_no_privileges_and_leaves_nothing_behind():
    with launch_postgres.server() as running:
        _assert_it_answers(running)
        assert _is_there(running.pid)
        assert pathlib.Path(running.home).exists()
        owner = pathlib.Path(running.home, "data").stat().st_uid
        assert owner == (os.geteuid() or launch_postgres.UNPRIVILEGED)
        _assert_another_one_starts_without_privileges(running.binaries)  # as root, they may have had to be copied
    assert not _is_there(running.pid)
    assert not pathlib.Path(running.home).exists()


def test_a_private_server_leaves_nothing_behind_when_its_user_fails():
    with pytest.raises(ZeroDivisionError), launch_postgres.server() as running:
        raise ZeroDivisionError
    assert not _is_there(running.pid)
    assert not pathlib.Path(running.home).exists()


def test_a_guarded_server_ends_with_its_user_even_if_the_user_is_killed():
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_USE, str(pathlib.Path(__file__).parents[1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as user:
        assert user.stdout
        running = launch_postgres.Running(**json.loads(user.stdout.readline()))
        _assert_it_answers(running)
        user.send_signal(signal.SIGKILL)
    too_late = time.monotonic() + SECONDS_TO_END
    while _is_there(running.pid) or pathlib.Path(running.home).exists():
        assert time.monotonic() < too_late, "the server outlived the process that asked for it"
        time.sleep(0.01)


def test_without_binaries_one_sentence_is_raised_and_no_folder_is_left(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(launch_postgres.NoServer, match="no PostgreSQL binaries"), launch_postgres.server([]):
        pass
    assert list(tmp_path.iterdir()) == []


UNPRIVILEGED_USE = """
import json, os, pathlib, sys
sys.path.insert(0, sys.argv[1])
import launch_postgres
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(launch_postgres.UNPRIVILEGED), os.setuid(launch_postgres.UNPRIVILEGED)
with launch_postgres.server([("given", pathlib.Path(sys.argv[2]))]) as running:
    print(json.dumps({"owner": os.stat(running.home).st_uid}))
"""

KILLED_USE = """
import dataclasses, json, sys
sys.path.insert(0, sys.argv[1])
import launch_postgres
with launch_postgres.guarded_server() as running:
    print(json.dumps(dataclasses.asdict(running)), flush=True)
    sys.stdin.read()
"""


def _assert_another_one_starts_without_privileges(binaries: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED_USE, str(pathlib.Path(__file__).parents[1]), binaries],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["owner"] != 0


def _assert_it_answers(running: launch_postgres.Running) -> None:
    engine = create_engine(running.url)
    with engine.connect() as connection:
        assert connection.scalar(select(1)) == 1
    engine.dispose()


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
