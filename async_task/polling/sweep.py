"""The sweep of polls: it resumes those whose attempt was lost, and then hurries those that are too old.

It asks no provider. That is left to the attempt of the operation, of which there is one: an attempt that waits is left
alone, however late it is, so that sweeps only add what is missing.
"""

import datetime as dt
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from sqlalchemy import ColumnElement, Engine, and_, or_, select
from sqlalchemy.orm import Session, load_only

from async_task.attempts.attempt import BaseAttempt
from async_task.attempts.chain import can_hurry, key_of
from async_task.database.clock import statement_now
from async_task.database.transactions import retry_transient
from async_task.error_text import describe
from async_task.polling.chain import METHOD, chain_of, continue_chain, name_of
from async_task.polling.pollable import Pollable
from async_task.polling.settings import Polling
from async_task.polling.states import TERMINAL, PollState
from async_task.polling.target import registered_pollables
from async_task.queue.backlog import MOST_COUNTED
from async_task.queue.sweep_preview import PlannedChange, Source, SweepPreview, collected
from async_task.schema.states import Status
from async_task.schema.tables import table_of

logger = logging.getLogger("async_task")
SHOWN = ("status", "next_poll_at", "submitted_at", "ended_at", "failed_at")
ASKED_EVERY = 10.0
"""Seconds after which a worker asks what is due, or sooner if a class is to be swept more often."""


class PollSweeper:
    """Sweeps now and then, each class as often as its `polling` says. Any number of processes may do it."""

    def __init__(self, model: type[BaseAttempt]) -> None:
        self._table = table_of(model)
        self._next: dict[tuple[type[Pollable], str], float] = {}

    @property
    def is_wanted(self) -> bool:
        """Whether this process knows any operations."""
        return bool(self.models)

    @property
    def every(self) -> float:
        """Seconds after which `sweep` is to be called again, so that no class is swept later than it says."""
        settings = [model.polling for model in self.models]
        return min([ASKED_EVERY, *(min(one.resume_every, one.expire_every).total_seconds() for one in settings)])

    def sweep(self, engine: Engine) -> int:
        """Do what is due. Returns how many polls were resumed."""
        resumed = 0
        for model in self.models:
            polling = model.polling
            if self._is_due(model, "resume", polling.resume_every):
                resumed += _attempted(model, partial(resume, engine, model))
            if self._is_due(model, "expire", polling.expire_every):
                _attempted(model, partial(expire, engine, model))
        return resumed

    @property
    def models(self) -> list[type[Pollable]]:
        """The classes of operations that are polled by attempts of this table."""
        return [one for one in registered_pollables() if table_of(one.polling.model) is self._table]

    def _is_due(self, model: type[Pollable], what: str, every: dt.timedelta) -> bool:
        now, key = time.monotonic(), (model, what)
        if now < self._next.get(key, 0.0):
            return False
        self._next[key] = now + every.total_seconds()
        return True


def sweep_polls(engine: Engine, model: type[BaseAttempt]) -> int:
    """Resume, then expire, the operations of all classes that this process knows. Returns how many were resumed."""
    return PollSweeper(model).sweep(engine)


def resume(engine: Engine, model: type[Pollable]) -> int:
    """Give an attempt to each operation that is late, or not quite finished, and has none. Returns to how many."""
    is_late = _is_late(model)
    late = _without_attempt(engine, model, _read(engine, model, is_late))
    return sum(_each(engine, model, row, is_late, "resumed", at_once=False) for row in late)


def expire(engine: Engine, model: type[Pollable]) -> int:
    """Make the attempt of each operation due now that is past its maximal age. Returns of how many."""
    is_old = _is_old(model)
    old = _read(engine, model, is_old)
    return sum(_each(engine, model, row, is_old, "past its maximal age", at_once=True) for row in old)


def preview_polls(engine: Engine, model: type[BaseAttempt], limit: int) -> SweepPreview:
    """What `sweep_polls` would do now."""
    sources = [
        source for one in PollSweeper(model).models for source in (_to_resume(engine, one), _to_hurry(engine, one))
    ]
    return collected(sources, limit)


def _to_resume(engine: Engine, model: type[Pollable]) -> Source:
    def read(limit: int) -> list[PlannedChange]:
        late = _without_attempt(engine, model, _read(engine, model, _is_late(model), MOST_COUNTED))
        return _planned(engine, model, late, limit, lost=True, waiting=False)

    return Source(read, lambda: len(read(MOST_COUNTED)))


def _to_hurry(engine: Engine, model: type[Pollable]) -> Source:
    def read(limit: int) -> list[PlannedChange]:
        is_old, is_late = _is_old(model), _is_late(model)
        late = _read(engine, model, and_(is_old, is_late), MOST_COUNTED)  # those that are lost are resumed before
        found = _planned(engine, model, late, limit, lost=False, waiting=True)
        others = _read(engine, model, and_(is_old, ~is_late), MOST_COUNTED)
        return found + _planned(engine, model, others, limit - len(found), lost=True, waiting=True)

    return Source(read, lambda: len(read(MOST_COUNTED)))


def _planned(
    engine: Engine, model: type[Pollable], rows: Sequence[Pollable], limit: int,
    *, lost: bool, waiting: bool,
) -> list[PlannedChange]:  # fmt: skip
    """What `continue_chain` would do for the first `limit` of these rows for which it would do anything. `lost`: those
    without a pending attempt. `waiting`: make the attempts of others due."""
    found: list[PlannedChange] = []
    chain = chain_of(model)
    with Session(engine) as session, session.begin():
        for row in itertools.takewhile(lambda _: len(found) < limit, rows):
            attempt = chain.last_link(session, key_of(row)).attempt
            is_lost = attempt is None or attempt.status is not Status.PENDING
            if lost if is_lost else (waiting and attempt is not None and can_hurry(session, attempt)):
                found.append(_change(model, row, at_once=waiting))
    return found


def _change(model: type[Pollable], row: Pollable, *, at_once: bool) -> PlannedChange:
    polling: Polling = model.polling
    if at_once:
        action, reason, since = "hurried", f"it is past its maximal age of {polling.max_age}", row.submitted_at
    elif row.status in TERMINAL:
        action, reason = "resumed", f"no attempt polls it: it is {row.status}, and not yet fetched and handled"
        since = row.ended_at or row.failed_at
    else:
        action, reason, since = "resumed", f"no attempt polls it: it is {row.status}, and late", row.next_poll_at
    key = str(key_of(row))
    return PlannedChange("operation", key, name_of(model), METHOD, polling.queue, action, reason, since)


def _each(
    engine: Engine, model: type[Pollable], row: Pollable, condition: ColumnElement[bool], what: str, *, at_once: bool
) -> bool:
    """In a transaction of its own: a row that cannot be helped is logged, and blocks no other. The condition is asked
    again there: the row may have come to its end since it was read."""
    key = key_of(row)
    name = f"{model.__name__} {key} ({row.status}, next poll at {row.next_poll_at})"
    try:
        with Session(engine) as session, session.begin():
            is_changed = continue_chain(session, model, key, at_once=at_once, only_if=condition)
    except Exception as error:
        logger.warning("%s could not be %s: %s", name, what, describe(error).summary)
        return False
    if is_changed:
        logger.warning("%s: %s", name, what)
    return is_changed


def _attempted(model: type[Pollable], work: Callable[[], int]) -> int:
    try:
        return retry_transient(work)
    except Exception as error:
        logger.warning("the polls of %s could not be swept: %s", name_of(model), describe(error).summary)
        return 0


def _read(
    engine: Engine, model: type[Pollable], condition: ColumnElement[bool], limit: int | None = None
) -> Sequence[Pollable]:
    shown = load_only(*(getattr(model, name) for name in SHOWN))
    with Session(engine, expire_on_commit=False) as session, session.begin():
        rows = session.scalars(select(model).where(condition).options(shown).limit(limit)).unique().all()
    return [row for row in rows if type(row) is model]  # the rows of a subclass are polled by its own target


def _without_attempt(engine: Engine, model: type[Pollable], rows: Sequence[Pollable]) -> list[Pollable]:
    """Those that no attempt polls."""
    by_key = {key_of(row): row for row in rows}
    return [by_key[key] for key in chain_of(model).without_attempt(engine, by_key)]


def _is_late(model: type[Pollable]) -> ColumnElement[bool]:
    """What a poll would find something to do for, and is late for: as `decide` says."""
    polling: Polling = model.polling
    due_before = statement_now(-polling.grace.total_seconds())
    goes_on = model.status.not_in(sorted(TERMINAL))
    is_submitted = or_(model.status != PollState.PENDING, model.submitted_at.is_not(None))
    is_overdue = or_(model.next_poll_at.is_(None), model.next_poll_at <= due_before)
    lacks_stamp = or_(model.results_fetched_at.is_(None), model.handler_dispatched_at.is_(None))
    return or_(and_(goes_on, is_submitted, is_overdue), and_(~goes_on, lacks_stamp))


def _is_old(model: type[Pollable]) -> ColumnElement[bool]:
    submitted_before = statement_now(-model.polling.max_age.total_seconds())
    return and_(model.status.not_in(sorted(TERMINAL)), model.submitted_at < submitted_before)
