"""What fires now: decided without a clock, a session or I/O."""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from async_task.schedule.entry import MOST, Entry
from async_task.schedule.rules import latest_times

OccurrenceStatus = Literal["enqueued", "skipped", "missed"]
ON_TIME = dt.timedelta(minutes=1)
"""The last time of an entry is not missed if it is decided within that time, as while a clock is restarted."""
MISSED = "no clock could decide it in time"
OVERLAPS = "the attempt of the last occurrence was still pending"
PAUSED = "the entry was paused"
REFUSED = "when= said no"


@dataclass(frozen=True, slots=True)
class EntryState:
    """What the database knows of an entry. Up to `decided_until` everything is decided. `is_running`: the attempt of
    its last occurrence is pending."""

    decided_until: dt.datetime
    is_paused: bool = False
    is_running: bool = False


@dataclass(frozen=True, slots=True)
class Decided:
    """A time of an entry, and what becomes of it."""

    fire_at: dt.datetime
    status: OccurrenceStatus
    reason: str | None = None


def decide(
    entry: Entry, state: EntryState, now: dt.datetime, when: Callable[[dt.datetime], bool] = lambda fire_at: True
) -> Sequence[Decided]:
    """What becomes of each time of the entry that is not decided yet, in order; nothing until the next one has come.

    Missed: what no clock decided in time, but for the last times that `catch_up` enqueues late. Skipped: what comes
    while the entry is paused, what `when` refuses, and what overlaps.
    """
    times, is_cut = latest_times(entry.rule, state.decided_until, now, MOST)
    if state.is_paused:
        return [Decided(one, "skipped", PAUSED) for one in times]
    num_wanted = max(entry.most_missed, 1 if times and now - times[-1] <= ON_TIME else 0)
    begin = max(0, len(times) - num_wanted)
    missed = [Decided(one, "missed", MISSED) for one in times[:begin]]
    if missed and is_cut:
        missed[0] = Decided(missed[0].fire_at, "missed", f"{MISSED}; earlier times have no row")
    return [*missed, *_fired(entry, state, times[begin:], when)]


def _fired(
    entry: Entry, state: EntryState, times: Sequence[dt.datetime], when: Callable[[dt.datetime], bool]
) -> list[Decided]:
    is_running, decided = state.is_running, list[Decided]()
    for one in times:
        if entry.overlap == "skip" and is_running:
            decided.append(Decided(one, "skipped", OVERLAPS))
        elif not when(one):
            decided.append(Decided(one, "skipped", REFUSED))
        else:
            decided.append(Decided(one, "enqueued"))
            is_running = True
    return decided
