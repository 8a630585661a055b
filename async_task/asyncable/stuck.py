"""What is stuck among models that are their own jobs: for `outbox.attempts.stuck`, beside the attempts.

Rows whose job fails again and again are told by their attempts. Here is what no attempt tells: rows that lack one, rows
whose window is over, and rows that were never submitted.
"""

import datetime as dt
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import and_, func, inspect, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from async_task.asyncable.asyncable import Asyncable
from async_task.asyncable.chain import METHOD, chain_of, name_of
from async_task.asyncable.columns import columns_of, own_rows
from async_task.asyncable.job_rows import JobRow, columns_of_rows, read_rows
from async_task.asyncable.scopes import Known, Scopes
from async_task.asyncable.verbs import conditions
from async_task.database.index_order import order_after_nulls
from async_task.error_text import describe
from async_task.queue.backlog import MOST_COUNTED
from async_task.reading.row_keys import key_in_full
from async_task.reading.stuck_groups import LATEST, StuckCause, StuckFound, StuckGroup, StuckJob
from async_task.targets.target import call_name


class _Stuck(NamedTuple):
    """A row, and since when it has been stuck; None where nothing tells."""

    row: JobRow
    since: dt.datetime | None


class StuckModels:
    """These classes, as a source of what is stuck. A class that cannot be read is named, and stops no other."""

    def __init__(self, models: Sequence[type[Asyncable]]) -> None:
        self._models = models

    def stuck(self, session: Session, limit: int) -> StuckFound:
        """The groups of each class: a bounded number of rows along the index of its sweep."""
        found, unread = list[StuckGroup](), list[str]()
        is_complete = True
        for model in self._models:
            try:
                with session.begin_nested():
                    groups, is_whole = _groups(session, model, limit)
            except SQLAlchemyError as error:
                unread.append(f"{name_of(model)} could not be looked at: {describe(error).summary}")
            else:
                found += groups
                is_complete = is_complete and is_whole
        return StuckFound(found, is_complete and not unread, unread)


def _groups(session: Session, model: type[Asyncable], limit: int) -> tuple[list[StuckGroup], bool]:
    """The groups of a class, and whether all of its rows were looked at."""
    can = conditions(model)
    late = _submitted(session, model, can.expired_without_processing())
    waiting = _submitted(session, model, can.requires_processing())
    left = set(chain_of(model).without_attempt_in(session.connection(), [one.row.key for one in waiting]))
    lost = [one for one in waiting if one.row.key in left]
    never, are_all_seen = _never_submitted(session, model)
    are_all: dict[StuckCause, bool] = {
        "window_over": len(late) < MOST_COUNTED,
        "no_job": len(waiting) < MOST_COUNTED,
        "not_submitted": are_all_seen,
    }
    rows: dict[StuckCause, Sequence[_Stuck]] = {"window_over": late, "no_job": lost, "not_submitted": never}
    groups = [_group(model, cause, some, limit, is_counted=are_all[cause]) for cause, some in rows.items() if some]
    return groups, all(are_all.values())


def _group(
    model: type[Asyncable], cause: StuckCause, rows: Sequence[_Stuck], limit: int, *, is_counted: bool
) -> StuckGroup:
    oldest = sorted(rows, key=lambda one: one.since or LATEST)[:limit]
    words, remedy, effect = _told(model, cause, is_one=len(rows) == 1, oldest=key_in_full(model, oldest[0].row.key))
    count = f"{len(rows):,} {'row' if len(rows) == 1 else 'rows'}{'' if is_counted else ' or more'}"
    jobs = tuple(_job(model, one) for one in oldest)
    return StuckGroup(cause, name_of(model), f"{count} {words}", len(rows), is_counted, jobs, remedy, effect)


def _told(model: type[Asyncable], cause: StuckCause, *, is_one: bool, oldest: str) -> tuple[str, str, str]:
    """What follows the number of rows; the command that helps; and what that does."""
    name, were, have = name_of(model), "was" if is_one else "were", "has" if is_one else "have"
    restart = f"async-task restart {shlex.quote(name)}"
    if cause == "window_over":
        return (
            f"of {name} {were} not processed within {model.processing.window_in_words}",
            f"{restart} --expired --reason mended",
            "The oldest 100 are given a new window and a job that is due now.",
        )
    if cause == "no_job":
        return (
            f"of {name} {have} no job: nobody sweeps, or their attempts were canceled",
            "async-task process-models",
            "The oldest 100 of each model are given a job that is due now. Cron or a clock should do that every hour.",
        )
    return (
        f"of {name} {were} attempted or {have} an error, and {were} never submitted",
        f"{restart} {shlex.quote(oldest)} --reason mended",
        "The oldest is submitted: its job is due now.",
    )


def _job(model: type[Asyncable], one: _Stuck) -> StuckJob:
    table = columns_of(model)["processed_at"].table.name
    key, call = key_in_full(model, one.row.key), call_name(name_of(model), METHOD)
    return StuckJob(table, key, call, one.since, one.row.error)


def _submitted(session: Session, model: type[Asyncable], condition: Any) -> list[_Stuck]:
    """What was submitted and says `condition`: the oldest submissions first."""
    c, processing = columns_of(model), model.processing
    oldest_first = order_after_nulls(c["processed_at"], c["canceled_at"], c["last_submitted_at"])
    wanted = columns_of_rows(model).where(condition).order_by(oldest_first).limit(MOST_COUNTED)

    def since(said: Scopes[Known]) -> dt.datetime:
        last: dt.datetime = said.last_submitted_at.value
        if said.expired_without_processing():
            return last + processing.window
        return max(last, said.attempted_at.value or last) + processing.interval

    return [_Stuck(row, since(row.said)) for row in read_rows(session, model, wanted)]


def _never_submitted(session: Session, model: type[Asyncable]) -> tuple[list[_Stuck], bool]:
    """What was attempted or has an error, among the first rows that are open and were never submitted; and whether
    these are all."""
    c = columns_of(model)
    can, key = conditions(model), inspect(model).primary_key
    first = own_rows(model, select(*key).where(can.open(), c["last_submitted_at"].is_(None))).limit(MOST_COUNTED)
    among = first.subquery()
    is_one = and_(*(column == among.c[number] for number, column in enumerate(key)))
    is_odd = can.attempted_without_being_submitted() | can.with_error()
    wanted = columns_of_rows(model).join(among, is_one).where(is_odd)
    found = [_Stuck(row, row.said.attempted_at.value) for row in read_rows(session, model, wanted)]
    seen = session.scalar(select(func.count()).select_from(among)) or 0
    return found, seen < MOST_COUNTED
