"""The commands of the page on Litestar, in an empty folder and on an empty database."""

import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.fixture
def run(tmp_path: pathlib.Path) -> Callable[[str], str]:
    """`run("litestar ...")`: a command line, in a copy of the shop, on an SQLite file. Returns what it prints."""
    shutil.copytree(HERE / "shop", tmp_path / "shop")
    shutil.copy(HERE / "pyproject.toml", tmp_path)
    url = f"sqlite+aiosqlite:///{tmp_path / 'shop.sqlite'}"
    variables = os.environ | {"LITESTAR_APP": "shop.web:app", "SHOP_DATABASE_URL": url}

    def run(words: str) -> str:
        ended = subprocess.run(
            words.split(), cwd=tmp_path, env=variables, capture_output=True, text=True, check=False, timeout=60
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout + ended.stderr

    return run


def test_the_tables_are_made_by_advanced_alchemy_and_kept_by_autogenerate(
    run: Callable[[str], str], tmp_path: pathlib.Path
) -> None:
    run("litestar database init --no-prompt migrations")
    said = run("async-task install")
    assert "Then `alchemy --config MODULE.NAME upgrade head`" in said
    assert "env.py" not in said
    run("litestar database upgrade --no-prompt")
    run("litestar database make-migrations --no-prompt -m orders")
    (orders,) = (tmp_path / "migrations" / "versions").glob("*orders*.py")
    assert "async_task" not in orders.read_text()
    run("litestar database upgrade --no-prompt")
    assert "All fits." in run("async-task check")
