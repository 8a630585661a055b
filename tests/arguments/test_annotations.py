"""Annotations whose values can never be stored."""

import abc
import collections.abc
import dataclasses
import enum
import io
import ipaddress
import numbers
import pathlib
import sys
import types
import typing
from typing import Any

import pydantic
import pytest
import typing_extensions

from async_task.arguments.annotations import why_unstorable


class Plain: ...


class Shape: ...


@dataclasses.dataclass
class Circle(Shape):
    radius: int


class Drawable(abc.ABC):
    @abc.abstractmethod
    def draw(self) -> None: ...


class Sized(typing.Protocol):
    size: int


class Name(str): ...


class Color(enum.Enum):
    RED = 1


class Address(typing_extensions.TypedDict):
    street: str


@dataclasses.dataclass
class Upload:
    name: str
    path: pathlib.Path


@dataclasses.dataclass
class Draft:
    path: pathlib.Path | None = None
    parent: "Draft | None" = None
    rest: list["Draft"] = dataclasses.field(default_factory=list)
    extra: Any = None


@dataclasses.dataclass
class Fixed:
    path: pathlib.Path = pathlib.Path("/")


@dataclasses.dataclass
class Failing:
    path: pathlib.Path = dataclasses.field(default_factory=lambda: 1 / 0)  # type: ignore[assignment,return-value]


class Pair(typing.NamedTuple):
    number: int
    on_end: collections.abc.Callable[[], None]


class Parcel(pydantic.BaseModel):
    upload: Upload


class Letter(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    path: pathlib.Path | None = None
    plain: typing.Annotated[int, pydantic.Field(gt=0)] = 1


class Files(typing_extensions.TypedDict):
    paths: list[pathlib.Path]


class MayHaveFiles(typing_extensions.TypedDict, total=False):
    paths: list[pathlib.Path]


class Item(typing_extensions.TypedDict):
    name: typing_extensions.Required[str]
    path: typing_extensions.NotRequired[pathlib.Path]


T = typing.TypeVar("T")


@dataclasses.dataclass
class Boxed(typing.Generic[T]):
    content: T


Token = typing.NewType("Token", str)
Place = typing.NewType("Place", pathlib.Path)
STORABLE: list[Any] = [
    Any, object, str, int | None, None, list[dict[str, Any]], tuple[int, ...], collections.abc.Sequence[int],
    collections.abc.Iterable[str], collections.abc.Mapping[str, int], collections.abc.Hashable, numbers.Number,
    Draft, Letter, MayHaveFiles, Item, Boxed[int], list[Draft],
    Circle, Shape, Drawable, Sized, Color, Address, Token, typing.Literal["a"], pydantic.EmailStr,
    typing.Annotated[int, "a note"], pathlib.Path | str, typing.TypeVar("T"), type(None),
]  # fmt: skip
UNSTORABLE: list[tuple[Any, str]] = [
    (pathlib.Path, "a Path cannot be stored: pass str(path)"),
    (pathlib.Path | None, "a Path cannot be stored: pass str(path)"),
    (Place, "a Path cannot be stored: pass str(path)"),
    (list[pathlib.Path], "a Path cannot be stored: pass str(path)"),
    (dict[str, tuple[Plain, ...]], "a Plain cannot be stored: pass what it is made of, or an id"),
    (typing.Annotated[Plain, "a note"], "a Plain cannot be stored"),
    (collections.abc.Callable[[int], None], "a Callable cannot be stored: pass its name"),
    (typing.Callable[..., Any], "a Callable cannot be stored: pass its name"),
    (collections.abc.Iterator[int], "an Iterator cannot be stored: pass a list"),
    (collections.abc.Generator[int, None, None], "a Generator cannot be stored: pass a list"),
    (type[Plain], "a class cannot be stored: take a str, and pass its name"),
    (types.ModuleType, "a module cannot be stored: pass its name"),
    (io.BytesIO, "a BytesIO cannot be stored: pass the path of the file, or what it contains"),
    (bytearray, "a bytearray cannot be stored: pass bytes"),
    (ipaddress.IPv4Address, "an IPv4Address cannot be stored: pass what it is made of, or an id"),
    (Upload, "Upload.path: a Path cannot be stored: pass str(path)"),
    (list[Upload | None], "Upload.path: a Path cannot be stored: pass str(path)"),
    (Parcel, "Parcel.upload: Upload.path: a Path cannot be stored: pass str(path)"),
    (Pair, "Pair.on_end: a Callable cannot be stored: pass its name"),
    (Files, "Files.paths: a Path cannot be stored: pass str(path)"),
    (Fixed, "Fixed.path: a Path cannot be stored"),
    (Failing, "Failing.path: a Path cannot be stored"),
    (Name, "a Name is a subclass of str that would not come back: take a plain str"),
]


@pytest.mark.parametrize("annotation", STORABLE, ids=str)
def test_an_annotation_with_a_storable_value_is_accepted(annotation: Any) -> None:
    assert why_unstorable(annotation) is None


@pytest.mark.parametrize(("annotation", "why"), UNSTORABLE, ids=str)
def test_an_annotation_without_a_storable_value_is_refused_with_advice(annotation: Any, why: str) -> None:
    assert str(why_unstorable(annotation)).startswith(why)


def test_a_typed_dict_of_typing_is_accepted_exactly_where_it_can_be_checked() -> None:
    why = why_unstorable(typing.TypedDict("Line", {"product": str}))
    assert (why is None) == (sys.version_info >= (3, 12))
    assert why is None or why.endswith("from typing_extensions import TypedDict")
