"""The geometry of the drawings, and lengths of time in words."""

import datetime as dt
from types import SimpleNamespace
from typing import Any

import pytest

from async_task.web.rendering.charts import HEIGHT, KINDS, WIDTH, beats, sparkline, stacked, time_line
from async_task.web.rendering.html import changed, counted, sentence
from async_task.web.rendering.times import since, span

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)


def bucket(begin: dt.datetime, **numbers: int) -> Any:
    return SimpleNamespace(**{"begin": begin, **dict.fromkeys(KINDS, 0), **numbers})


def test_bars_stand_on_each_other_and_few_of_them_are_labelled() -> None:
    buckets = [bucket(NOW + number * HOUR / 2) for number in range(49)]
    buckets[3] = bucket(buckets[3].begin, succeeded=6, failed=2)
    drawn = stacked(SimpleNamespace(buckets=buckets))
    low, high = drawn.parts
    assert (drawn.highest, drawn.words) == (8, "6 succeeded, 2 failed")
    assert (low.kind, low.y + low.height, high.y + high.height) == ("succeeded", HEIGHT, low.y)
    assert high.y == 0
    assert len(drawn.labels) == 49
    assert [at for at, one in enumerate(drawn.labels) if one] == [0, 8, 16, 24, 32, 40]
    assert drawn.labels[8] == "16:00"
    assert stacked(SimpleNamespace(buckets=[])).words == "no attempts"


def test_a_time_line_ends_with_its_attempt_and_leaves_out_notes() -> None:
    attempt: Any = SimpleNamespace(
        created_at=NOW, attempted_at=NOW + HOUR, completed_at=NOW + 2 * HOUR, read_at=NOW + DAY, is_performing=False,
        status=SimpleNamespace(value="failed"),
    )  # fmt: skip
    events: Any = [
        SimpleNamespace(created_at=NOW + HOUR, kind="error", num_attempt=1, actor=None),
        SimpleNamespace(created_at=NOW + 5 * HOUR, kind="note", num_attempt=None, actor="anna"),
    ]
    line = time_line(attempt, events)
    assert (line.begin, line.end) == (NOW, NOW + 2 * HOUR)
    assert [(one.x, one.words) for one in line.marks] == [
        (0, "created"), (WIDTH / 2, "error of try 1"), (WIDTH / 2, "its last try began"), (WIDTH, "failed"),
    ]  # fmt: skip


def test_the_longest_gap_between_runs_is_told_and_no_run_has_none() -> None:
    runs = [
        SimpleNamespace(started_at=NOW - ago * HOUR, ended_at=NOW - ago * HOUR, error=None, why="done")
        for ago in (1, 2, 7)
    ]  # fmt: skip
    assert beats(runs, NOW).words == "3 runs, the longest gap 5 h"
    assert beats([], NOW).words == "0 runs"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (0.0123, "12 ms"), (59, "59 s"), (605, "10 min"), (125, "2 min 5 s"), (3_600, "1 h"),
     (7_500, "2 h 5 min"), (79_260, "22 h"), (100_000, "1 d 3 h"), (1_000_000, "11 d")],
)  # fmt: skip
def test_a_length_of_time_has_two_units_below_ten_of_the_first(seconds: float, said: str) -> None:
    assert span(seconds) == said
    assert since(NOW, NOW + dt.timedelta(seconds=seconds)) in (f"{said} ago", "now")


def test_a_sentence_begins_with_a_capital_letter_and_its_backticks_are_code() -> None:
    assert sentence("it <is> `async-task retry`") == "It &lt;is&gt; <code>async-task retry</code>"
    assert sentence("") == ""


def test_a_change_of_an_instant_shows_where_it_differs() -> None:
    day, part = "2026-03-01 12:00", dt.timedelta(milliseconds=3)
    assert changed((NOW, NOW + HOUR)) == (f"{day}:00 UTC", "2026-03-01 13:00:00 UTC")
    assert changed((NOW, NOW + part)) == (f"{day}:00.000 UTC", f"{day}:00.003 UTC")
    assert changed((NOW, NOW + part / 1000)) == (f"{day}:00.000000 UTC", f"{day}:00.000003 UTC")
    assert changed((None, "failed")) == ("none", "failed")
    assert changed((NOW, None)) == (f"{day}:00 UTC", "none")


def test_one_of_a_thing_has_no_plural() -> None:
    assert [counted(number, "error") for number in (0, 1, 2)] == ["0 errors", "1 error", "2 errors"]
    assert [counted(2_000, noun) for noun in ("crash", "loss")] == ["2,000 crashes", "2,000 losses"]


def test_a_sparkline_begins_after_what_is_not_known() -> None:
    line = sparkline([9, None, 0, 2, 4])
    assert line is not None
    assert line.points == "45.0,19.0 67.5,10.0 90.0,1.0"
    assert line.words == "ended in each of the last 3 minutes: 0, 2, 4"
    assert sparkline([1, None]) is None
    assert sparkline([]) is None
