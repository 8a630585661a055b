"""The parameters of a target: what can be stored, and which calls fit."""

import dataclasses
import datetime as dt
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, NotRequired

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from typing_extensions import TypedDict

from async_task import (
    ConfigurationError,
    InvalidArguments,
    UnknownTarget,
    target,
)
from async_task.targets.registry import target_of
from async_task.targets.signatures import Signature

pytestmark = pytest.mark.usefixtures("registered")


SECRET = "canary-4711"


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Tagged(TypedDict):
    number: int
    note: NotRequired[str]


class Own(Session):
    """A Session of the user's own."""


def takes_some(session: Session, number: int, *, note: str = "none") -> None: ...


def takes_tagged(first: int, rest: Tagged) -> None: ...


def takes_nothing() -> None: ...


def test_arguments_are_bound_to_names_without_the_session_and_defaults() -> None:
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
def test_a_call_with_wrong_arguments_is_refused(args: tuple[Any, ...], kwargs: dict[str, Any], says: str) -> None:
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
def test_unknown_missing_and_wrong_arguments_are_refused(function: Any, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArguments) as refused:
        Signature(function, label="f").check(arguments)
    assert says in str(refused.value)
    assert SECRET not in str(refused.value)


def test_checking_does_not_change_the_arguments() -> None:
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
def test_a_session_as_first_parameter_is_not_an_argument(function: Any, session_class: type, is_async: bool) -> None:
    signature = Signature(function, label="f")
    assert (signature.session_class, signature.session_is_async) == (session_class, is_async)
    assert [one.name for one in signature.parameters] == ["number"]


def test_annotations_as_text_are_resolved_in_the_module_of_the_function() -> None:
    def quoted(point: "Point | None", when: "dt.datetime", session: "Missing" = 1) -> "Missing": ...  # type: ignore[name-defined]  # noqa: F821 # pyright: ignore

    with pytest.raises(ConfigurationError, match="'Missing' cannot be resolved"):
        Signature(quoted, label="quoted")
    del quoted.__annotations__["session"]
    assert Signature(quoted, label="quoted").hints == {"point": Point | None, "when": dt.datetime}


def test_a_function_without_a_readable_signature_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no signature that Python can read"):
        Signature(min, label="min")


def with_args(*numbers: int) -> None: ...


def with_keywords(**numbers: int) -> None: ...


def with_positional(number: int, /) -> None: ...


def with_underscore(_number: int) -> None: ...


def with_late_session(number: int, session: Session) -> None: ...


def with_keyword_session(*, number: int, session: AsyncSession) -> None: ...


def with_optional_session(session: Session | None = None) -> None: ...


def generating() -> Iterator[int]:
    yield 1


async def generating_later() -> AsyncIterator[int]:
    yield 1


def with_unresolved(number: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821 # pyright: ignore


def with_broken(number: int) -> None: ...


with_broken.__annotations__["number"] = "int |"


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (with_args, r"takes \*numbers: arguments are stored under names"),
        (with_keywords, r"takes \*\*numbers: arguments are stored under names"),
        (with_positional, "number is positional-only"),
        (with_underscore, "_number begins with _"),
        (with_late_session, "the session session must be the first parameter"),
        (with_optional_session, "annotated with Session or AsyncSession alone"),
        (generating, "is a generator"),
        (generating_later, "is a generator"),
        (with_unresolved, "'Missing' cannot be resolved at run time: import it outside of TYPE_CHECKING"),
        (with_broken, "its annotations cannot be resolved at run time"),
    ],
)
def test_a_signature_that_cannot_be_stored_is_refused_at_registration(refused: Any, why: str) -> None:
    holder = type("Holder", (), {"__module__": __name__, "method": staticmethod(refused)})
    for thing in (refused, holder):
        with pytest.raises(ConfigurationError, match=why):
            target(thing)
        with pytest.raises(UnknownTarget):
            target_of(thing)


def test_a_keyword_only_session_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be the first parameter"):
        target(with_keyword_session)
