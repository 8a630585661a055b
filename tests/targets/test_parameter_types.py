"""Types are checked strictly, and no message holds a value."""

import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

import pydantic
import pytest
from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from async_task import (
    InvalidArguments,
)
from async_task.targets.signatures import Signature

SECRET = "canary-4711"


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 1


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Order(pydantic.BaseModel):
    number: int
    lines: list[Point] = []


class Pair(NamedTuple):
    left: int
    right: int


class Tagged(TypedDict):
    number: int
    note: NotRequired[str]


def _even(number: int) -> int:
    if number % 2:
        raise ValueError(f"{SECRET} is odd")
    return number


def _breaks(value: str) -> str:
    raise KeyError(value)


def check(annotation: Any, value: Any) -> str | None:
    """What is said of `value` for a parameter of this annotation; None when it fits."""

    def takes(it: Any) -> None: ...

    takes.__annotations__["it"] = annotation
    try:
        Signature(takes, label="takes").check({"it": value})
    except InvalidArguments as refused:
        return str(refused) if refused.__context__ is None else "a context, which drags the values along"
    return None


NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("annotation", "fits", "fits_not"),
    [
        (int, [1, -1], ["1", 1.0, True, None]),
        (float, [1.5, 1], ["1.5", True]),
        (str, ["x"], [1, b"x"]),
        (bool, [True], [1, "true"]),
        (bytes, [b"x"], ["x"]),
        (dt.datetime, [NOW], ["2026-01-01T00:00:00Z", 0]),
        (dt.date, [dt.date(2026, 1, 1)], ["2026-01-01"]),
        (uuid.UUID, [uuid.UUID(int=1)], [str(uuid.UUID(int=1))]),
        (decimal.Decimal, [decimal.Decimal("1.5")], ["1.5"]),
        (int | None, [1, None], ["1"]),
        (int | str, [1, "x"], [1.5, None]),
        (Literal["a", 1], ["a", 1], ["b", 2]),
        (list[int], [[1], []], [(1,), ["1"], {1}]),
        (tuple[int, str], [(1, "a")], [[1, "a"], (1,)]),
        (set[int], [{1}], [[1]]),
        (dict[str, int], [{"a": 1}], [{"a": "1"}, {1: 1}]),
        (Annotated[int, Field(ge=1, le=9)], [1, 9], [0, 10]),
        (Annotated[str, Field(max_length=3)], ["abc"], ["abcd"]),
        (Annotated[int, AfterValidator(_even)], [2], [1]),
        (Colour, [Colour.RED], ["red", "RED"]),
        (Point, [Point(1)], [{"x": 1}, (1, 0)]),
        (Order, [Order(number=1)], [{"number": 1}]),
        (dict[str, Order], [{"a": Order(number=1)}], [{"a": {"number": 1}}]),
        (Order | dict[str, int], [Order(number=1), {"number": 1}], [{"number": "1"}]),
        (Pair, [Pair(1, 2)], [(1, 2), [1, 2], {"left": 1, "right": 2}]),
        (Sequence[int], [[1], (1,)], [["1"]]),
        (Iterable[int], [[1]], []),
        (int, [Level.HIGH], []),
        (list[Order] | None, [[Order(number=1)], None], [[{"number": 1}]]),
        (Any, [1, "x", None], []),
    ],
)
def test_types_are_checked_strictly_and_nothing_is_converted(
    annotation: Any, fits: list[Any], fits_not: list[Any]
) -> None:
    assert [check(annotation, one) for one in fits] == [None] * len(fits)
    said = [check(annotation, one) for one in fits_not]
    assert all(one is not None and one.startswith("takes: it") for one in said), said


@pytest.mark.parametrize(
    ("annotation", "value", "says"),
    [
        (int, SECRET, "takes: it: Input should be a valid integer"),
        (list[int], [1, SECRET], "takes: it.1: Input should be a valid integer"),
        (dict[str, int], {SECRET: SECRET}, "takes: it.[an entry]: Input should be a valid integer"),
        (dict[str, int] | list[int], {SECRET: SECRET}, "[an entry]"),
        (dict[int, int], {SECRET: 1}, "[an entry].[an entry]"),
        (Literal["a"], SECRET, "Input should be 'a'"),
        (Colour, SECRET, "Input should be an instance of Colour"),
        (Annotated[str, Field(max_length=3)], SECRET, "String should have at most 3 characters"),
        (Annotated[str, Field(pattern="^a")], SECRET, "String should match pattern"),
        (Annotated[int, AfterValidator(_even)], 1, "it: refused by a validator (value_error)"),
        (Annotated[str, AfterValidator(_breaks)], SECRET, "a validator raised KeyError"),
        (list[Annotated[int, Field(ge=5)]], [1, 2, 3], "greater than or equal to 5; it.1, it.2 do not fit either"),
        (Tagged, {"number": SECRET}, "Input should be a valid integer"),
    ],
)
def test_an_error_names_the_field_and_the_reason_and_never_the_value(annotation: Any, value: Any, says: str) -> None:
    said = check(annotation, value)
    assert said is not None
    assert says in said
    assert SECRET not in said


def _normalising(
    email: Annotated[str, pydantic.AfterValidator(str.lower)] = "",
    tags: Annotated[list[str], pydantic.AfterValidator(sorted)] | None = None,
    numbers: dict[str, Annotated[float, pydantic.AfterValidator(round)]] | None = None,
    amount: Annotated[decimal.Decimal, pydantic.AfterValidator(abs)] | None = None,
    day: Annotated[dt.date, pydantic.AfterValidator(lambda day: day.replace(day=1))] | None = None,
    words: set[Annotated[str, pydantic.AfterValidator(str.strip)]] | None = None,
) -> None: ...


CHANGED: list[dict[str, Any]] = [{"email": "Ann@X.org"}, {"tags": ["b", "a"]}, {"numbers": {"a": 1.5}}]
CHANGED += [{"amount": decimal.Decimal(-5)}, {"day": dt.date(2026, 5, 9)}, {"words": {" x "}}]
KEPT: list[dict[str, Any]] = [{"email": "ann@x.org"}, {"tags": ["a", "b"]}, {"numbers": {"a": 1, "b": 2.0}}, {}]
KEPT += [{"amount": decimal.Decimal("1.50")}, {"day": dt.date(2026, 5, 1)}, {"words": {"x"}}]


@pytest.mark.parametrize("arguments", CHANGED, ids=str)
def test_a_value_of_which_a_validator_makes_another_one_is_refused_when_it_is_written_down(
    arguments: dict[str, Any],
) -> None:
    signature = Signature(_normalising, label="normalising")
    with pytest.raises(InvalidArguments, match=f"{next(iter(arguments))}: a validator makes another value of it"):
        signature.check(arguments)
    signature.check(arguments, may_change=True)


@pytest.mark.parametrize("arguments", KEPT, ids=str)
def test_a_value_that_a_validator_leaves_as_it_is_is_accepted(arguments: dict[str, Any]) -> None:
    Signature(_normalising, label="normalising").check(arguments)
