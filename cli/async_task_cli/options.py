"""Options that several commands take: which application, and how errors are shown."""

import functools
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from async_task_cli.faults import scrubbed

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
WORDS = "async_task_cli.words"
"""Where a context keeps the whole command line."""
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Wanted:
    """The application that the options name; nothing of it is loaded yet."""

    app: str | None = None
    database_url: str | None = None
    modules: tuple[str, ...] = ()

    def beside(self, other: "Wanted") -> "Wanted":
        """The options after the command, with those before it (`other`). Raises UsageError for a contradiction."""
        app = other.app if self.app is None else self.app
        url = other.database_url if self.database_url is None else self.database_url
        if app is not None and url is not None:
            raise click.UsageError("--app brings its own database: leave --database-url out, or --app")
        return Wanted(app, url, other.modules + self.modules)


def debugging(command: F) -> F:
    """`--debug`, which `main` reads when it prints an error."""
    return click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")(command)


def reaching(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that name the application; the command is called with `wanted=`."""

    @click.option("--app", metavar="MODULE:NAME", help="The application: where its AsyncTask is.")
    @click.option(
        "--database-url", metavar="URL", help="Without an application: the database of the ready-made tables."
    )
    @click.option(
        "--module", "modules", metavar="MODULE", multiple=True, help="A module with targets; may be repeated."
    )
    @debugging
    @functools.wraps(command)
    def reached(*args: Any, app: str | None, database_url: str | None, modules: tuple[str, ...], **options: Any) -> Any:
        given = click.get_current_context().find_object(Wanted) or Wanted()
        return command(*args, wanted=Wanted(app, database_url, modules).beside(given), **options)

    return reached


def as_json(command: F) -> F:
    """`--json`, for programs."""
    return click.option("--json", "is_json", is_flag=True, help="JSON on standard output.")(command)


def of_model(command: F) -> F:
    """`--model`: the job is a row of a model; the command is called with `model=`, which is None for an attempt."""
    words = "ID is the key of a row of this model (Asyncable, Pollable)."
    return click.option("--model", metavar="NAME", help=words)(command)


def once_more(ctx: click.Context, option: str, value: str) -> str:
    """This command line with another value of one option, to be copied into a shell. Passwords in URLs are left out."""
    words = scrubbed(shlex.join(_without(option, ctx.meta[WORDS])))
    return f"{words} {shlex.join([option, value])}"


def _without(option: str, words: Sequence[str]) -> Iterator[str]:
    before = ""
    for word in words:
        if option not in (before, word) and not word.startswith(f"{option}="):
            yield word
        before = word
