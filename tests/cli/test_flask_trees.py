"""Flask-Migrate's tree: its alembic.ini does not say where it is, and its env.py asks for the current application."""

import contextlib
import os
import pathlib
import re
import subprocess

import pytest

from elsewhere import Program
from trees import Run, replace, revisions

pytestmark = pytest.mark.long

SHOP = """
from async_task import AsyncTask
from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy

db = SQLAlchemy()
outbox = AsyncTask(db)
app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///{folder}/shop.sqlite"
db.init_app(app)
Migrate(app, db)
"""
OWN_MODEL = """
from async_task import BaseAttempt


class Attempt(BaseAttempt, db.Model):
    __tablename__ = "async_task_attempts"


outbox = AsyncTask(db, model=Attempt)
"""


@pytest.fixture
def run(tmp_path: pathlib.Path) -> Run:
    (tmp_path / "shop.py").write_text(SHOP.format(folder=tmp_path))
    (tmp_path / "pyproject.toml").write_text('[tool.async-task]\napp = "shop:outbox"\n')
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(("ASYNC_TASK", "ALEMBIC"))}

    def run(program: str, *words: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
        module = ["flask", "--app", "shop"] if program == "flask" else ["async_task_cli", program]
        # Not strict: env.py of Flask-Migrate calls what Flask-SQLAlchemy has deprecated.
        with contextlib.closing(Program(*module, *words, cwd=tmp_path, env=theirs)) as begun:
            ended = begun.completed()
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended

    run("flask", "db", "init")
    return run


def adapt(env: pathlib.Path, said: str) -> None:
    """Let env.py say what `install` has said."""
    printed = re.search(r"let migrations/env.py say:\n\n(.*?)\n\nThen", said, re.DOTALL)
    assert printed
    lines = "\n".join(line.removeprefix("    ") for line in printed[1].splitlines())
    theirs = "def get_metadata():\n    if hasattr(target_db, 'metadatas'):\n        return target_db.metadatas[None]\n"
    replace(env, theirs + "    return target_db.metadata\n", lines)


def test_install_finds_the_tree_and_names_the_commands_of_flask(run: Run, tmp_path: pathlib.Path) -> None:
    said = run("install")
    (path,) = revisions(tmp_path / "migrations")
    assert said.stdout == f"{path.relative_to(tmp_path)}\n"
    assert "Then `flask db upgrade head` changes the database" in said.stderr
    adapt(tmp_path / "migrations" / "env.py", said.stderr)
    run("flask", "db", "upgrade")
    assert "All fits." in run("check").stderr
    assert "No changes in schema detected." in run("flask", "db", "migrate").stderr
    assert "lready installed in revision" in run("install").stderr
    assert "`flask db upgrade head` brings" in run("upgrade").stderr


def test_check_says_that_autogenerate_would_drop_the_tables(run: Run) -> None:
    run("install")
    run("flask", "db", "upgrade")
    assert "autogenerate would drop what it lacks" in run("check", code=1).stdout


def test_a_model_on_db_model_is_seen_without_a_change_of_env_py(run: Run, tmp_path: pathlib.Path) -> None:
    with (tmp_path / "shop.py").open("a") as shop:
        shop.write(OWN_MODEL)
    said = run("install")
    assert "env.py" not in said.stderr
    run("flask", "db", "upgrade")
    assert "All fits." in run("check").stderr


def test_a_tree_in_another_folder_is_named_by_its_configuration(run: Run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "migrations").rename(tmp_path / "database")
    assert "there is no Alembic tree here" in run("install", code=78).stderr
    assert run("install", "-c", "database/alembic.ini").stdout.startswith("database/versions/")
