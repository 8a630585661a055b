"""The examples of docs/testing.md run, as a project of a user has them."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from sqlalchemy import create_engine, inspect, text

import databases
from conftest import AVAILABLE
from databases import Database

pytestmark = pytest.mark.long

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "testing.md"
URL = "postgresql+psycopg://localhost/shop_test"
BLOCK = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.only_on("postgresql")
def test_the_examples_of_the_page_on_testing_run(
    database: Database, pytestconfig: pytest.Config, tmp_path: pathlib.Path
) -> None:
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) == PAGE.read_text().count("```python")
    with databases.own(pytestconfig.stash[AVAILABLE].named(database.name)) as shop:
        for name, text in blocks:
            (tmp_path / name).write_text(text.replace(URL, shop.sync_url))
        assert " 7 passed in " in run_in(tmp_path)


@pytest.mark.only_on("postgresql")
def test_each_worker_of_xdist_has_a_database_of_its_own(
    database: Database, pytestconfig: pytest.Config, tmp_path: pathlib.Path
) -> None:
    blocks = dict(BLOCK.findall(PAGE.read_text()))
    given = f'create_engine("{URL}")'
    assert given in blocks["conftest.py"]
    own = f'__import__("one_database_each").database_of_this_worker("{URL}")'
    blocks["conftest.py"] = blocks["conftest.py"].replace(given, f"create_engine({own})")
    with databases.own(pytestconfig.stash[AVAILABLE].named(database.name)) as shop:
        for name in ("conftest.py", "one_database_each.py", "shop.py", "test_orders.py", "test_fakes.py"):
            (tmp_path / name).write_text(blocks[name].replace(URL, shop.sync_url))
        (tmp_path / "test_empty.py").write_text(EMPTY)
        engine = create_engine(shop.sync_url, isolation_level="AUTOCOMMIT")
        try:
            assert " 6 passed in " in run_in(tmp_path, "-p", "xdist", "-n", "2")
            with engine.connect() as connection:
                made = list(connection.scalars(MADE, {"names": f"{engine.url.database}%"}))
                assert made == [engine.url.database, *(f"{engine.url.database}_gw{number}" for number in (0, 1))]
                assert not inspect(connection).get_table_names()
        finally:
            with engine.connect() as connection:
                for number in (0, 1):
                    connection.execute(text(f"DROP DATABASE IF EXISTS {engine.url.database}_gw{number}"))
            engine.dispose()


EMPTY = """
import pytest

@pytest.mark.parametrize("number", [1, 2])
def test_each_worker_uses_its_database(engine, worker_id, number):
    assert engine.url.database.endswith(f"_{worker_id}")
"""
MADE = text("SELECT datname FROM pg_database WHERE datname LIKE :names ORDER BY datname")


def run_in(folder: pathlib.Path, *words: str) -> str:
    """Run pytest in this folder. What it says."""
    (folder / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "asyncio", "-p", "async_task", "--strict-markers", *words]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    return ended.stdout + ended.stderr
