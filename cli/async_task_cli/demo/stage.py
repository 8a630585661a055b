"""What the demo runs in: a folder that is a small project, the shop in it, its database, and a warehouse process."""

import contextlib
import importlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import make_url

import async_task_cli
from async_task import AsyncTask, Key
from async_task_cli.application import sqlite_file
from async_task_cli.demo.warehouse import Warehouse
from async_task_cli.faults import UNEXPECTED, USAGE, Refusal

T = TypeVar("T")
LEASE = 1.0
PATIENCE = 20.0
PROJECT = '[tool.async-task]\napp = "shop.app:outbox"\n'
URL_FILE = "database-url"
KEYS_FILE = "shop.keys"


class Untrue(Refusal):
    """Something that the demo was about to print is not true."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What the scenes use. `shop`: the modules of the example, by name."""

    folder: Path
    app: AsyncTask
    shop: dict[str, Any]
    warehouse: Warehouse

    def run_elsewhere(self, *words: str) -> "subprocess.Popen[bytes]":
        """Start `async-task ...` in the folder, as a process of its own."""
        nowhere = subprocess.DEVNULL
        command = [sys.executable, "-m", "async_task_cli", *words]
        return subprocess.Popen(command, cwd=self.folder, stdin=nowhere, stdout=nowhere, stderr=nowhere)

    def commit(self, work: Callable[[Any], T]) -> T:
        """Run `work(session)` in a transaction of the shop, and commit."""
        with self.shop["app"].Session(expire_on_commit=False) as session, session.begin():
            return work(session)


@contextlib.contextmanager
def set_up(database_url: str | None) -> Iterator[Stage]:
    """The stage, until the end; the folder and the rows stay for those who want to look.

    `database_url`: as `usable` answers it; None for a new SQLite file.
    """
    folder = _new_project()
    url = database_url or f"sqlite:///{folder / 'shop.sqlite'}"
    with contextlib.ExitStack() as until:
        try:
            warehouse = until.enter_context(Warehouse.started(folder))
            until.enter_context(_environment(url, warehouse.url, folder / KEYS_FILE))
            shop = _import_shop(folder)
            until.callback(shop["app"].engine.dispose)
            shop["app"].create_tables()
        except BaseException:
            shutil.rmtree(folder)
            raise
        yield Stage(folder, shop["app"].outbox, shop, warehouse)


def _new_project() -> Path:
    """A new folder with a copy of the shop, a key, and a pyproject.toml by which `async-task` finds its application."""
    folder = Path(tempfile.mkdtemp(prefix="async-task-demo-"))
    shutil.copytree(shop_folder(), folder / "shop", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (folder / KEYS_FILE).touch(mode=0o600)
    (folder / KEYS_FILE).write_text(f"{Key.generate().text}\n", encoding="utf-8")
    return folder


def _import_shop(folder: Path) -> dict[str, Any]:
    sys.path.insert(0, str(folder))
    return {name: importlib.import_module(f"shop.{name}") for name in ("app", "models", "orders", "outbox")}


def shop_folder() -> Path:
    """The example shop: beside this package in a wheel, beside the library in a checkout."""
    package = Path(async_task_cli.__file__).parent
    for place in (package / "examples" / "shop", package.parents[1] / "examples" / "shop"):
        if (place / "app.py").is_file():
            return place
    raise Refusal("the example shop is not installed: install async-task again, from a wheel or a checkout", UNEXPECTED)


def check(is_so: bool, claim: str, found: object) -> None:
    """Raises Untrue unless the statement is true."""
    if not is_so:
        raise Untrue(f"the demo was about to say that {claim}, and that is not so: found {found}")


def wait_until(condition: Callable[[], T], claim: str) -> T:
    """Wait until `condition()` is true, and return it. Asks every few milliseconds. Raises Untrue if it stays false."""
    until = time.monotonic() + PATIENCE
    while not (answer := condition()):
        if time.monotonic() > until:
            raise Untrue(f"the demo waited {PATIENCE:.0f} s for this: {claim}; it did not come")
        time.sleep(0.02)
    return answer


def command_words() -> str:
    """`async-task` as this user can type it: alone if it is on the path, else with its folder."""
    script = Path(sys.executable).with_name("async-task")
    found = shutil.which("async-task")
    if found and (Path(found).resolve() == script.resolve() or not script.exists()):
        return "async-task"
    return shlex.quote(str(script)) if script.exists() else f"{shlex.quote(sys.executable)} -m async_task"


def entering(folder: Path, database_url: str | None) -> list[str]:
    """The lines that bring a shell into the folder. No password is printed: it is in a file that the user owns."""
    lines = [f"cd {shlex.quote(str(folder))}"]
    if database_url is None:
        return lines
    if make_url(database_url).password is None and not make_url(database_url).query:
        return [*lines, f"export SHOP_DATABASE_URL={shlex.quote(database_url)}"]
    file = folder / URL_FILE
    file.touch(mode=0o600)
    file.write_text(database_url, encoding="utf-8")
    return [*lines, f'export SHOP_DATABASE_URL="$(cat {URL_FILE})"']


def usable(database_url: str | None) -> str | None:
    """The URL of the same database from any folder. Raises Refusal for a database that the shop cannot use."""
    if database_url is None:
        return None
    address = AsyncTask(database_url).address
    if make_url(database_url).get_dialect().is_async:
        raise Refusal(
            f"the demo's shop is synchronous, and {address} means an asyncio driver: write postgresql+psycopg://", USAGE
        )
    file = sqlite_file(address)
    return database_url if file is None else f"sqlite:///{file.absolute()}"


@contextlib.contextmanager
def _environment(database_url: str, warehouse_url: str, keys_file: Path) -> Iterator[None]:
    ours = {
        "SHOP_DATABASE_URL": database_url,
        "SHOP_WAREHOUSE_URL": warehouse_url,
        "SHOP_KEYS_FILE": str(keys_file),
        "SHOP_LEASE": str(LEASE),
    }
    # The user's own ASYNC_TASK_ settings must not reach the commands of the demo.
    theirs = {name: os.environ.pop(name, None) for name in ("ASYNC_TASK_APP", "ASYNC_TASK_DATABASE_URL", *ours)}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name)
        os.environ.update({name: value for name, value in theirs.items() if value is not None})
