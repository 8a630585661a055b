"""Arguments that a person wrote as JSON: read as they are, or refused where something would change silently."""

import datetime as dt

import pytest

from async_task import InvalidArguments
from async_task.arguments.json_input import read_json

SECRET = "4711-canary"


def test_plain_arguments_stay_as_json_has_them_and_stored_ones_are_decoded() -> None:
    text = '{"day": "2026-10-25", "stored": [{"$": "date", "v": "2026-10-25"}], "n": [1, 2.5, null, true]}'
    assert read_json(text) == (
        {"stored": [dt.date(2026, 10, 25)]},
        {"day": "2026-10-25", "n": [1, 2.5, None, True]},
    )


@pytest.mark.parametrize("text", ["19.90", "0.1", "1e23", "5e-324", "-0.0", "1.7976931348623157e308", "1000.000"])
def test_a_number_that_a_float_holds_is_read_as_a_float(text: str) -> None:
    _, plain = read_json(f'{{"n": {text}}}')
    assert (plain["n"], type(plain["n"])) == (float(text), float)


@pytest.mark.parametrize(
    ("number", "why"),
    [
        ("9007199254740993.01", 'more digits than a float holds: for a Decimal write it as text, "..."'),
        ("0.10000000000000000001", "more digits than a float holds"),
        ("9007199254740993.0", "more digits than a float holds"),
        ("1e-400", "more digits than a float holds"),
        ("1e-99999999999999999999", "more digits than a float holds"),
        ("1e400", "too large for a float"),
        ("9" * 5000, "too many digits"),
    ],
    ids=lambda value: value[:30],
)
def test_a_number_that_a_float_would_change_is_refused(number: str, why: str) -> None:
    with pytest.raises(InvalidArguments, match=why):
        read_json(f'{{"n": [{number}]}}')


def test_a_whole_number_keeps_all_its_digits() -> None:
    assert read_json('{"n": 9007199254740993}') == ({}, {"n": 9007199254740993})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f'{{"a": "{SECRET}"', "not JSON: Expecting ',' delimiter, in line 1, column"),
        (f'["{SECRET}"]', "not a JSON object: write the arguments by name"),
        (f'{{"a": 1, "a": "{SECRET}"}}', "an object has a name twice"),
        (f'{{"a": [{{"b": 1, "b": "{SECRET}"}}]}}', "an object has a name twice"),
        ('{"a": ' * 10_000, "nested too deeply"),
        (f'{{"a": {{"$": "{SECRET}", "v": 1}}}}', "not registered in this process"),
    ],
    ids=lambda text: text[:30],
)
def test_a_text_that_cannot_be_read_is_refused_without_its_content(text: str, why: str) -> None:
    with pytest.raises(InvalidArguments) as refused:
        read_json(text)
    assert why in str(refused.value)
    assert SECRET not in str(refused.value)
    assert refused.value.__context__ is None
