"""Alembic trees, and programs that run in the folder of a project."""

import contextlib
import io
import os
import pathlib
import subprocess
from collections.abc import Callable

import pytest
from alembic import command
from alembic.config import Config

from elsewhere import Program

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def runner(tmp_path: pathlib.Path) -> Run:
    """`run("alembic", ...)` or `run("install", ...)`: a program in the project's folder, warnings are errors."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ASYNC_TASK", "ALEMBIC"))}

    def run(program: str, *words: str, code: int = 0, **variables: str) -> "subprocess.CompletedProcess[str]":
        module = ["alembic"] if program == "alembic" else ["async_task_cli", program]
        begun = Program(*module, *words, cwd=tmp_path, env=environment | variables, strict=True)
        with contextlib.closing(begun):
            ended = begun.completed()
        assert ended.returncode == code, ended.stderr
        return ended

    return run


def planter(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pathlib.Path]:
    """`tree("async")`: a tree of that template on an SQLite file, whose env.py shows our tables."""

    def tree(template: str = "generic", url: str = "sqlite:///shop.sqlite") -> pathlib.Path:
        monkeypatch.chdir(tmp_path)
        command.init(Config("alembic.ini", toml_file="pyproject.toml", stdout=io.StringIO()), "migrations", template)
        replace(tmp_path / "alembic.ini", "driver://user:pass@localhost/dbname", url)
        return tmp_path / "migrations"

    return tree


def replace(file: pathlib.Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def show_ours(migrations: pathlib.Path) -> None:
    ours = "from async_task import metadata as target_metadata"
    replace(migrations / "env.py", "target_metadata = None", ours)


def revisions(migrations: pathlib.Path) -> list[pathlib.Path]:
    return sorted(one for one in migrations.rglob("*.py") if one.name != "env.py" and "__pycache__" not in one.parts)


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(one.relative_to(folder)): one.read_bytes()
        for one in folder.rglob("*")
        if one.is_file() and "__pycache__" not in one.parts
    }


DATABASE = ("--database-url", "sqlite:///shop.sqlite")
