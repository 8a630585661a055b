"""The last good answers: how long they count, and when an older one is better than none."""

import pytest

from async_task.web import last_good
from async_task.web.last_good import LastGood


class Away(Exception):
    """The database is away."""


def is_away(error: Exception) -> bool:
    return isinstance(error, Away)


def failing() -> int:
    raise Away


def test_the_last_answer_stays_while_the_database_is_away() -> None:
    answers = LastGood(is_away)
    assert answers.read("a", lambda: 1).value == 1
    kept = answers.read("a", failing)
    assert (kept.value, type(kept.problem)) == (1, Away)
    fresh = answers.read("a", lambda: 2)
    assert (fresh.value, fresh.problem) == (2, None)
    assert fresh.read_at > kept.read_at


def test_without_an_answer_or_for_another_error_it_raises() -> None:
    answers = LastGood(is_away)
    with pytest.raises(Away):
        answers.read("a", failing)
    answers.read("a", lambda: 1)
    with pytest.raises(ZeroDivisionError):
        answers.read("a", lambda: 1 // 0)


def test_an_answer_counts_for_its_age(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, now = LastGood(is_away), [100.0]
    monkeypatch.setattr(last_good, "monotonic", lambda: now[0])
    assert answers.read("a", lambda: 1, max_age=5).value == 1
    now[0] += 4.9
    assert answers.read("a", lambda: 2, max_age=5).value == 1
    assert answers.read("b", lambda: 3, max_age=5).value == 3
    now[0] += 0.2
    assert answers.read("a", lambda: 4, max_age=5).value == 4
    assert answers.read("a", lambda: 5).value == 5


def test_those_who_look_while_another_reads_are_shown_the_answer_before(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, now = LastGood(is_away), [100.0]
    monkeypatch.setattr(last_good, "monotonic", lambda: now[0])
    answers.read("a", lambda: 1, max_age=5)
    now[0] += 10
    assert answers.read("a", lambda: answers.read("a", lambda: 3, max_age=5).value + 10, max_age=5).value == 11
    now[0] += 10
    with pytest.raises(ZeroDivisionError):
        answers.read("a", lambda: 1 // 0, max_age=5)
    assert answers.read("a", lambda: 4, max_age=5).value == 4


def test_only_so_many_answers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_good, "MOST", 2)
    answers = LastGood(is_away)
    for number in range(3):
        answers.read(number, lambda: 1)
    answers.read(1, failing)
    with pytest.raises(Away):
        answers.read(0, failing)
