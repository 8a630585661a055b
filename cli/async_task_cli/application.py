"""The application: found by option, environment or the nearest pyproject.toml; else a database by its URL."""

import contextlib
import importlib
import os
import re
import sys
import tomllib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from async_task import Asyncable, AsyncTask, AsyncTaskError, Attempt, BaseAttempt
from async_task_cli.faults import CONFIGURATION, UNREACHABLE, USAGE, Refusal, first_line
from async_task_cli.options import Wanted
from async_task_cli.own_files import line_in

APP, DATABASE_URL = "ASYNC_TASK_APP", "ASYNC_TASK_DATABASE_URL"
EXTRAS = {"psycopg": "postgres", "pymysql": "mysql", "aiosqlite": "sqlite-async", "greenlet": "asyncio"}
"""By module: the extra of async-task that installs it."""


@dataclass(frozen=True, slots=True)
class Named:
    """A text that a person wrote, and the `place` where, which errors name."""

    text: str
    place: str
    exit_code: int = CONFIGURATION


def find_app(wanted: Wanted) -> AsyncTask:
    """The application that was asked for, with its modules imported. Connects to nothing. Raises Refusal."""
    _see_folder(Path.cwd())
    named = named_app(wanted)
    if named is not None:
        app = _load(named)
        _import_all(wanted.modules)
        return app
    url = named_database(wanted)
    if url is None:
        raise Refusal(
            f"no database is named: give --app module:name or --database-url, or set {APP} or {DATABASE_URL}, "
            "or write app under [tool.async-task] into pyproject.toml",
            USAGE,
        )
    _import_all(wanted.modules)
    return AsyncTask(url.text)


def find_model(wanted: Wanted) -> type[BaseAttempt]:
    """The model of the application that was asked for; without one, the ready-made one. Connects to nothing."""
    _see_folder(Path.cwd())
    named = named_app(wanted)
    return Attempt if named is None else _load(named).model


def find_asyncable(named: Named) -> type[Asyncable]:
    """The model that is its own job, by module:class. Raises Refusal."""
    _see_folder(Path.cwd())
    found = _named_in_module(named, "shop.models:Review")
    if not (isinstance(found, type) and issubclass(found, Asyncable) and hasattr(found, "__mapper__")):
        raise Refusal(f"{named.place}: {named.text} is no mapped class with the mixin Asyncable", named.exit_code)
    return found


@contextlib.contextmanager
def existing(wanted: Wanted) -> Iterator[AsyncTask]:
    """The application, for commands that need its tables; closed at the end. Raises Refusal and SchemaMismatch."""
    with contextlib.closing(find_app(wanted)) as app:
        refuse_missing_file(app)
        app.check_schema()
        yield app


def refuse_missing_file(app: AsyncTask) -> None:
    """Raises Refusal for an SQLite file that does not exist: to connect would create it, empty, in a wrong place."""
    file = sqlite_file(app.address)
    if file is not None and not file.exists():
        raise Refusal(
            f"there is no database {file}: name another, or create it with `async-task install --apply`", UNREACHABLE
        )


def sqlite_file(address: str) -> Path | None:
    """The file of an SQLite database; None for a server."""
    try:
        url = make_url(address)
    except ArgumentError:
        return None
    if not url.drivername.startswith("sqlite") or not url.database:
        return None
    return Path(url.database.removeprefix("file:").partition("?")[0])


def named_app(wanted: Wanted) -> Named | None:
    """The application that was asked for, and where; None where a database was, or nothing."""
    if wanted.app is not None:
        return Named(wanted.app, "--app", USAGE)
    if wanted.database_url is not None:
        return None
    if from_environment := os.environ.get(APP):
        return Named(from_environment, APP)
    return _app_of_project()


def named_database(wanted: Wanted) -> Named | None:
    """The URL that is used where no application is named, and where it comes from."""
    if wanted.database_url:
        return Named(wanted.database_url, "--database-url", USAGE)
    if from_environment := os.environ.get(DATABASE_URL):
        return Named(from_environment, DATABASE_URL)
    return None


def project_file() -> Path | None:
    """The nearest pyproject.toml, in this folder or above."""
    folder = Path.cwd()
    return next((file for one in (folder, *folder.parents) if (file := one / "pyproject.toml").is_file()), None)


def _app_of_project() -> Named | None:
    """The application that the nearest pyproject.toml names; its folder goes on the path."""
    if (file := project_file()) is None:
        return None
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {}).get("async-task", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refusal(f"{file} cannot be read: {first_line(str(error))}", CONFIGURATION) from error
    if unknown := [one for one in table if one != "app"]:
        raise Refusal(f"[tool.async-task] in {file} has {unknown[0]!r}, and knows app alone", CONFIGURATION)
    if (app := table.get("app")) is None:
        return None
    _see_folder(file.parent)
    return Named(str(app), f"[tool.async-task] app in {file}")


def _load(named: Named) -> AsyncTask:
    found = _named_in_module(named, "shop:outbox")
    if not isinstance(found, AsyncTask):
        module = named.text.partition(":")[0]
        words = f"{named.place}: {named.text} is of type {type(found).__name__}, not AsyncTask{_apps_in(module)}"
        raise Refusal(words, CONFIGURATION)
    return found


def _named_in_module(named: Named, example: str) -> Any:
    if not re.fullmatch(r"[\w.]+:[\w.]+", named.text):
        raise Refusal(f"{named.place} is written module:name, like {example}, not {named.text!r}", named.exit_code)
    module_name, _, path = named.text.partition(":")
    found: Any = _import(module_name, named.place)
    for name in path.split("."):
        if not hasattr(found, name):
            raise Refusal(f"{named.place}: {module_name} has no {path!r}{_apps_in(module_name)}", CONFIGURATION)
        found = getattr(found, name)
    return found


def _apps_in(module: str) -> str:
    names = [name for name, value in vars(sys.modules[module]).items() if isinstance(value, AsyncTask)]
    return f"; write {module}:{names[0]}" if names else ""


def _import_all(modules: tuple[str, ...]) -> None:
    for module in modules:
        _import(module, "--module")


def _import(name: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing and (name == missing or name.startswith(f"{missing}.")):
            words = f"{place}: there is no module {name!r} on the path, which begins with {Path.cwd()}"
            raise Refusal(words, CONFIGURATION) from error
        advice = f": install async-task[{EXTRAS[missing]}]" if missing in EXTRAS else ""
        line = f" ({where})" if (where := where_raised(error)) else ""
        words = f"{place}: {name} needs the module {missing!r}, which is not installed{line}{advice}"
        raise Refusal(words, CONFIGURATION) from error
    except (AsyncTaskError, OSError):
        raise
    except Exception as error:
        words = f"{place}: importing {name} raised {type(error).__name__}: {_said_and_where(error)}"
        raise Refusal(words, CONFIGURATION) from error


def _said_and_where(error: Exception) -> str:
    words = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{first_line(words)} ({where_raised(error) or _last_line(error)})"


def where_raised(error: BaseException) -> str:
    """`/shop/outbox.py, line 7`: the last line of the project that led to `error`. Empty if none did."""
    file = project_file()
    return line_in(error, file.parent if file else Path.cwd())


def _last_line(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}, line {frame.lineno}"


def _see_folder(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
