"""`async-task list`: attempts page by page, and how many there are in each state."""

import collections
import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.text import Text
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from async_task import BaseAttempt, Status
from async_task.database.clock import statement_now
from async_task.queue.backlog import MOST_COUNTED
from async_task.queue.ordering import ahead
from async_task.schema.tables import table_of
from async_task_cli.application import existing
from async_task_cli.fields import LISTED, as_plain_data, call_of, column
from async_task_cli.options import SETTINGS, Wanted, as_json, once_more, reaching
from async_task_cli.selection import ORDERS, Filters, Order, selecting
from async_task_cli.terminal import coloured, counted, page, plain, say, since, table

WIDE = 110
PLACES = {"created": "the oldest", "-created": "the newest", "due": "the first due", "-due": "the last due"}


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of rows in order, and whether more come behind it; how many there are of each state on all pages, None
    for more than MOST_COUNTED together; the database's clock."""

    rows: Sequence[Any]
    has_more: bool
    counts: Mapping[Status, int] | None
    now: dt.datetime


@click.command("list", context_settings=SETTINGS)
@selecting
@click.option("--order", type=click.Choice(ORDERS), default="created", show_default=True, help="What comes first.")
@click.option(
    "--limit", type=click.IntRange(min=0), default=50, show_default=True, metavar="N", help="At most so many."
)
@click.option("--after", metavar="CURSOR", help="Go on behind this one: the id of the last line before.")
@as_json
@reaching
def list_attempts(wanted: Wanted, filters: Filters, order: str, limit: int, after: str | None, is_json: bool) -> None:
    """List attempts, oldest first, and count them.

    States are those of the row, and: due (may be taken now), performing (somebody holds it), stuck (a person may have
    to look at it). Shown as waiting is what has an order key and is not the first of it. WHEN is an instant with its
    zone (2026-10-25T02:30Z) or a length of time before now (2h, 3d).

    --json writes one object a line. Where --limit lines come there may be more: give --after the id of the last one,
    or its due_at,id where --order is by due. New attempts do not shift the pages.

    A terminal of 110 columns also shows when, and the last error.
    """
    by = Order(order)
    with existing(wanted) as app:
        asked = Asked(app.model, filters.conditions(app.model), by, by.behind(app.model, after), limit)
        found: Any = app.read(asked.rows if is_json else asked.listing)
    if is_json:
        for row in found:
            click.echo(json.dumps(as_plain_data(row)))
    else:
        _print(found, PLACES[order] if after is None else "the next", is_wide=page().width >= WIDE)
        _say_how_to_go_on(found, by)


@dataclass(frozen=True, slots=True)
class Asked:
    """A page of attempts to be found: `behind` where the one before it ended."""

    model: type[BaseAttempt]
    conditions: list[ColumnElement[bool]]
    order: Order
    behind: list[ColumnElement[bool]]
    limit: int

    def rows(self, session: Session, *, more: int = 0) -> Sequence[Any]:
        behind = ahead(table_of(self.model)).label("waits_behind")
        found = select(*(column(self.model, name) for name in LISTED), behind).where(*self.conditions, *self.behind)
        return session.execute(found.order_by(*self.order.columns(self.model)).limit(self.limit + more)).all()

    def listing(self, session: Session) -> Listing:
        rows = self.rows(session, more=1)
        has_more = len(rows) > self.limit
        is_all = not has_more and not self.behind
        counts = collections.Counter(row.status for row in rows) if is_all else self._counts(session)
        now = session.scalar(select(statement_now()))
        assert now is not None
        return Listing(rows[: self.limit], has_more, counts, now)

    def _counts(self, session: Session) -> dict[Status, int] | None:
        # Never more rows than can be read in a moment: a summary must not read a table of millions.
        some = select(self.model.status).where(*self.conditions).limit(MOST_COUNTED + 1).subquery()
        found = session.execute(select(some.c.status, func.count()).group_by(some.c.status))
        counts = {row[0]: row[1] for row in found}
        return counts if sum(counts.values()) <= MOST_COUNTED else None


def _print(found: Listing, place: str, *, is_wide: bool) -> None:
    console = page()
    if found.rows:
        more = ["WHEN", "LAST ERROR"] if is_wide else []
        made = table(
            ["ID", "STATUS", "TRIES", "CALL", *more], numbers=["TRIES"], whole=["ID", "STATUS", "TRIES", "WHEN"]
        )
        for row in found.rows:
            cells = [Text(str(row.id)), coloured(_state(row)), Text(str(row.num_attempts)), plain(call_of(row))]
            made.add_row(*cells, *([Text(_when(row, found.now)), plain(_brief(row.last_error))] if is_wide else []))
        console.print(made)
    console.print(_summary(found, place), soft_wrap=True)


def _say_how_to_go_on(found: Listing, order: Order) -> None:
    if found.has_more and found.rows:
        say(f"The next ones: {once_more(click.get_current_context(), '--after', order.cursor(found.rows[-1]))}")


def _state(row: Any) -> str:
    if row.status is not Status.PENDING:
        return str(row.status)
    if not row.released:
        return "waiting"
    return "performing" if row.claimed_by is not None else "pending"


def _when(row: Any, now: dt.datetime) -> str:
    if row.completed_at is not None:
        return since(row.completed_at, now)
    if row.claimed_by is not None:
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
