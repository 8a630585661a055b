"""What a target's method takes: arguments are checked strictly, and nothing that is said holds their values."""

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
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from typing_extensions import TypedDict

from async_task import ConfigurationError, InvalidArguments
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


class Own(Session):
    """A Session of the user's own."""


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
        (list[Annotated[int, Field(ge=5)]], [1, 2, 3], "greater than or equal to 5 (and 2 more)"),
        (Tagged, {"number": SECRET}, "Input should be a valid integer"),
    ],
)
def test_what_is_said_names_the_field_and_why_and_never_the_value(annotation: Any, value: Any, says: str) -> None:
    said = check(annotation, value)
    assert said is not None
    assert says in said
    assert SECRET not in said


def takes_some(session: Session, number: int, *, note: str = "none") -> None: ...


def takes_tagged(first: int, rest: Tagged) -> None: ...


def takes_nothing() -> None: ...


def test_arguments_go_under_their_names_without_the_session_and_without_defaults() -> None:
    some = Signature(takes_some, label="some")
    assert some.session_class is Session
    assert some.arguments((1,), {}) == {"number": 1}
    assert some.arguments((), {"number": 1, "note": "x"}) == {"number": 1, "note": "x"}
    assert Signature(takes_nothing, label="nothing").arguments((), {}) == {}


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((), {}, "some: missing a required"),
        ((SECRET, SECRET), {}, "some: too many positional arguments"),
        ((SECRET, 1), {"other": SECRET}, "some: no argument is named 'other'"),
        ((Session(), 1), {}, "some: leave the session out: the call gets one when it is performed"),
        ((1,), {"session": Session()}, "some: leave the session out"),
        ((AsyncSession(), 1), {}, "some: leave the session out"),
        ((SECRET,), {"number": SECRET}, "some: multiple values for argument 'number'"),
        ((1,), {"other": SECRET}, "some: no argument is named 'other'; it takes number, note"),
        ((1,), {"session": SECRET}, "some: no argument is named 'session'"),
    ],
)
def test_a_call_of_another_shape_is_refused(args: tuple[Any, ...], kwargs: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArguments) as refused:
        Signature(takes_some, label="some").arguments(args, kwargs)
    assert says in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("function", "arguments", "says"),
    [
        (takes_some, {}, "the argument 'number' is missing"),
        (takes_some, {"number": 1, "other": SECRET}, "no argument is named 'other'; it takes number, note"),
        (takes_some, {"number": 1, "session": SECRET}, "no argument is named 'session'"),
        (takes_nothing, {"x": SECRET}, "no argument is named 'x'; it takes none"),
        (takes_some, {"number": SECRET}, "f: number: Input should be a valid integer"),
        (takes_tagged, {"first": 1, "rest": {"number": SECRET}}, "rest.[an entry]: Input should be a valid integer"),
        (takes_tagged, {"first": 1, "rest": {}}, "rest.[an entry]: Field required"),
    ],
)
def test_names_and_number_must_fit(function: Any, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArguments) as refused:
        Signature(function, label="f").check(arguments)
    assert says in str(refused.value)
    assert SECRET not in str(refused.value)


def test_what_fits_is_not_changed() -> None:
    given = {"first": 1, "rest": {"number": 1, "note": "x"}}
    Signature(takes_tagged, label="tagged").check(given)
    assert given == {"first": 1, "rest": {"number": 1, "note": "x"}}


def with_own(session: Own, number: int) -> None: ...


def with_annotated(session: Annotated[Session, "by the framework"], number: int) -> None: ...


async def with_async(session: AsyncSession, number: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "session_class", "is_async"),
    [(with_own, Own, False), (with_annotated, Session, False), (with_async, AsyncSession, True)],
)
def test_a_first_parameter_that_is_a_session_is_handed_in(function: Any, session_class: type, is_async: bool) -> None:
    signature = Signature(function, label="f")
    assert (signature.session_class, signature.session_is_async) == (session_class, is_async)
    assert [one.name for one in signature.parameters] == ["number"]


def test_annotations_as_text_are_resolved_where_the_function_stands() -> None:
    def quoted(point: "Point | None", when: "dt.datetime", session: "Missing" = 1) -> "Missing": ...  # type: ignore[name-defined]  # noqa: F821 # pyright: ignore

    with pytest.raises(ConfigurationError, match="'Missing' cannot be resolved"):
        Signature(quoted, label="quoted")
    del quoted.__annotations__["session"]
    assert Signature(quoted, label="quoted").hints == {"point": Point | None, "when": dt.datetime}


def test_a_target_that_python_cannot_read_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no signature that Python can read"):
        Signature(min, label="min")
