"""The commands of the README work as they are printed, when a user pastes them into an empty folder."""

import contextlib
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from sqlalchemy import create_engine, text

import databases
from conftest import AVAILABLE
from databases import Database
from elsewhere import Program, await_
from said import Run

pytestmark = pytest.mark.long

README = pathlib.Path(__file__).parents[2] / "README.md"
URL = "postgresql+psycopg://localhost/shop"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def steps(section: str = "Use it") -> list[tuple[str, str]]:
    """The code blocks of a section, first to last: (language, text)."""
    section = README.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return BLOCK.findall(section)


@pytest.mark.only_on("postgresql")
def test_the_five_steps_work_when_they_are_pasted(
    database: Database, pytestconfig: pytest.Config, tmp_path: pathlib.Path
) -> None:
    with databases.own(pytestconfig.stash[AVAILABLE].named(database.name)) as shop:
        printed = [_paste(kind, _with_url(block, shop.sync_url), tmp_path) for kind, block in steps()]
        engine = create_engine(shop.sync_url)
        with engine.connect() as connection:
            rows = connection.execute(text("SELECT status, count(*) FROM async_task_attempts GROUP BY status")).all()
            assert [tuple(row) for row in rows] == [("succeeded", 2)]
            assert connection.scalar(text("SELECT is_paid FROM orders WHERE number = 7355608")) is True
        engine.dispose()
    said = "".join(printed)
    for words in ("async_task_tables.py", "All fits.", "packed 7355608 for c-81 under ", "2 attempts: 2 succeeded."):
        assert words in said
    assert "drop_table" not in "".join(one.read_text().split("def downgrade")[0] for one in _revisions(tmp_path))


def _with_url(block: str, url: str) -> str:
    return "\n".join(line.replace(URL, url.replace("%", "%%") if ".ini" in line else url) for line in block.split("\n"))


def _paste(kind: str, block: str, folder: pathlib.Path) -> str:
    """Run a block and return what it prints. A block that names a file is written to that file."""
    if kind == "console":
        return "".join(_typed(line, folder) for line in block.splitlines() if line.startswith("$ "))
    if kind == "cron":
        return _run(block.split(maxsplit=5)[5].replace("cd /srv/shop && .venv/bin/", ""), folder)
    name = block.partition("\n")[0].removeprefix("# ").partition(",")[0]
    if name.endswith("env.py"):
        lines = block.partition("\n")[2]
        block = (folder / name).read_text().replace("target_metadata = None", lines)
    (folder / name).write_text(block)
    return ""


MODULES = {"alembic": "alembic", "async-task": "async_task_cli"}


def _typed(line: str, folder: pathlib.Path) -> str:
    """Run a line that follows a prompt. Our own commands start from a process that has imported them already."""
    words = line.removeprefix("$ ")
    if "venv" in words or words.startswith(("pip ", "createdb ")):
        return ""  # the test has an environment and a database already
    name, *given = shlex.split(words)
    if name not in MODULES:
        return _run(words, folder)
    with contextlib.closing(Program(MODULES[name], *given, cwd=folder, env=_environment(folder))) as begun:
        ended = begun.completed()
    assert ended.returncode == 0, f"{words}: {ended.stdout}{ended.stderr}"
    return ended.stdout + ended.stderr


def _run(words: str, folder: pathlib.Path) -> str:
    bash = shutil.which("bash")
    assert bash
    ended = subprocess.run(
        [bash, "-c", words],
        cwd=folder,
        env=_environment(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0, f"{words}: {ended.stdout}{ended.stderr}"
    return ended.stdout + ended.stderr


def _environment(folder: pathlib.Path) -> dict[str, str]:
    programs = pathlib.Path(sys.executable).parent
    return {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder), "LANG": "C.UTF-8"}


def _revisions(folder: pathlib.Path) -> list[pathlib.Path]:
    return list((folder / "migrations" / "versions").glob("*.py"))


@pytest.mark.only_on("sqlite")
def test_the_commands_of_run_a_worker_work_as_they_are_printed(process: Callable[..., Program], run: Run) -> None:
    """Each runs until it is stopped, and the others run beside it."""
    lines = [line.split()[2:] for _, block in steps("Run a worker") for line in block.splitlines()]
    assert [words[0] for words in lines] == ["worker", "worker", "workers"]
    working = [process(*words) for words in lines[:2]]
    await_(lambda: len(run(*lines[2], "--json").lines) == 3, "one worker and two under a supervisor are running")
    for one in working:
        one.send_signal(signal.SIGTERM)
    assert [one.wait() for one in working] == [143, 143]
    assert run(*lines[2]).err == "0 processes.\n"
