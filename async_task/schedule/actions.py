"""`outbox.schedule`: what people and pages do with the schedule of an application."""

import datetime as dt
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Any, Protocol, TypeVar

from sqlalchemy import Engine

from async_task.attempts.attempt import BaseAttempt
from async_task.attempts.draft import aware
from async_task.database.engines import Source
from async_task.errors import ConfigurationError, near
from async_task.schedule import occurrences
from async_task.schedule.cron import Cron
from async_task.schedule.entry import Entry
from async_task.schedule.occurrences import StoredEntry
from async_task.schedule.rules import next_times
from async_task.schema.audit import current_actor
from async_task.schema.tables import table_of

T = TypeVar("T")
MOST = 1_000_000
"""Times that are asked for at once."""


@dataclass(frozen=True, slots=True)
class OccurrenceInfo:
    """A time of the entry `key`. `status`: "enqueued" as the attempt `attempt_id`, "skipped" or "missed". `reason`:
    why, or who enqueued it by hand. `decided_at`: when that was written."""

    key: str
    fire_at: dt.datetime
    status: str
    reason: str | None
    attempt_id: uuid.UUID | None
    decided_at: dt.datetime


@dataclass(frozen=True, slots=True)
class EntryInfo:
    """An entry of the schedule, and what the database knows of it.

    `rule`: when it fires, as it was written; `in_english`: the same as a sentence; `tz`: the zone of both. `call`: what
    it calls. `next_at`: its next time, also while it is paused. `last`: its last occurrence. `is_seen`: whether a clock
    has seen it; its times count from then on.
    """

    key: str
    rule: str
    tz: str
    call: str
    catch_up: str
    overlap: str
    jitter: dt.timedelta
    next_at: dt.datetime | None
    last: OccurrenceInfo | None
    is_seen: bool
    paused_at: dt.datetime | None
    paused_by: str | None
    pause_reason: str | None
    in_english: str = ""


@dataclass(frozen=True, slots=True)
class Upcoming:
    """A time to come of the entry `key`, in UTC and in the zone of the entry."""

    key: str
    call: str
    fire_at: dt.datetime
    local: dt.datetime


class Run(Protocol):
    """Does work on the engine of an application, for a verb that errors name."""

    def __call__(self, verb: str, work: Callable[[Engine], T], /) -> T: ...


class AppSchedule:
    """The schedule of an application, as `outbox.schedule` gives it. All verbs are synchronous, and raise as
    `run_batch`; an unknown key raises ConfigurationError with the nearest one."""

    def __init__(
        self, entries: Mapping[str, Entry], model: type[BaseAttempt], source: Source, run: Run, change: Run
    ) -> None:
        self._entries = entries
        self._model, self._table = model, table_of(model)
        self._source = source
        self._run, self._change = run, change

    def list(self) -> Sequence[EntryInfo]:
        """Return the entries, in the order of the source, with their next and their last time."""

        def look_up(engine: Engine) -> list[EntryInfo]:
            with engine.begin() as connection:
                now, stored = occurrences.database_now(connection), occurrences.read(connection, self._table)
                found = {one: occurrences.last_rows(connection, self._table, one, 1) for one in self._entries}
            last = {key: _occurrence(rows[0]) for key, rows in found.items() if rows}
            return [_info(one, now, stored.get(key), last.get(key)) for key, one in self._entries.items()]

        return self._run("schedule.list", look_up)

    def next(self, count: int = 5, *, key: str | None = None, after: dt.datetime | None = None) -> Sequence[Upcoming]:
        """Return the next `count` times of all entries together, or of the entry `key`: after now, or after an aware
        datetime. Of rules alone: it does not ask `when=`, and paused entries are among them."""
        _check_number("count", count)
        if after is not None:
            aware(after, "after")
        chosen = list(self._entries.values()) if key is None else [self._entry(key)]
        since = (after or self._run("schedule.next", _clock)).astimezone(dt.UTC)
        ahead = merge(*([(at, one.key) for at in next_times(one.rule, since, count)] for one in chosen))
        return [self._upcoming(key, at) for at, key in islice(ahead, count)]

    def occurrences(self, key: str | None = None, *, limit: int = 20) -> Sequence[OccurrenceInfo]:
        """Return the last occurrences, the newest first: of the entry `key`, or of all."""
        _check_number("limit", limit)
        keys = list(self._entries) if key is None else [self._entry(key).key]

        def look_up(engine: Engine) -> list[OccurrenceInfo]:
            with engine.begin() as connection:
                rows = [row for one in keys for row in occurrences.last_rows(connection, self._table, one, limit)]
            return sorted(map(_occurrence, rows), key=lambda one: one.fire_at, reverse=True)[:limit]

        return self._run("schedule.occurrences", look_up)

    def run(self, key: str) -> uuid.UUID:
        """Enqueue the call of an entry now, whatever its rule, its `when=` and a pause say; return the id of the
        attempt. `acting(...)` says who did it."""
        entry, by = self._entry(key), current_actor()

        def enqueue(engine: Engine) -> uuid.UUID:
            with self._source.session(engine) as session, session.begin():
                reason = f"by hand, {by}" if by else "by hand"
                return occurrences.enqueue_now(session, self._model, entry, reason)

        return self._change("schedule.run", enqueue)

    def pause(self, key: str, *, reason: str | None = None, dry_run: bool = False) -> bool:
        """Pause an entry: its times are skipped until `resume`. Returns False if it was paused already. `acting(...)`
        says who paused it. `dry_run`: only return that."""
        if reason is not None and not isinstance(reason, str):
            raise ConfigurationError(f"reason is a text, not {reason!r}")
        entry, by = self._entry(key), current_actor()
        if dry_run:
            return not self._is_paused("schedule.pause", key)
        return self._change(
            "schedule.pause",
            lambda engine: occurrences.set_pause(engine, self._table, entry, by=by, reason=reason),
        )

    def resume(self, key: str, *, dry_run: bool = False) -> bool:
        """Resume a paused entry: its times count from now on. Returns False if it was not paused. `dry_run`: only
        return that."""
        entry = self._entry(key)
        if dry_run:
            return self._is_paused("schedule.resume", key)
        return self._change("schedule.resume", lambda engine: occurrences.end_pause(engine, self._table, entry))

    def _is_paused(self, verb: str, key: str) -> bool:
        def look_up(engine: Engine) -> bool:
            with engine.begin() as connection:
                stored = occurrences.read(connection, self._table).get(key)
            return stored is not None and stored.state.is_paused

        return self._run(verb, look_up)

    def _entry(self, key: object) -> Entry:
        found = self._entries.get(key) if isinstance(key, str) else None
        if found is None:
            raise ConfigurationError(f"the schedule has no entry {key!r}{near(str(key), self._entries)}")
        return found

    def _upcoming(self, key: str, fire_at: dt.datetime) -> Upcoming:
        entry = self._entries[key]
        return Upcoming(key, entry.call, fire_at, fire_at.astimezone(entry.rule.zone))


def _check_number(name: str, given: object) -> None:
    if type(given) is not int or not 1 <= given <= MOST:
        raise ConfigurationError(f"{name} is a whole number from 1 to {MOST}, not {given!r}")


def _clock(engine: Engine) -> dt.datetime:
    with engine.begin() as connection:
        return occurrences.database_now(connection)


def _occurrence(row: Any) -> OccurrenceInfo:
    return OccurrenceInfo(row.schedule_key, row.fire_at, row.status, row.reason, row.attempt_id, row.created_at)


def _info(entry: Entry, now: dt.datetime, stored: StoredEntry | None, last: OccurrenceInfo | None) -> EntryInfo:
    ahead = next_times(entry.rule, now, 1)
    paused = (None, None, None) if stored is None else (stored.paused_at, stored.paused_by, stored.pause_reason)
    return EntryInfo(
        entry.key, str(entry.rule), entry.rule.zone.key, entry.call, entry.catch_up, entry.overlap, entry.jitter,
        ahead[0] if ahead else None, last, stored is not None, *paused,
        entry.rule.in_english if isinstance(entry.rule, Cron) else str(entry.rule),
    )  # fmt: skip
