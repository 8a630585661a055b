"""What is open and how long processing took, in numbers: by model, age, and the first word of the error."""

import datetime as dt
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from async_task.asyncable.asyncable import Asyncable
from async_task.asyncable.chain import name_of
from async_task.asyncable.columns import columns_of, own_rows
from async_task.asyncable.verbs import conditions
from async_task.database.clock import instant_in, statement_now
from async_task.error_text import sanitized

PROMPT = dt.timedelta(days=7)
"""What was processed within this time counts as prompt."""
PAGE = 1_000


@dataclass(frozen=True, slots=True)
class StuckCount:
    """How many potentially stuck rows of a model are so old and have this error.

    `age_days`: full days since they were last submitted; None for those that never were. `error`: the first word alone;
    None without an error.
    """

    model: str
    age_days: int | None
    error: str | None
    count: int


@dataclass(frozen=True, slots=True)
class ProcessingTimes:
    """How long the processed rows of a model took from `submitted_at` to `processed_at`.

    `within_7_days`: the share, 0 to 1. All but `count` are None where nothing was processed.
    """

    model: str
    count: int
    median: dt.timedelta | None = None
    mean: dt.timedelta | None = None
    min: dt.timedelta | None = None
    max: dt.timedelta | None = None
    within_7_days: float | None = None


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """`stuck`: by model, age (the oldest first) and number. `times`: by model."""

    stuck: tuple[StuckCount, ...] = ()
    times: tuple[ProcessingTimes, ...] = ()


def summarize(session: Session, models: Sequence[type[Asyncable]], since: dt.datetime | None) -> ModelSummary:
    """Reads all rows that are potentially stuck, and those that were processed `since`."""
    ordered = sorted(models, key=name_of)
    stuck = [one for model in ordered for one in _stuck(session, model)]
    return ModelSummary(tuple(stuck), tuple(_times(session, model, since) for model in ordered))


def _stuck(session: Session, model: type[Asyncable]) -> list[StuckCount]:
    columns = columns_of(model)
    wanted = select(instant_in(columns["last_submitted_at"]), columns["error"], statement_now())
    counts: Counter[tuple[int | None, str | None]] = Counter()
    for last, error, now in _streamed(session, model, wanted.where(conditions(model).potentially_stuck())):
        counts[(None if last is None else (now - last).days, None if error is None else sanitized(error))] += 1
    name = name_of(model)
    found = [StuckCount(name, age, error, count) for (age, error), count in counts.items()]
    return sorted(found, key=lambda one: (one.age_days is None, -(one.age_days or 0), -one.count, one.error or ""))


def _times(session: Session, model: type[Asyncable], since: dt.datetime | None) -> ProcessingTimes:
    columns, can = columns_of(model), conditions(model)
    wanted = select(*(instant_in(columns[name]) for name in ("submitted_at", "processed_at")))
    wanted = wanted.where(can.processed(), can.submitted())
    if since is not None:
        wanted = wanted.where(instant_in(columns["processed_at"]) >= since)
    took = [(processed - submitted).total_seconds() for submitted, processed in _streamed(session, model, wanted)]
    if not took:
        return ProcessingTimes(name_of(model), 0)
    prompt = sum(one <= PROMPT.total_seconds() for one in took) / len(took)
    return ProcessingTimes(
        name_of(model), len(took), _length(statistics.median(took)), _length(statistics.fmean(took)),
        _length(min(took)), _length(max(took)), prompt,
    )  # fmt: skip


def _length(seconds: float) -> dt.timedelta:
    return dt.timedelta(seconds=seconds)


def _streamed(session: Session, model: type[Asyncable], statement: Any) -> Iterator[Any]:
    yield from session.execute(own_rows(model, statement).execution_options(yield_per=PAGE))
