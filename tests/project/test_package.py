"""What importing the package loads, and which dependencies it needs."""

import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest

import async_task

pytestmark = pytest.mark.long


def run(program: str, folder: Path) -> str:
    """What a new interpreter prints that runs this program in `folder`."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_importing_the_package_loads_none_of_its_dependencies(tmp_path: Path) -> None:
    heavy = run(
        """
        import sys, async_task
        print(sorted({"sqlalchemy", "pydantic", "alembic", "cryptography", "click", "rich"} & sys.modules.keys()))
        """,
        tmp_path,
    )
    assert heavy.strip() == "[]"


def test_every_public_name_can_be_imported_and_is_listed() -> None:
    for name in async_task.__all__:
        assert getattr(async_task, name) is not None
    assert set(async_task.__all__) <= set(dir(async_task))


def test_a_synchronous_program_needs_no_greenlet(tmp_path: Path) -> None:
    said = run(
        """
        import sys

        class NoGreenlet:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "greenlet":
                    raise ModuleNotFoundError("No module named 'greenlet'", name="greenlet")

        sys.meta_path.insert(0, NoGreenlet())
        from sqlalchemy import create_engine
        from sqlalchemy.orm import Session
        from async_task import AsyncTask, Attempt, ConfigurationError, target

        @target("lonely")
        def lonely(session: Session, number: int) -> None:
            print("called with", number)

        url = "sqlite:///here.sqlite"
        app = AsyncTask(url)
        app.create_schema()
        engine = create_engine(url)
        with Session(engine) as session, session.begin():
            Attempt.call(lonely, 7)
        engine.dispose()
        print(app.run_batch().succeeded)
        app.close()
        try:
            AsyncTask("sqlite+aiosqlite:///here.sqlite")
        except ConfigurationError as error:
            print(error)
        """,
        tmp_path,
    )
    advice = "the driver greenlet of sqlite+aiosqlite:// is not installed: install async-task[sqlite-async]"
    assert said.splitlines() == ["called with 7", "1", advice]


def test_each_file_of_tests_has_a_name_of_its_own() -> None:
    """pytest loads each as a module of its name: of two with the same name only one would run."""
    names = Counter(file.name for file in Path(__file__).parents[1].rglob("test_*.py"))
    assert [name for name, number in names.items() if number > 1] == []
