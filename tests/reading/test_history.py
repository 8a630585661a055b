"""What has become of the attempts of the last hours, in buckets of time; exact for few, and estimated for many."""

import datetime as dt
import random
import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import Engine, insert

from async_task import AsyncTask, Attempt, ConfigurationError, HistoryBucket, Status
from async_task.reading import history, samples
from async_task.reading.samples import Part, Probe, estimates_of
from async_task.schema.columns import tick_of, uuid7_at
from conftest import by_one_door

MINUTE = dt.timedelta(minutes=1)
HOUR = 4096 * 3_600_000
"""In ticks."""


def written(engine: Engine, *rows: tuple[dt.datetime, Status, int]) -> None:
    """Attempts by the time in their id, their status and the number of their tries."""
    values: list[dict[str, Any]] = []
    for when, status, tries in rows:
        ended = None if status is Status.PENDING else when
        key = uuid.UUID(int=uuid7_at(tick_of(when)).int + random.getrandbits(60))
        named = {"target": "test.act", "method_name": "__call__", "method_args": "{}"}
        values.append(
            named | {"id": key, "status": status, "num_attempts": tries, "due_at": when, "completed_at": ended}
        )
    with engine.begin() as connection:
        connection.execute(insert(Attempt.__table__), values)


def counts(one: HistoryBucket) -> tuple[int, ...]:
    return one.succeeded, one.retried, one.failed, one.canceled, one.waiting


def test_each_attempt_counts_in_the_bucket_of_its_creation_by_what_has_become_of_it(
    app: AsyncTask, engine: Engine
) -> None:
    empty = app.attempts.history("1h")
    assert (len(empty.buckets), {one.total for one in empty.buckets}, empty.is_estimate) == (31, {0}, False)
    now = app.now()
    then = now - 7 * MINUTE
    ends = [(Status.SUCCEEDED, 1), (Status.SUCCEEDED, 1), (Status.SUCCEEDED, 3), (Status.FAILED, 2)]
    ends += [(Status.EXPIRED, 0), (Status.CANCELED, 0), (Status.PENDING, 1), (Status.PENDING, 0)]
    written(engine, *((then, status, tries) for status, tries in ends))
    ahead, long_ago = now + 40 * MINUTE, now - dt.timedelta(days=6)
    written(engine, (ahead, Status.FAILED, 1), (long_ago, Status.SUCCEEDED, 1), (now - 63 * MINUTE, Status.CANCELED, 0))
    found = app.attempts.history("1h")
    assert [one.end for one in found.buckets[:-1]] == [one.begin for one in found.buckets[1:]]
    assert found.buckets[0].begin <= found.read_at - 60 * MINUTE
    assert found.buckets[-1].begin <= found.read_at < found.buckets[-1].end
    filled = [one for one in found.buckets if one.total]
    assert [counts(one) for one in filled] == [(2, 1, 2, 1, 2), (0, 0, 1, 0, 0)]
    assert filled[0].begin <= then < filled[0].end
    assert filled[1] == found.buckets[-1]
    sums = {}
    for span in ("6h", "24h", "7d"):
        buckets = app.attempts.history(span).buckets  # type: ignore[arg-type]
        sums[span] = (len(buckets), tuple(map(sum, zip(*map(counts, buckets), strict=True))))
    assert sums == {"6h": (37, (2, 1, 3, 2, 2)), "24h": (49, (2, 1, 3, 2, 2)), "7d": (29, (3, 1, 3, 2, 2))}
    with pytest.raises(ConfigurationError, match="did you mean '24h'"):
        app.attempts.history("24")  # type: ignore[arg-type]


@pytest.mark.slow
@by_one_door
def test_of_many_attempts_a_part_is_read_of_each_bucket_and_stands_for_the_others(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "COUNTED", 100)
    for module in (history, samples):
        monkeypatch.setattr(module, "SAMPLED", 12)
    now = app.now()
    begin = app.attempts.history("6h").buckets[20].begin
    steady = [begin + number * dt.timedelta(seconds=1) for number in range(600)]
    kinds = [Status.SUCCEEDED, Status.SUCCEEDED, Status.SUCCEEDED, Status.FAILED]
    written(engine, *((when, kinds[number % 4], 1) for number, when in enumerate(steady)))
    written(engine, *((now, Status.PENDING, 0) for _ in range(3)))
    found = app.attempts.history("6h")
    full, *others = (one for one in found.buckets if one.total)
    assert full.begin == begin
    assert full.is_estimate
    assert found.is_estimate
    assert full.succeeded == pytest.approx(450, rel=0.15)
    assert full.failed == pytest.approx(150, rel=0.15)
    assert [(counts(one), one.is_estimate) for one in others] == [((0, 0, 0, 0, 3), False)]


class Rows:
    """Rows at these ticks, of one kind, which notes how many are read."""

    def __init__(self, ticks: list[int]) -> None:
        self.ticks = sorted(ticks)
        self.num_read = 0

    def read(self, parts: Sequence[Part]) -> list[Probe]:
        return [self._probe(part) for part in parts]

    def _probe(self, part: Part) -> Probe:
        first = [tick for tick in self.ticks if part.begin <= tick < part.end][: samples.SAMPLED]
        self.num_read += len(first)
        at = first or [part.begin]
        return Probe(part, [len(first)], at[max(0, len(first) // 2 - 1)], at[-1])


CASES = {
    "few": (range(0, HOUR, HOUR // 150), 0.0),
    "evenly": (range(0, HOUR, HOUR // 20_000), 0.05),
    "all at the full hour": (range(0, 4096_000, 4096_000 // 5_000), 0.5),
    "a burst in the middle": (range(HOUR // 2, HOUR // 2 + 4096 * 700, 4096 * 700 // 20_000), 0.5),
    "in bundles": ([start + n for start in range(HOUR // 77, HOUR, HOUR // 60) for n in range(100)], 0.4),
}


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_of_a_stretch_is_near_from_a_bounded_number_of_rows(case: str) -> None:
    ticks, tolerance = CASES[case]
    rows = Rows(list(ticks))
    [found] = estimates_of([Part(0, HOUR)], rows.read)
    assert found.kinds == [pytest.approx(len(rows.ticks), rel=tolerance)]
    assert found.is_estimate == (tolerance > 0)
    assert rows.num_read <= samples.SAMPLED * (len(samples.CUTS) + samples.LINKS * len(samples.CUTS))
