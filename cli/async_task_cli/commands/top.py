"""`async-task top`."""

import datetime as dt

import click

from async_task_cli.application import existing
from async_task_cli.faults import USAGE, Refusal
from async_task_cli.moments import Length
from async_task_cli.options import SETTINGS, Wanted, reaching
from async_task_cli.terminal import is_watched

LEAST = dt.timedelta(milliseconds=500)


@click.command("top", context_settings=SETTINGS)
@click.option(
    "--every", type=Length(), default="2s", show_default=True, metavar="TIME",
    help="Time between two looks at the database, at least 500ms.",
)  # fmt: skip
@reaching
def top(wanted: Wanted, every: dt.timedelta) -> None:
    """Watch all queues, targets and workers on the terminal, until Ctrl-C. It performs nothing.

    The columns are those of `stats` and `workers`. The busiest 20 queues and 10 targets are shown. The exit code is 130
    after Ctrl-C.
    """
    if every < LEAST:
        raise Refusal("--every is at least 500ms", USAGE)
    if not is_watched():
        raise Refusal("top needs a terminal, and standard error is not one: use `async-task stats`", USAGE)
    with existing(wanted) as app:
        # Imported here: it takes a while, and a refusal needs none of it.
        from async_task_cli.top import Top

        with Top(app) as view:
            view.draw_until_stopped(every.total_seconds())
