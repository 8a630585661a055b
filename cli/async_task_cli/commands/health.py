"""`async-task health`: a check in the manner of Nagios, and a probe for containers."""

import contextlib
import datetime as dt
import json
from collections.abc import Iterable
from typing import Any

import click
from click.core import ParameterSource

from async_task import Health, HealthCheck, HealthState
from async_task_cli.application import find_app, refuse_missing_file
from async_task_cli.faults import UNREACHABLE, Refusal, one_line, verdict
from async_task_cli.moments import Length
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching

EXIT_CODES = {HealthState.OK: 0, HealthState.WARNING: 1, HealthState.CRITICAL: 2, HealthState.UNKNOWN: 3}
NAME = "ASYNC-TASK"
PROCESS = "process"
"""The check of a worker or clock by itself."""


class Check(click.Command):
    """A command that ends with UNKNOWN, on standard output, where others end with an error: so monitoring reads it."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            raise _unknown(error.format_message()) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except click.ClickException as error:
            raise _unknown(error.format_message()) from error
        except Refusal as refusal:
            raise _unknown(str(refusal)) from refusal
        except Exception as error:
            raise _unknown(verdict(error)[1]) from error


@click.command("health", cls=Check, context_settings=SETTINGS)
@click.option("--queue", "queues", metavar="NAME", multiple=True, help="Check only this queue; may be repeated.")
@click.option(
    "--warn-age", type=Length(), default="2min", show_default=True, metavar="TIME",
    help="WARNING from this age of the oldest due attempt on.",
)  # fmt: skip
@click.option(
    "--critical-age", type=Length(), default="15min", show_default=True, metavar="TIME",
    help="CRITICAL from this age of the oldest due attempt on.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
    help="Workers that should run: fewer are a WARNING, none is CRITICAL.",
)  # fmt: skip
@click.option(
    "--clock/--no-clock", default=None, help="Whether a clock must tick [default: if the application has a schedule]."
)
@click.option("--this-host", is_flag=True, help="Check only that a worker or clock of this host has a heartbeat.")
@click.option("--worker", metavar="NAME", help="Check only that the worker or clock of this name has a heartbeat.")
@click.option(
    "--timeout", type=Length(), default="5s", show_default=True, metavar="TIME",
    help="CRITICAL if the database has not answered by then.",
)  # fmt: skip
@click.option("--probe", is_flag=True, help="For containers: end with 1 if it is CRITICAL, else with 0.")
@as_json
@reaching
def health(
    wanted: Wanted, is_json: bool, probe: bool, this_host: bool, worker: str | None, timeout: dt.timedelta,
    **expected: Any,
) -> int:  # fmt: skip
    """Check the database and its tables, for how long the oldest attempt has been due, the workers, and the clock.

    Prints one line, with performance data behind a |, and ends as Nagios plugins do: 0 OK, 1 WARNING, 2 CRITICAL,
    3 UNKNOWN. Invalid options and an application that cannot be loaded are UNKNOWN. Paused queues are never late.

    With --this-host or --worker it checks one process, for the probe that restarts it. A database that is away is
    UNKNOWN there, which a --probe does not count as a failure: no restart would mend it.

    \b
    --json writes one object:
      state   ok, warning, critical or unknown: the worst of the checks
      checks  name (database, oldest_due, workers, clock; process), state, words,
              value (seconds, or the number of workers; null if unknown),
              warning, critical (the limits of the value, or null)
    Fields may be added, and are not renamed.
    """
    if this_host and worker is not None:
        raise click.UsageError("--this-host and --worker exclude each other")
    if worker == "":  # an unset variable
        raise click.UsageError("--worker is the name of a worker or clock: it was empty")
    is_of_process = this_host or worker is not None
    if is_of_process and (others := _given_of(expected)):
        raise click.UsageError(f"--this-host and --worker check a heartbeat only: leave out {' and '.join(others)}")
    if expected["warn_age"] > expected["critical_age"]:
        raise click.UsageError("--warn-age is not greater than --critical-age")
    with contextlib.closing(find_app(wanted)) as app:
        try:
            refuse_missing_file(app)
        except Refusal as refusal:
            found = _without_file(refusal, is_of_process=is_of_process)
        else:
            found = (
                app.process_health(worker, timeout=timeout)
                if is_of_process
                else app.health(**expected, timeout=timeout)
            )
    click.echo(json.dumps(_as_data(found)) if is_json else line_of(found))
    return int(found.state is HealthState.CRITICAL) if probe else EXIT_CODES[found.state]


def _given_of(names: Iterable[str]) -> list[str]:
    """The options of these names that are on the command line."""
    context = click.get_current_context()
    given = [one for one in names if context.get_parameter_source(one) is ParameterSource.COMMANDLINE]
    return [one.opts[0] for one in context.command.params if one.name in given]


def line_of(found: Health) -> str:
    """What Nagios reads: the state, the words of all checks, the worst first, and the figures."""
    worst_first = sorted(found.checks, key=lambda one: one.state is not found.state)
    words = _plain("; ".join(one.words for one in worst_first))
    figures = " ".join(_figure(one) for one in found.checks if one.value is not None)
    return f"{NAME} {found.state.name} - {words}" + (f" | {figures}" if figures else "")


def _figure(one: HealthCheck) -> str:
    """label=value, unit; warning; critical; least. A limit `2:` is a least number."""
    unit, least = ("", ":") if one.name == "workers" else ("s", "")
    warning, critical = (f"{limit:g}{least}" if limit is not None else "" for limit in (one.warning, one.critical))
    return f"{one.name}={one.value:.3f}".rstrip("0").rstrip(".") + f"{unit};{warning};{critical};0"


def _as_data(found: Health) -> dict[str, Any]:
    checks = [
        {
            "name": one.name, "state": one.state.value, "words": one.words, "value": one.value,
            "warning": one.warning, "critical": one.critical,
        }
        for one in found.checks
    ]  # fmt: skip
    return {"state": found.state.value, "checks": checks}


def _without_file(refusal: Refusal, *, is_of_process: bool) -> Health:
    assert refusal.exit_code == UNREACHABLE
    if is_of_process:
        return Health((HealthCheck(PROCESS, HealthState.UNKNOWN, str(refusal)),))
    return Health((HealthCheck("database", HealthState.CRITICAL, str(refusal)),))


def _unknown(words: str) -> click.exceptions.Exit:
    click.echo(f"{NAME} UNKNOWN - {_plain(words)}")
    return click.exceptions.Exit(EXIT_CODES[HealthState.UNKNOWN])


def _plain(words: str) -> str:
    """On one line, without the sign behind which Nagios reads figures."""
    return one_line(words).replace("|", "/")
