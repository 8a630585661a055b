"""Classes of a user, and values of each type that arguments can have, for the tests of `async_task.arguments`."""

import dataclasses
import datetime
import decimal
import enum
import functools
import threading
import typing
import zoneinfo
from typing import Any, Generic, NamedTuple, TypeVar

import pydantic
import pydantic.dataclasses
import sqlmodel
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

from async_task import argument_type
from async_task.arguments.decoding import decode
from async_task.arguments.encoding import encode

T = TypeVar("T")


@argument_type
class Color(enum.Enum):
    RED = "r"
    CRIMSON = "r"  # an alias
    BLUE = ("b", 1)


@argument_type
class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@argument_type
class Word(enum.StrEnum):
    YES = "yes"


@argument_type
class Rights(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


@argument_type
class Bits(enum.IntFlag):
    ONE = 1
    TWO = 2


@argument_type
@dataclasses.dataclass
class Line:
    item: Any
    price: Any = None


@argument_type
@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: Any
    y: Any


@argument_type(name="noisy")
@dataclasses.dataclass(kw_only=True)
class Noisy:
    made: Any = dataclasses.field(init=False)
    seed: dataclasses.InitVar[int]
    tags: Any = dataclasses.field(default_factory=list)
    made_by_init: typing.ClassVar[int] = 0

    def __post_init__(self, seed: int) -> None:
        type(self).made_by_init += 1
        self.made = seed

    @functools.cached_property
    def lock(self) -> object:
        return threading.Lock()


@argument_type
@dataclasses.dataclass
class Box(Generic[T]):
    content: T


@argument_type
class Pair(NamedTuple):
    left: Any
    right: Any = 7


@argument_type
class Order(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow", arbitrary_types_allowed=True)
    number: Any
    note: Any = "none"
    tags: list[str] = pydantic.Field(default_factory=list)
    _seen: Any = pydantic.PrivateAttr(default=0)
    _unset: Any = pydantic.PrivateAttr()

    @functools.cached_property
    def lock(self) -> object:
        return threading.Lock()


@argument_type
class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)
    number: int


@argument_type
class Numbers(pydantic.RootModel[list[int]]):
    pass


@argument_type
@pydantic.dataclasses.dataclass
class Checked:
    number: int
    size: int = pydantic.Field(default=3)


@argument_type
class Plain(sqlmodel.SQLModel):
    number: int


class Stray(enum.Enum):
    ONE = 1


@dataclasses.dataclass
class StrayLine:
    item: int


class StrayPair(NamedTuple):
    left: int


class StrayOrder(pydantic.BaseModel):
    number: int


class Mapping_(DeclarativeBase):
    pass


class Customer(Mapping_):
    __tablename__ = "customer"
    id: Mapped[int] = mapped_column(primary_key=True)


class MappedLine(MappedAsDataclass, Mapping_):
    __tablename__ = "mapped_line"
    id: Mapped[int] = mapped_column(primary_key=True)


class Hero(sqlmodel.SQLModel, table=True):
    id: int | None = sqlmodel.Field(default=None, primary_key=True)


def likeness(value: object) -> str:
    """Equal for two values exactly when these are the same in value, types, zones and order."""
    return f"{type(value).__module__}.{type(value).__qualname__}@{id(type(value))}({_content(value)})"


def _content(value: Any) -> str:  # noqa: PLR0911
    if isinstance(value, datetime.datetime | datetime.time):
        zone = value.tzinfo
        zoned = zone.key if isinstance(zone, zoneinfo.ZoneInfo) else repr(zone)
        return f"{value.replace(tzinfo=None, fold=0)!r} {zoned} {type(zone)} {value.fold}"
    if isinstance(value, enum.Enum):
        return f"{value.name} {value.value!r}"
    if isinstance(value, pydantic.BaseModel):
        state = value.__getstate__()
        state["__dict__"] = {name: state["__dict__"][name] for name in type(value).model_fields}
        return likeness(state)
    if dataclasses.is_dataclass(value):
        return " ".join(f"{field.name}={likeness(getattr(value, field.name))}" for field in dataclasses.fields(value))
    if isinstance(value, dict):
        return ", ".join(f"{likeness(key)}: {likeness(item)}" for key, item in value.items())
    if isinstance(value, set | frozenset):
        return ", ".join(sorted(map(likeness, value)))
    if isinstance(value, list | tuple):
        return ", ".join(map(likeness, value))
    return ascii(value)


def assert_survives(value: object) -> None:
    text = encode({"it": value})
    assert text.isascii()
    assert likeness(decode(text)) == likeness({"it": value})


def shown_as(value: object) -> str:
    return value[:40] if isinstance(value, str) and value.isascii() and value.isprintable() else type(value).__name__


any_text = st.text(st.characters(exclude_categories=()))
zones = st.one_of(
    st.none(),
    st.just(datetime.UTC),
    st.sampled_from(["Europe/Berlin", "America/St_Johns", "Africa/Monrovia", "Asia/Kathmandu", "UTC"]).map(
        zoneinfo.ZoneInfo
    ),
    st.builds(
        datetime.timezone, st.timedeltas(datetime.timedelta(hours=-23, microseconds=1), datetime.timedelta(hours=23))
    ),
    st.builds(datetime.timezone, st.timedeltas(datetime.timedelta(hours=-23), datetime.timedelta(hours=23)), any_text),
)
folds = st.sampled_from([0, 1])
_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.floats(),
    any_text,
    st.sampled_from(["$", "v", "", "\x00", "\ud800", "\udc00\ud800", "\ud83d\ude00", "\U0001f600"]),
    st.binary(max_size=20),
    st.decimals().filter(lambda number: not number.is_snan()),
    st.sampled_from(["-0", "1E+5", "1.10", "0E-30", "-NaN12", "Infinity", "1E+999999"]).map(decimal.Decimal),
    st.uuids(),
    st.dates(),
    st.timedeltas(),
    st.builds(
        lambda moment, fold: moment.replace(fold=fold),
        st.datetimes(timezones=zones, allow_imaginary=True),
        folds,
    ),
    st.builds(lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold), st.times(), zones, folds),
    st.sampled_from([*Color, *Level, *Word, *Bits, Rights(0), Rights(5), Bits(0), Bits(3), Bits(64)]),
    st.builds(Strict, number=st.integers()),
)


@st.composite  # with a short repr: hypothesis warns of one as long as this strategy
def leaves(draw: Any) -> object:
    return draw(_leaves)


hashables = st.recursive(
    leaves(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(inner, max_size=3),
        st.builds(Point, inner, inner),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=4,
)


def order_with(number: object, note: object, seen: object, extra: dict[str, object]) -> Order:
    order = Order(number=number, **extra) if note is None else Order(number=number, note=note, **extra)
    order._seen = seen
    return order


def noisy_with(seed: object, tags: object) -> Noisy:
    return Noisy(seed=seed, tags=tags)  # type: ignore[arg-type]


@st.composite
def keys(draw: Any) -> Any:
    return draw(hashables)


values = st.recursive(
    keys() | st.sampled_from([decimal.Decimal("sNaN"), decimal.Decimal("-sNaN7")]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.sets(keys(), max_size=4),
        st.dictionaries(any_text | st.just("$"), inner, max_size=4),
        st.dictionaries(keys(), inner, max_size=4),
        st.builds(Line, inner, inner),
        st.builds(Point, inner, inner),
        st.builds(Pair, inner, inner),
        st.builds(noisy_with, inner, inner),
        st.builds(order_with, inner, inner, inner, st.dictionaries(st.sampled_from(["extra", "other"]), inner)),
        st.lists(st.integers(), max_size=3).map(Numbers),
    ),
    max_leaves=8,
)
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
