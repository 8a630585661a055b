"""`async-task top`."""

import datetime as dt

import click

from async_task_cli.application import existing
from async_task_cli.faults import USAGE, Refusal
from async_task_cli.moments import Length
from async_task_cli.options import SETTINGS, Wanted, reaching
from async_task_cli.terminal import is_watched


@click.command("top", context_settings=SETTINGS)
@click.option(
    "--every", type=Length(least="500ms"), default="2s", show_default=True, metavar="TIME",
    help="Time between two looks at the database, at least 500ms.",
)  # fmt: skip
@reaching
def top(wanted: Wanted, every: dt.timedelta) -> None:
    """Watch the overview of the dashboard on the terminal, until Ctrl-C. It performs and changes nothing.

    First for how long the oldest attempt has been due, and then how many are due, running, due later, failed and
    expired, and how many are done per minute. Below, what needs you: the 5 most frequent kinds of failure, as
    `failures list` has them. Then the busiest 20 queues and 10 targets, the workers, and the last errors. The columns
    are those of `stats` and `workers`; on a narrow terminal the least important are left out.

    Each statement may take 2 s. If one takes longer, or the database is away, the last figures stay. Rates, failures
    and numbers of failed and expired attempts (a + means the newest 50,000 only) are read every 10 s. The exit code
    is 130 after Ctrl-C.
    """
    if not is_watched():
        raise Refusal("top needs a terminal, and standard error is not one: use `async-task stats`", USAGE)
    with existing(wanted) as app:
        # Imported here: it takes a while, and a refusal needs none of it.
        from async_task_cli.top import Top

        with Top(app) as view:
            view.draw_until_stopped(every.total_seconds())
