"""`async-task summary`."""

import csv
import dataclasses
import datetime as dt
import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from async_task import ProcessingTimes, StuckCount
from async_task_cli.application import existing
from async_task_cli.columns import Column, print_table
from async_task_cli.moments import MomentOrLength
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.terminal import brief_span, page, say

STUCK = (
    Column("MODEL", shortest=12), Column("AGE DAYS", is_number=True), Column("ERROR", shortest=12),
    Column("COUNT", is_number=True),
)  # fmt: skip
TIMES = (
    Column("MODEL", shortest=12), Column("COUNT", is_number=True), Column("MEDIAN"), Column("MEAN"), Column("MIN"),
    Column("MAX"), Column("WITHIN 7 DAYS", is_number=True),
)  # fmt: skip


@click.command("summary", context_settings=SETTINGS)
@click.option("--times", "is_times", is_flag=True, help="Show how long processing took, instead of what is stuck.")
@click.option(
    "--since", type=MomentOrLength(), metavar="TIME", help="With --times: only what was processed since then."
)
@click.option("--csv", "is_csv", is_flag=True, help="Write CSV, with times in seconds.")
@as_json
@reaching
def summary(
    wanted: Wanted, is_times: bool, since: dt.datetime | dt.timedelta | None, is_csv: bool, is_json: bool
) -> None:
    """Count the potentially stuck rows of models that are their own job (Asyncable), by age and error.

    ERROR is the first word alone, so that no personal data is shown. AGE DAYS counts from the last submission. With
    --times: how long processed rows took since they were submitted.

    \b
    --json writes one object a line: model, age_days, error, count. With --times:
      model, count, median, mean, min, max (in seconds), within_7_days (0 to 1)
    """
    if is_csv and is_json:
        raise click.UsageError("--csv or --json, not both")
    if since is not None and not is_times:
        raise click.UsageError("--since is for --times")
    with existing(wanted) as app:
        found = app.summarize_models(app.now() - since if isinstance(since, dt.timedelta) else since)
    rows: Sequence[StuckCount | ProcessingTimes] = found.times if is_times else found.stuck
    if is_json:
        for one in rows:
            click.echo(json.dumps(as_data(one)))
    elif is_csv:
        _print_csv(ProcessingTimes if is_times else StuckCount, rows)
    elif rows:
        print_table(page(), TIMES if is_times else STUCK, [_cells(one) for one in rows])
    else:
        say("The application knows no model that is its own job." if is_times else "Nothing is stuck.")


def as_data(one: StuckCount | ProcessingTimes) -> dict[str, Any]:
    values = dataclasses.asdict(one).items()
    return {name: value.total_seconds() if isinstance(value, dt.timedelta) else value for name, value in values}


def _print_csv(kind: type[Any], rows: Sequence[StuckCount | ProcessingTimes]) -> None:
    names = [field.name for field in dataclasses.fields(kind)]
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(as_data(one) for one in rows)


def _cells(one: StuckCount | ProcessingTimes) -> list[str]:
    if isinstance(one, StuckCount):
        return [one.model, "" if one.age_days is None else f"{one.age_days:,}", one.error or "", f"{one.count:,}"]
    lengths = (one.median, one.mean, one.min, one.max)
    spans = ["" if length is None else brief_span(length.total_seconds()) for length in lengths]
    share = "" if one.within_7_days is None else f"{one.within_7_days:.1%}"
    return [one.model, f"{one.count:,}", *spans, share]
