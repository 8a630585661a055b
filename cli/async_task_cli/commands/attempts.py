"""`async-task list`: attempts page by page, and how many there are in each state."""

import collections
import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click
from rich.text import Text

from async_task import MOST_COUNTED, AsyncTask, AttemptInfo, Status
from async_task_cli.application import existing
from async_task_cli.fields import listed
from async_task_cli.options import SETTINGS, Wanted, as_json, once_more, reaching
from async_task_cli.selection import ORDERS, Filters, check_cursor, cursor_of, selected, selecting
from async_task_cli.terminal import coloured, counted, page, plain, say, since, table

WIDE = 110
PLACES = {"created": "the oldest", "-created": "the newest", "due": "the first due", "-due": "the last due"}


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of rows in order, and whether more follow; how many there are of each state on all pages, None for more
    than MOST_COUNTED together; the database's clock."""

    rows: Sequence[AttemptInfo]
    has_more: bool
    counts: Mapping[Status, int] | None
    now: dt.datetime


@click.command("list", context_settings=SETTINGS)
@selecting
@click.option(
    "--order", type=click.Choice(list(ORDERS)), default="created", show_default=True, help="What comes first."
)
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, metavar="N", help="At most N.")
@click.option("--after", metavar="CURSOR", help="Only those behind this one: the id of the last line before.")
@as_json
@reaching
def list_attempts(wanted: Wanted, filters: Filters, order: str, limit: int, after: str | None, is_json: bool) -> None:
    """List attempts, oldest first, and count them.

    States are those of the row, and: due (may be started now), performing (a worker has claimed it), stuck (a person
    may have to look at it). An attempt that is not the first of its order key is shown as waiting. WHEN is an instant
    with its zone (2026-10-25T02:30Z) or a length of time before now (2h, 3d). The orders due and -due list only what
    waits in a queue.

    --json writes one object a line. After --limit lines there may be more: give --after the id of the last one, or its
    due_at,id where --order is by due. New attempts do not shift the pages.

    A terminal of 110 columns also shows when, and the last error.
    """
    check_cursor(after, order)
    with existing(wanted) as app:
        if is_json:
            for row in selected(app, filters, order, limit, after):
                click.echo(json.dumps(listed(row)))
            return
        found = _listing(app, filters, order, limit, after)
    _print(found, PLACES[order] if after is None else "the next", is_wide=page().width >= WIDE)
    if found.has_more and found.rows:
        cursor = cursor_of(found.rows[-1], order)
        say(f"The next ones: {once_more(click.get_current_context(), '--after', cursor)}")


def _listing(app: AsyncTask, filters: Filters, order: str, limit: int, after: str | None) -> Listing:
    rows = list(selected(app, filters, order, limit + 1, after))
    has_more = len(rows) > limit
    is_all = not has_more and after is None
    counts = collections.Counter(row.status for row in rows) if is_all else _counts(app, filters)
    return Listing(rows[:limit], has_more, counts, app.now())


def _counts(app: AsyncTask, filters: Filters) -> Mapping[Status, int] | None:
    counts: collections.Counter[Status] = collections.Counter()
    after = None
    while counts.total() <= MOST_COUNTED:
        found = app.attempts.counts(**filters.options, after=after)
        counts.update(found.by_status)
        if (after := found.next) is None:
            break
    return counts if counts.total() <= MOST_COUNTED else None


def _print(found: Listing, place: str, *, is_wide: bool) -> None:
    console = page()
    if found.rows:
        more = ["WHEN", "LAST ERROR"] if is_wide else []
        made = table(
            ["ID", "STATUS", "TRIES", "CALL", *more], numbers=["TRIES"], whole=["ID", "STATUS", "TRIES", "WHEN"]
        )
        for row in found.rows:
            cells = [Text(str(row.id)), coloured(_state(row)), Text(str(row.num_attempts)), plain(row.call)]
            made.add_row(*cells, *([Text(_when(row, found.now)), plain(_brief(row.last_error))] if is_wide else []))
        console.print(made)
    console.print(_summary(found, place), soft_wrap=True)


def _state(row: AttemptInfo) -> str:
    if row.status is not Status.PENDING:
        return str(row.status)
    if not row.released:
        return "waiting"
    return "performing" if row.is_performing else "pending"


def _when(row: AttemptInfo, now: dt.datetime) -> str:
    if row.completed_at is not None:
        return since(row.completed_at, now)
    if row.is_performing and row.attempted_at is not None:
        return f"began {since(row.attempted_at, now)}"
    if not row.released:
        return "waits for its turn" if row.waits_behind is None else f"waits behind {row.waits_behind}"
    return f"due {since(row.due_at, now)}"


def _brief(error: str | None) -> str:
    return (error or "").partition("\n")[0]


def _summary(found: Listing, place: str) -> str:
    if found.counts is None:
        return f"More than {MOST_COUNTED:,} attempts, {place} {len(found.rows):,} of them shown."
    total = sum(found.counts.values())
    if not total:
        return "No attempts."
    shown = "" if len(found.rows) == total else f", {place} {len(found.rows):,} of them shown"
    each = ", ".join(f"{found.counts[one]:,} {one}" for one in Status if found.counts.get(one))
    return f"{counted(total, 'attempt')}{shown}: {each}."
