"""`async-task config`: each setting, and where it comes from."""

import contextlib
import dataclasses
import inspect
import json
from collections.abc import Iterator
from typing import Any

import click
from rich.text import Text

from async_task import AsyncTask
from async_task_cli.actor import named_actor, problem_of
from async_task_cli.application import find_app, named_app, named_database, project_file
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.terminal import page, plain, print_sheet

DEFAULT, HERE = "default", "this process"
CONCURRENCY = inspect.signature(AsyncTask.run_batch).parameters["concurrency"].default


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One value and where it comes from; both None where it is not set. `problem`: why it cannot be used."""

    value: Any
    source: str | None
    problem: str | None = None


@click.command("config", context_settings=SETTINGS)
@as_json
@reaching
def config(wanted: Wanted, is_json: bool) -> None:
    """Show what is configured, and where each value comes from: an option, the environment, a file, the application,
    or a default. Does not connect to the database, and shows no password.

    Where the application cannot be loaded, the other settings are printed, and the command ends as all others do.

    --json writes one object, with value, source and problem (null, or why the value cannot be used) by name.
    """
    settings = dict(_said(wanted))
    try:
        with contextlib.closing(find_app(wanted)) as app:
            settings |= dict(_of(app, wanted))
    finally:
        _print(settings, is_json=is_json)


def _said(wanted: Wanted) -> Iterator[tuple[str, Setting]]:
    """What is known before the application is imported."""
    file, app = project_file(), named_app(wanted)
    yield "file", Setting(str(file) if file else None, "the nearest pyproject.toml" if file else None)
    yield "application", Setting(app.text, app.place) if app else Setting(None, None)
    yield "modules", Setting(list(wanted.modules), "--module") if wanted.modules else Setting([], DEFAULT)
    actor, source = named_actor(None)
    yield "actor", Setting(actor, source, problem_of(actor))


def _of(app: AsyncTask, wanted: Wanted) -> Iterator[tuple[str, Setting]]:
    """The settings of the application, or the defaults where there is only a database."""
    source = DEFAULT if named_app(wanted) is None else "the application"
    url, model = named_database(wanted), app.model
    yield "database", Setting(app.address, source if url is None or source != DEFAULT else url.place)
    yield "model", Setting(f"{model.__module__}:{model.__qualname__}", source)
    yield "table", Setting(app.table_name, source)
    yield "lease_seconds", Setting(app.lease.total_seconds(), source)
    yield "concurrency", Setting(CONCURRENCY, DEFAULT)
    yield "encryptors", Setting(app.encryptor_names, HERE)
    yield "targets", Setting(app.target_names, HERE)


def shown_settings(app: AsyncTask, wanted: Wanted) -> dict[str, tuple[str, str]]:
    """By name, the value as a text and where it comes from; without what is not set."""
    settings = dict(_said(wanted)) | dict(_of(app, wanted))
    for name in ("actor", "concurrency", "lease_seconds"):  # of other commands, and what the page says itself
        del settings[name]
    return {
        name.replace("_", " "): (_text_of(one), one.source or "")
        for name, one in settings.items()
        if one.value not in (None, "", [])
    }


def _print(settings: dict[str, Setting], *, is_json: bool) -> None:
    if is_json:
        click.echo(json.dumps({name: dataclasses.asdict(one) for name, one in settings.items()}))
    else:
        print_sheet(page(), [(name.replace("_", " "), _shown(one)) for name, one in settings.items()], indent=0)


def _shown(setting: Setting) -> Text:
    where = "; ".join(part for part in (setting.source, setting.problem) if part)
    return plain((_text_of(setting) or "none") + (f"  ({where})" if where else ""))


def _text_of(setting: Setting) -> str:
    value = setting.value
    return ", ".join(value) if isinstance(value, list) else "" if value is None else str(value)
