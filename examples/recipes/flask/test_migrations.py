"""The commands of the page on Flask, in an empty folder and on an empty database."""

import os
import pathlib
import shutil
import subprocess

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.fixture
def run(tmp_path: pathlib.Path):
    """`run("flask db init")`: a command line, in a copy of the shop, on an SQLite file. Returns what it prints."""
    for name in ("shop", "wsgi.py", "pyproject.toml"):
        (shutil.copytree if (HERE / name).is_dir() else shutil.copy)(HERE / name, tmp_path / name)
    variables = os.environ | {"FLASK_APP": "wsgi", "SHOP_DATABASE_URL": f"sqlite:///{tmp_path / 'shop.sqlite'}"}

    def run(words: str) -> str:
        ended = subprocess.run(
            words.split(), cwd=tmp_path, env=variables, capture_output=True, text=True, check=False, timeout=60
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout + ended.stderr

    return run


def test_the_tables_are_made_by_flask_migrate_and_kept_by_autogenerate(run, tmp_path: pathlib.Path) -> None:
    run("flask db init")
    assert "flask db upgrade" in run("async-task install")
    run("flask db upgrade")
    run("flask db migrate -m orders")
    run("flask db upgrade")
    assert "All fits." in run("async-task check")
    assert "No changes in schema detected." in run("flask db migrate")
