"""The reason for what a person does to attempts: `--reason`, and when it may not be left out."""

from collections.abc import Callable
from typing import TypeVar

import click

from async_task_cli.chosen import Chosen

F = TypeVar("F", bound=Callable[..., object])


def with_reason(command: F) -> F:
    """`--reason`; the command is called with `reason=`, None where it was left out."""
    return click.option("--reason", metavar="TEXT", help="Why, for the attempt's events.")(command)


def check_reason(verb: str, reason: str | None, chosen: Chosen, *, for_one: bool) -> None:
    """Raises UsageError where a reason is required and left out or empty: for one attempt if `for_one`, for several in
    any case. A dry run needs none."""
    if chosen.is_dry or (reason is not None and reason.strip()):
        return
    if for_one:
        raise click.UsageError(f"{verb} needs a reason: --reason TEXT, which the events keep")
    if chosen.is_all or len(set(chosen.ids)) > 1:
        raise click.UsageError(f"{verb} of more than one attempt needs a reason: --reason TEXT, which the events keep")
