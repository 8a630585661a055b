"""The examples of docs/testing.md run, as a project of a user has them."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import databases
from conftest import AVAILABLE
from databases import Database

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
        (tmp_path / "pytest.ini").write_text(
            "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
        )
        command = [sys.executable, "-m", "pytest", "-p", "asyncio", "-p", "async_task", "--strict-markers"]
        env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        ended = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
        )  # fmt: skip
    assert " 7 passed in " in ended.stdout, ended.stdout + ended.stderr
