"""The selection of tests: no case is lost, and every database has its turn."""

import itertools
import pathlib
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

import pairs
from databases import NAMES


def items(*marks: Any, cases: int, others: int = 1, stem: str = "test_it", doors: tuple[str, ...] = ("sync",)) -> Any:
    """What pytest collects for a test with two parameters."""
    return [
        item(marks, stem, {"one": one, "other": other, "database": database, "door": door}, doors)
        for database, door, one, other in itertools.product(NAMES, doors, range(cases), range(others))
    ]


def item(marks: Any, stem: str, params: dict[str, Any], doors: tuple[str, ...]) -> Any:
    places = params | {"database": NAMES.index(params["database"]), "door": doors.index(params["door"])}
    return _Item(
        path=pathlib.Path(f"{stem}.py"), cls=None, originalname="test_it", name="test_it",
        callspec=SimpleNamespace(params={name: str(value) for name, value in params.items()}, indices=places),
        iter_markers=lambda name: [mark.mark for mark in marks if mark.name == name],
        get_closest_marker=lambda name: next((mark for mark in marks if mark.name == name), None),
    )  # fmt: skip


class _Item(SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]


def chosen(collected: Any) -> list[dict[str, str]]:
    wanted = pairs.wanted(collected)
    return [one.callspec.params for one in collected if one in wanted]


def test_each_case_in_turns_runs_once_and_each_value_on_each_database() -> None:
    found = chosen(items(pytest.mark.in_turns, cases=6, others=3))
    assert Counter((one["one"], one["other"]) for one in found) == Counter(
        (str(one), str(other)) for one in range(6) for other in range(3)
    )
    assert Counter(one["database"] for one in found) == dict.fromkeys(NAMES, 6)
    assert {(one["other"], one["database"]) for one in found} == set(itertools.product(map(str, range(3)), NAMES))


def test_databases_have_as_many_turns_also_where_cases_are_numbered_with_gaps() -> None:
    collected = items(pytest.mark.in_turns, cases=6)
    for one in collected:
        one.callspec.indices["one"] *= len(NAMES)
    assert Counter(one["database"] for one in chosen(collected)) == dict.fromkeys(NAMES, 2)


def test_with_fewer_cases_than_databases_the_marker_is_refused() -> None:
    with pytest.raises(pytest.UsageError, match="in_turns has too few cases for"):
        chosen(items(pytest.mark.in_turns, cases=2))


def test_any_other_test_runs_each_case_on_each_database_and_half_of_them_also_on_the_async_engine() -> None:
    found = chosen(items(cases=4, others=2, doors=("sync", "async")))
    plain = [one for one in found if one["door"] == "sync"]
    assert len(plain) == 4 * 2 * len(NAMES)
    other = [one for one in found if one["door"] == "async"]
    assert {one["database"] for one in other} == {"postgresql"}
    assert {one["one"] for one in other} == set("0123")
    assert {one["other"] for one in other} == set("01")
    assert len(other) == 4


def test_a_test_without_cases_runs_with_both_kinds_of_engine() -> None:
    found = chosen(items(cases=1, doors=("sync", "async")))
    assert {(one["database"], one["door"]) for one in found} == {
        *((name, "sync") for name in NAMES), ("postgresql", "async"),
    }  # fmt: skip


@pytest.mark.parametrize("stem", pairs.EVERY_PAIR)
def test_what_is_about_performing_has_the_async_engine_on_each_database(stem: str) -> None:
    found = chosen(items(cases=1, stem=stem, doors=("sync", "async")))
    assert len(found) == 2 * len(NAMES)


def test_a_test_that_is_for_some_databases_runs_there_alone() -> None:
    found = chosen(items(pytest.mark.only_on("mysql", "sqlite"), cases=2))
    assert Counter(one["database"] for one in found) == {"mysql": 2, "sqlite": 2}


def test_a_slow_test_leaves_each_case_in_one_pair_to_make_test_and_the_others_to_make_test_long() -> None:
    collected = items(pytest.mark.slow, cases=4, doors=("sync", "async"))
    wanted = [one for one in collected if one in pairs.wanted(collected)]
    assert len(wanted) == 4 * 3 + 2
    later = pairs.for_test_long(wanted)
    now = [one.callspec.params for one in wanted if one not in later]
    assert Counter(one["one"] for one in now) == dict.fromkeys("0123", 1)
    assert {one["database"] for one in now} == set(NAMES)


def test_slow_tests_without_cases_take_turns_by_their_names() -> None:
    seen = set()
    for name in ("test_it_is_due", "test_it_is_late", "test_it_is_paused", "test_it_is_lost", "test_it_is_gone"):
        collected = items(pytest.mark.slow, cases=1)
        for one in collected:
            one.originalname = name
        (now,) = set(collected) - pairs.for_test_long(collected)
        seen.add(now.callspec.params["database"])
    assert seen == set(NAMES)


def test_a_test_that_is_not_slow_leaves_nothing() -> None:
    assert not pairs.for_test_long(items(cases=4, doors=("sync", "async")))
