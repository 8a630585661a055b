"""The digest of arguments, by which equal calls are recognised."""

import datetime as dt
import decimal
from typing import Any

import pytest

from async_task.arguments.digest import digest_of
from async_task.arguments.encoding import encode


def digest(**arguments: Any) -> str:
    return digest_of(encode(arguments))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": {"x": 1, "y": [{"p": 1, "q": 2}]}}, {"a": {"y": [{"q": 2, "p": 1}], "x": 1}}),
        ({"a": {1: "x", 2: {"p": 1, "q": 2}}}, {"a": {2: {"q": 2, "p": 1}, 1: "x"}}),
        ({"a": {"x", "y", "z", "w"}}, {"a": {"w", "z", "y", "x"}}),
    ],
)
def test_the_order_of_names_and_entries_does_not_count(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert digest(**one) == digest(**other)
    assert len(digest(**one)) == 64


def test_different_arguments_have_different_digests() -> None:
    values = [
        {}, {"a": None}, {"a": 1}, {"a": 1.0}, {"a": True}, {"a": "1"}, {"b": 1}, {"a": [1, 2]}, {"a": [2, 1]},
        {"a": (1, 2)}, {"a": {1, 2}}, {"a": decimal.Decimal("1.0")}, {"a": decimal.Decimal("1.00")},
        {"a": dt.date(2026, 1, 1)}, {"a": "2026-01-01"}, {"a": {1: "x"}}, {"a": {"1": "x"}},
    ]  # fmt: skip
    assert len({digest(**one) for one in values}) == len(values)
