"""`async-task list`: attempts, oldest first, and how many there are in each state."""

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.text import Text
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from async_task import BaseAttempt, Status
from async_task.dialects import compared
from async_task_cli.application import existing
from async_task_cli.fields import LISTED, as_plain_data, call_of, column
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.terminal import coloured, counted, page, plain, since, table

WIDE = 110


@dataclass(frozen=True, slots=True)
class Listing:
    """The rows in order, how many there are of each status without the limit, and the database's clock."""

    rows: Sequence[Any]
    counts: dict[Status, int]
    now: dt.datetime


@click.command("list", context_settings=SETTINGS)
@click.option(
    "--status",
    "statuses",
    type=click.Choice([one.value for one in Status]),
    multiple=True,
    help="Only these; may be repeated.",
)
@click.option("--target", help="Only this target, by the name that it is registered under.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    metavar="N",
    help="At most so many, the oldest.",
)
@as_json
@reaching
def list_attempts(wanted: Wanted, statuses: tuple[str, ...], target: str | None, limit: int, is_json: bool) -> None:
    """List attempts, oldest first, and count them. --json writes one object a line."""
    with existing(wanted) as app:
        conditions = _conditions(app.model, statuses, target)
        find = _oldest if is_json else _listing
        found: Any = app.read(lambda session: find(session, app.model, conditions, limit))
    if is_json:
        for row in found:
            click.echo(json.dumps(as_plain_data(row)))
    else:
        _print(found, is_wide=page().width >= WIDE)


def _conditions(model: type[BaseAttempt], statuses: tuple[str, ...], target: str | None) -> list[Any]:
    conditions: list[Any] = []
    if statuses:
        conditions.append(model.status.in_([Status(one) for one in statuses]))
    if target is not None:
        conditions.append(model.target == target)
    return conditions


def _listing(session: Session, model: type[BaseAttempt], conditions: list[Any], limit: int) -> Listing:
    by_status = select(model.status, func.count()).where(*conditions).group_by(model.status)
    counts = {row[0]: row[1] for row in session.execute(by_status)}
    now = session.scalar(select(compared()))
    assert now is not None
    return Listing(
        _oldest(session, model, conditions, limit), {one: counts[one] for one in Status if one in counts}, now
    )


def _oldest(session: Session, model: type[BaseAttempt], conditions: list[Any], limit: int) -> Sequence[Any]:
    columns = [column(model, name) for name in LISTED]
    return session.execute(select(*columns).where(*conditions).order_by(model.created_at, model.id).limit(limit)).all()


def _print(found: Listing, *, is_wide: bool) -> None:
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
    console.print(_summary(found), soft_wrap=True)


def _state(row: Any) -> str:
    return "performing" if row.status is Status.PENDING and row.claimed_by is not None else str(row.status)


def _when(row: Any, now: dt.datetime) -> str:
    if row.completed_at is not None:
        return since(row.completed_at, now)
    if row.claimed_by is not None:
        return f"began {since(row.attempted_at, now)}"
    return f"due {since(row.due_at, now)}"


def _brief(error: str | None) -> str:
    return (error or "").partition("\n")[0]


def _summary(found: Listing) -> str:
    total = sum(found.counts.values())
    if not total:
        return "No attempts."
    shown = "" if len(found.rows) == total else f", the oldest {len(found.rows):,} of them shown"
    each = ", ".join(f"{number:,} {status}" for status, number in found.counts.items())
    return f"{counted(total, 'attempt')}{shown}: {each}."
