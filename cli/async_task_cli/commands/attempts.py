"""`async-task list`: attempts page by page, and how many there are in each state."""

import collections
import datetime as dt
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click
from rich.text import Text

from async_task import MOST_COUNTED, AsyncTask, AttemptInfo, Status
from async_task_cli.application import existing
from async_task_cli.columns import Column, print_table
from async_task_cli.fields import listed
from async_task_cli.options import SETTINGS, Wanted, as_json, once_more, reaching
from async_task_cli.selection import ORDERS, Filters, check_cursor, cursor_of, selected, selecting
from async_task_cli.terminal import briefly, coloured, counted, page, say

PLACES = {"created": "the oldest", "-created": "the newest", "due": "the first due", "-due": "the last due"}
MOST_ROWS = 10_000
"""How many rows are read at a time."""
COLUMNS = (
    Column("ID"), Column("WHEN"), Column("STATUS"), Column("TRIES", is_number=True),
    Column("CALL", shortest=12), Column("ERROR", shortest=12),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of rows in order with their short ids, and whether more follow; how many there are of each state on all
    pages, None for more than MOST_COUNTED together; the database's clock."""

    rows: Sequence[AttemptInfo]
    ids: Mapping[uuid.UUID, str]
    has_more: bool
    counts: Mapping[Status, int] | None
    now: dt.datetime


@click.command("list", context_settings=SETTINGS)
@selecting
@click.option(
    "--order", type=click.Choice(list(ORDERS)), default="-created", show_default=True, help="What comes first."
)
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, metavar="N", help="At most N.")
@click.option("--after", metavar="CURSOR", help="Only those behind this one: the id of the last line before.")
@as_json
@reaching
def list_attempts(wanted: Wanted, filters: Filters, order: str, limit: int, after: str | None, is_json: bool) -> None:
    """List attempts, newest first, and count them.

    One line is one attempt. WHEN is when it ended, when it began (performing), when it is due (pending), or when it
    was created (waiting: it is not the first of its order key). ERROR is the last error, or for what an attempt waits.
    On a terminal, CALL and ERROR are cut in the middle to fit; in a pipe they are whole. ID is the end of the id;
    `show` and all verbs take it, as well as the beginning or the whole id. --target takes what CALL prints, also where
    it is cut.

    States are those of the row, and: due (may be started now), performing (a worker has claimed it), stuck (a person
    may have to look at it). WHEN as an option is an instant with its zone (2026-10-25T02:30Z) or a length of time
    before now (2h, 3d). The orders due and -due list only what waits in a queue.

    --json writes one object a line, with the whole id. After --limit lines there may be more: give --after the whole
    id of the last one, or its due_at,id where --order is by due. New attempts do not shift the pages.
    """
    check_cursor(after, order)
    with existing(wanted) as app:
        if is_json:
            for row in selected(app, filters, order, limit, after):
                click.echo(json.dumps(listed(row)))
            return
        found = _listing(app, filters, order, limit, after)
    _print(found)
    say(_summary(found, PLACES[order] if after is None else "the next"))
    if found.has_more and found.rows:
        cursor = cursor_of(found.rows[-1], order)
        say(f"The next ones: {once_more(click.get_current_context(), '--after', cursor)}")


def _listing(app: AsyncTask, filters: Filters, order: str, limit: int, after: str | None) -> Listing:
    rows = list(selected(app, filters, order, limit + 1, after))
    has_more = len(rows) > limit
    is_all = not has_more and after is None
    counts = collections.Counter(row.status for row in rows) if is_all else _counts(app, filters)
    rows = rows[:limit]
    ids: dict[uuid.UUID, str] = {}
    for some in (rows[at : at + MOST_ROWS] for at in range(0, len(rows), MOST_ROWS)):
        ids |= app.attempts.short_ids(row.id for row in some)
        ids |= app.attempts.short_ids({row.waits_behind for row in some if row.waits_behind is not None})
    return Listing(rows, ids, has_more, counts, app.now())


def _counts(app: AsyncTask, filters: Filters) -> Mapping[Status, int] | None:
    counts: collections.Counter[Status] = collections.Counter()
    after = None
    while counts.total() <= MOST_COUNTED:
        found = app.attempts.counts(**filters.options, after=after)
        counts.update(found.by_status)
        if (after := found.next) is None:
            break
    return counts if counts.total() <= MOST_COUNTED else None


def _print(found: Listing) -> None:
    if found.rows:
        print_table(page(), COLUMNS, [_cells(found, row) for row in found.rows])


def _cells(found: Listing, row: AttemptInfo) -> Sequence[Text | str]:
    when = briefly(_when(row), found.now)
    return found.ids[row.id], when, coloured(_state(row)), str(row.num_attempts), row.call, _error(found, row)


def _error(found: Listing, row: AttemptInfo) -> str:
    if row.last_error is None and row.waits_behind is not None:
        return f"(waits behind {found.ids[row.waits_behind]})"
    return row.error or ""


def _state(row: AttemptInfo) -> str:
    if row.status is not Status.PENDING:
        return str(row.status)
    if not row.released:
        return "waiting"
    return "performing" if row.is_performing else "pending"


def _when(row: AttemptInfo) -> dt.datetime:
    if row.completed_at is not None:
        return row.completed_at
    if row.is_performing and row.attempted_at is not None:
        return row.attempted_at
    return row.due_at if row.released else row.created_at


def _summary(found: Listing, place: str) -> str:
    if found.counts is None:
        return f"More than {MOST_COUNTED:,} attempts, {place} {len(found.rows):,} of them shown."
    total = sum(found.counts.values())
    if not total:
        return "No attempts."
    shown = "" if len(found.rows) == total else f", {place} {len(found.rows):,} of them shown"
    each = ", ".join(f"{found.counts[one]:,} {one}" for one in Status if found.counts.get(one))
    return f"{counted(total, 'attempt')}{shown}: {each}."
