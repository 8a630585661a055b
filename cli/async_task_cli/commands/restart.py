"""`async-task restart`."""

import json

import click

from async_task import InvalidArguments, RestartReport, acting
from async_task_cli.actor import actor_of, as_actor
from async_task_cli.application import existing
from async_task_cli.faults import USAGE, Refusal
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.standard_output import tell
from async_task_cli.terminal import counted, say


@click.command("restart", context_settings=SETTINGS)
@click.argument("model")
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@click.option("--expired", "is_expired", is_flag=True, help="All rows whose window is over, the oldest first.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, metavar="N", help="At most N rows."
)
@click.option("--reason", metavar="TEXT", help="Why, for the events of the rows.")
@click.option("--dry-run", "is_dry", is_flag=True, help="Show what would be restarted, and do nothing.")
@as_actor
@as_json
@reaching
def restart(
    wanted: Wanted, model: str, keys: tuple[str, ...], is_expired: bool, limit: int, reason: str | None, is_dry: bool,
    actor: str | None, is_json: bool,
) -> int:  # fmt: skip
    """Process rows of a model that is its own job (Asyncable) again from the beginning, now. Performs no call.

    MODEL is the name of its job, as `stuck` and `process-models` print it. KEY is the primary key of a row; give
    several, or --expired. A row that was never submitted is submitted.

    Each row is changed in a transaction of its own; one that is refused does not stop the others. Ends with 1 if any
    was refused.

    --json writes one object a line: key, ok, why (null unless it was refused) and dry_run.
    """
    if bool(keys) is is_expired:
        raise click.UsageError("give at least one KEY, or --expired")
    if not is_dry and not (reason or "").strip():
        raise click.UsageError("restart needs a reason: --reason TEXT, which the events keep")
    with existing(wanted) as app, acting(actor_of(actor)):
        try:
            report = app.restart_models(
                model, keys or None, reason=reason or "a dry run", limit=max(limit, len(keys)), dry_run=is_dry
            )
        except InvalidArguments as error:
            raise Refusal(str(error), USAGE) from None
    if is_json:
        _print_json(report, is_dry=is_dry)
    else:
        _print(report, is_dry=is_dry)
    return 1 if report.refused else 0


def _print(report: RestartReport, *, is_dry: bool) -> None:
    for key in report.restarted:
        tell(f"{key}  {'would be restarted' if is_dry else 'restarted'}")
    for key, why in report.refused.items():
        say(f"{key}: {why}")
    if report.left:
        say(f"{counted(report.left, 'row is', 'rows are')} left: give a higher --limit, or run it again.")
    elif not (report.restarted or report.refused):
        say("No row is expired.")


def _print_json(report: RestartReport, *, is_dry: bool) -> None:
    results = [(key, None) for key in report.restarted] + list(report.refused.items())
    for key, why in results:
        tell(json.dumps({"key": key, "ok": why is None, "why": why, "dry_run": is_dry}))
