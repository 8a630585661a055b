"""Arguments as text: nothing is lost, nothing unknown is read, and what cannot be stored is refused in a sentence."""

import collections
import contextlib
import dataclasses
import datetime
import decimal
import enum
import functools
import importlib
import io
import json
import math
import pathlib
import subprocess
import sys
import threading
import types
import typing
import uuid
import zoneinfo
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, TypedDict, TypeVar

import pydantic
import pydantic.dataclasses
import pytest
import sqlmodel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column
from typing_extensions import TypeAliasType

from async_task import argument_type
from async_task.arguments import types as argument_types
from async_task.arguments.decoding import decode
from async_task.arguments.encoding import encode
from async_task.arguments.types import register_annotation
from async_task.errors import ConfigurationError, InvalidArguments

T = TypeVar("T")


# The classes of a user.


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


# Every value there is, and what it is like down to the last type.


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


def _kind(value: object) -> str:
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


def _order(number: object, note: object, seen: object, extra: dict[str, object]) -> Order:
    order = Order(number=number, **extra) if note is None else Order(number=number, note=note, **extra)
    order._seen = seen
    return order


def _noisy(seed: object, tags: object) -> Noisy:
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
        st.builds(_noisy, inner, inner),
        st.builds(_order, inner, inner, inner, st.dictionaries(st.sampled_from(["extra", "other"]), inner)),
        st.lists(st.integers(), max_size=3).map(Numbers),
    ),
    max_leaves=8,
)
quick = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(st.dictionaries(st.from_regex("[a-z]{1,4}|[$]", fullmatch=True), values, max_size=3))
def test_what_is_written_is_read_again_the_same_down_to_the_last_type(arguments: dict[str, object]) -> None:
    text = encode(arguments)
    assert text.isascii()
    assert likeness(decode(text)) == likeness(arguments)
    assert encode(decode(text)) == text


@quick
@given(st.lists(hashables, max_size=6), st.randoms(use_true_random=False))
def test_the_order_in_which_a_set_was_filled_does_not_show(elements: list[object], random: Any) -> None:
    unique = list(dict.fromkeys(elements))
    shuffled = random.sample(unique, len(unique))
    assert encode({"s": set(unique)}) == encode({"s": set(shuffled)})


# Single cases with a name.


def test_what_json_has_is_written_as_it_is() -> None:
    assert encode({"token": "t", "n": [1, 2.5, None, True], "d": {"a": {}}}) == (
        '{"token": "t", "n": [1, 2.5, null, true], "d": {"a": {}}}'
    )
    assert encode({}) == "{}"


BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
NIGHT = datetime.datetime(2026, 10, 25, 2, 30)
IN_AN_HOUR = datetime.timezone(datetime.timedelta(hours=1))
HERE = datetime.timezone(datetime.timedelta(hours=1), "Here")


@pytest.mark.parametrize(
    ("value", "tag", "payload"),
    [
        (NIGHT, "datetime", "2026-10-25T02:30:00"),
        (NIGHT.replace(tzinfo=datetime.UTC), "datetime", "2026-10-25T02:30:00+00:00"),
        (NIGHT.replace(tzinfo=IN_AN_HOUR), "datetime", "2026-10-25T02:30:00+01:00"),
        (
            NIGHT.replace(tzinfo=HERE),
            "datetime",
            ["2026-10-25T02:30:00", [{"$": "timedelta", "v": [0, 3600, 0]}, "Here"]],
        ),
        (NIGHT.replace(tzinfo=BERLIN), "datetime", ["2026-10-25T02:30:00", "Europe/Berlin"]),
        (NIGHT.replace(tzinfo=BERLIN, fold=1), "datetime", ["2026-10-25T02:30:00", "Europe/Berlin", 1]),
        (NIGHT.replace(fold=1), "datetime", ["2026-10-25T02:30:00", None, 1]),
        (datetime.time(2, 30, tzinfo=BERLIN), "time", ["02:30:00", "Europe/Berlin"]),
        (datetime.date(2026, 1, 2), "date", "2026-01-02"),
        (datetime.timedelta(days=-1, seconds=2, microseconds=3), "timedelta", [-1, 2, 3]),
        (decimal.Decimal("19.90"), "decimal", "19.90"),
        (uuid.UUID(int=1), "uuid", "00000000-0000-0000-0000-000000000001"),
        (b"\x00\xff", "bytes", "AP8="),
        ((1, 2), "tuple", [1, 2]),
        ({3, 1, 2}, "set", [1, 2, 3]),
        ({1: "a"}, "dict", [[1, "a"]]),
        ({"$": "a"}, "dict", [["$", "a"]]),
        (math.inf, "float", "inf"),
        ("a\ud83d\ude00b", "str", ["a\ud83d", "\ude00b"]),
        (Color.CRIMSON, f"{__name__}:Color", "RED"),
        (Rights.READ | Rights.RUN, f"{__name__}:Rights", 5),
        (Point(1, 2), f"{__name__}:Point", {"x": 1, "y": 2}),
        (Pair(1), f"{__name__}:Pair", {"left": 1, "right": 7}),
        (Noisy(seed=3), "noisy", {"made": 3, "tags": []}),
    ],
)
def test_all_else_is_an_object_of_its_type_and_its_value(value: object, tag: str, payload: object) -> None:
    assert json.loads(encode({"it": value})) == {"it": {"$": tag, "v": payload}}
    assert_survives(value)


@pytest.mark.parametrize(
    "value",
    [
        2**63 - 1,
        2**63,
        -(2**63) - 1,
        10**4299,
        -0.0,
        5e-324,
        "\ud800",
        "\x00",
        {1: {2: {True: 3}}, None: 4},
        NIGHT.replace(tzinfo=datetime.timezone(datetime.timedelta(microseconds=1))),
        NIGHT.replace(tzinfo=datetime.timezone(datetime.timedelta(microseconds=-1))),
        NIGHT.replace(tzinfo=datetime.timezone(datetime.timedelta(0), "UTC")),
        {("a", 1): [()]},
        Checked(1),
        Plain(number=1),
        Box[int](4),
        Order.model_construct(number=object and "not validated", note=[1]),
    ],
    ids=_kind,
)
def test_this_survives_too(value: object) -> None:
    assert_survives(value)


def test_two_nans_in_a_set_stay_two() -> None:
    found = decode(encode({"it": {float("nan"), float("nan")}}))["it"]
    assert isinstance(found, set)
    assert len(found) == 2


def test_five_megabytes_of_text_survive() -> None:
    for text in ("x" * 5_000_000, "\U0001f600" * 1_250_000, "\x00" * 5_000_000):
        assert decode(encode({"it": text})) == {"it": text}


def test_a_dataclass_comes_back_without_its_init() -> None:
    text = encode({"it": Noisy(seed=9)})
    before = Noisy.made_by_init
    found = decode(text)["it"]
    assert isinstance(found, Noisy)
    assert (found.made, found.tags, Noisy.made_by_init) == (9, [], before)


def test_what_a_cached_property_holds_is_left_out() -> None:
    noisy, order = Noisy(seed=1), Order(number=1)
    assert noisy.lock
    assert order.lock
    assert decode(encode({"n": noisy, "o": order})) == {"n": Noisy(seed=1), "o": Order(number=1)}


def test_a_model_keeps_what_was_set_its_extras_and_its_private_attributes() -> None:
    order = _order(1, None, [1, 2], {"extra": (1,)})
    found = decode(encode({"it": order}))["it"]
    assert isinstance(found, Order)
    assert found == order
    assert found.model_fields_set == {"number", "extra"}
    assert found.model_extra == {"extra": (1,)}
    assert found._seen == [1, 2]
    assert not hasattr(found, "_unset")


def test_a_field_added_since_gets_its_default() -> None:
    line, pair, checked = (f"{__name__}:{cls.__qualname__}" for cls in (Line, Pair, Checked))
    assert decode(json.dumps({"it": {"$": line, "v": {"item": 1}}})) == {"it": Line(1)}
    assert decode(json.dumps({"it": {"$": pair, "v": {"left": 1}}})) == {"it": Pair(1)}
    assert decode(json.dumps({"it": {"$": checked, "v": {"number": 1}}})) == {"it": Checked(1, 3)}
    state = json.loads(encode({"it": Order(number=1)}))
    del state["it"]["v"]["__dict__"]["note"], state["it"]["v"]["__dict__"]["tags"]
    assert decode(json.dumps(state)) == {"it": Order(number=1)}


def test_the_uuid_of_asyncpg_is_written_as_a_uuid() -> None:
    from asyncpg.pgproto import pgproto

    number = uuid.uuid4()
    found = decode(encode({"it": pgproto.UUID(str(number))}))["it"]
    assert type(found) is uuid.UUID
    assert found == number


def test_reading_does_not_depend_on_the_decimal_context_of_the_caller() -> None:
    with decimal.localcontext(decimal.Context(prec=2, traps=[], capitals=0)):
        assert_survives(decimal.Decimal("1.23456E+50"))
        with pytest.raises(InvalidArguments, match=r"broken decimal"):
            decode('{"it": {"$": "decimal", "v": "garbage"}}')


# Refusals.


class MyStr(str):
    __slots__ = ()


class Sunday(datetime.tzinfo):
    def utcoffset(self, _: object) -> datetime.timedelta:
        return datetime.timedelta(0)


class Slotted:
    __slots__ = ("hidden",)


@argument_type
@dataclasses.dataclass(slots=True)
class OnSlots(Slotted):
    x: int


def _nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


def _with_attribute(value: Any, name: str) -> Any:
    object.__setattr__(value, name, "SECRET")
    return value


def _without_attribute(value: Any, name: str) -> Any:
    delattr(value, name)
    return value


def _cycle() -> object:
    value: list[object] = []
    value.append(value)
    return value


def _zone_without_key() -> zoneinfo.ZoneInfo:
    with pathlib.Path(zoneinfo.TZPATH[0], "Europe/Berlin").open("rb") as file:
        return zoneinfo.ZoneInfo.from_file(file)


NOT_REGISTERED = "that is not registered: put @argument_type on its class, in a module that the workers import"
TOO_DEEP = "nested more than 100 levels deep, or containing itself: pass an id, or store it elsewhere"
ELSE = "pass what it is made of, or an id"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Customer(id=1), "it: a Customer is a row of the database: pass its id"),
        (MappedLine(id=1), "it: a MappedLine is a row of the database: pass its id"),
        (Hero(id=1), "it: a Hero is a row of the database: pass its id"),
        (Stray.ONE, f"it: a Stray is an Enum {NOT_REGISTERED}"),
        (StrayLine(1), f"it: a StrayLine is a dataclass {NOT_REGISTERED}"),
        (StrayPair(1), f"it: a StrayPair is a NamedTuple {NOT_REGISTERED}"),
        (StrayOrder(number=1), f"it: a StrayOrder is a pydantic model {NOT_REGISTERED}"),
        (MyStr("SECRET"), "it: a MyStr is a subclass of str that would not come back: pass a plain str"),
        (
            collections.OrderedDict(SECRET=1),
            "it: an OrderedDict is a subclass of dict that would not come back: pass a plain dict",
        ),
        (
            collections.defaultdict(list),
            "it: a defaultdict is a subclass of dict that would not come back: pass a plain dict",
        ),
        (
            type("Stamp", (datetime.datetime,), {})(2026, 1, 1),
            "it: a Stamp is a subclass of datetime that would not come back: pass a plain datetime",
        ),
        (
            NIGHT.replace(tzinfo=Sunday()),
            "it: its time zone is a Sunday: use zoneinfo.ZoneInfo(key) or datetime.timezone",
        ),
        (
            datetime.time(1, tzinfo=Sunday()),
            "it: its time zone is a Sunday: use zoneinfo.ZoneInfo(key) or datetime.timezone",
        ),
        (
            NIGHT.replace(tzinfo=_zone_without_key()),
            "it: its time zone was read from a file, without a key: use zoneinfo.ZoneInfo(key)",
        ),
        (len, "it: a builtin_function_or_method cannot be stored: pass its name"),
        (lambda: 1, "it: a function cannot be stored: pass its name"),
        (Line, "it: a type cannot be stored: pass its name"),
        (json, "it: a module cannot be stored: pass its name"),
        (io.BytesIO(b"SECRET"), "it: a BytesIO cannot be stored: pass the path of the file, or what it contains"),
        (pathlib.PurePosixPath("SECRET"), "it: a PurePosixPath cannot be stored: pass str(path)"),
        (bytearray(b"SECRET"), "it: a bytearray cannot be stored: pass bytes"),
        (types.MappingProxyType({"a": 1}), "it: a mappingproxy cannot be stored: pass a dict"),
        ((n for n in [1]), "it: a generator cannot be stored: pass a list"),
        (range(3), "it: a range cannot be stored: pass a list"),
        (collections.deque([1]), "it: a deque cannot be stored: pass a list"),
        ({}.keys(), "it: a dict_keys cannot be stored: pass a set"),
        (threading.Lock(), f"it: a lock cannot be stored: {ELSE}"),
        (object(), f"it: an object cannot be stored: {ELSE}"),
        (1j, f"it: a complex cannot be stored: {ELSE}"),
        (pydantic.SecretStr("SECRET"), f"it: a SecretStr cannot be stored: {ELSE}"),
        (10**4300, "it: an int of more than 4300 digits cannot be stored: pass it as bytes"),
        (-(10**4300), "it: an int of more than 4300 digits cannot be stored: pass it as bytes"),
        (_nested(101), f"it{'[0]' * 20}...: {TOO_DEEP}"),
        (_nested(10_000), f"it{'[0]' * 20}...: {TOO_DEEP}"),
        (_cycle(), f"it{'[0]' * 20}...: {TOO_DEEP}"),
        ([1, {"lines": (0, {"price": 1j})}], f"it[1].lines[1].price: a complex cannot be stored: {ELSE}"),
        (Line(1, [Point(1, 1j)]), f"it.price[0].y: a complex cannot be stored: {ELSE}"),
        (Pair(1, 1j), f"it.right: a complex cannot be stored: {ELSE}"),
        (Order(number=[1j]), f"it.number[0]: a complex cannot be stored: {ELSE}"),
        ({1j}, f"it[element]: a complex cannot be stored: {ELSE}"),
        (frozenset({1j}), f"it[element]: a complex cannot be stored: {ELSE}"),
        ({1: 2, 3: 1j}, f"it[entry 1]: a complex cannot be stored: {ELSE}"),
        ({1: 2, 1j: 3}, f"it[key 1]: a complex cannot be stored: {ELSE}"),
        ({"SECRET-42": 1j}, f"it[entry 0]: a complex cannot be stored: {ELSE}"),
        ({MyStr("k"): 1}, "it[key 0]: a MyStr is a subclass of str that would not come back: pass a plain str"),
        (
            _with_attribute(Line(1), "more"),
            "it: it holds more, which is not a field and would be lost: make it one, or remove it",
        ),
        (
            _with_attribute(OnSlots(1), "hidden"),
            "it: it holds hidden, which is not a field and would be lost: make it one, or remove it",
        ),
        (
            _with_attribute(Strict(number=1), "more"),
            "it: it holds more, which is not a field and would be lost: make it one, or remove it",
        ),
        (
            _without_attribute(Noisy(seed=1), "made"),
            "it: its field made has no value: set it before the call is written down",
        ),
        (
            Strict.model_construct(),
            "it: its field number has no value: set it before the call is written down",
        ),
    ],
    ids=_kind,
)
def test_what_cannot_be_stored_is_refused_by_path_and_without_the_value(value: object, message: str) -> None:
    with pytest.raises(InvalidArguments) as refusal:
        encode({"first": 1, "it": value})
    assert str(refusal.value) == message
    assert refusal.value.__context__ is None
    assert "SECRET" not in str(refusal.value)


def test_a_hundred_levels_are_stored_whatever_they_are_made_of() -> None:
    wraps: list[typing.Callable[[Any], object]] = [
        lambda inner: [inner],
        lambda inner: {"a": inner},
        lambda inner: {1: inner},
        lambda inner: (inner,),
        Line,
        Pair,
    ]
    for wrap in wraps:
        value: object = 1
        for _ in range(100):
            value = wrap(value)
        assert_survives(value)
        with pytest.raises(InvalidArguments, match=r"100 levels"):
            encode({"it": wrap(value)})


@pytest.mark.parametrize("name", [1, MyStr("a"), None, "\ud83d\ude00"])
def test_the_name_of_an_argument_is_a_str(name: Any) -> None:
    with pytest.raises(InvalidArguments, match=r"^the arguments: the name of each is a str"):
        encode({name: 1})


def test_a_python_that_reads_fewer_digits_writes_fewer() -> None:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(1000)
    try:
        assert_survives(10**999)
        with pytest.raises(InvalidArguments, match=r"^it: an int of more than 1000 digits"):
            encode({"it": 10**1000})
    finally:
        sys.set_int_max_str_digits(before)


def test_a_stack_that_is_nearly_full_is_a_refusal_and_no_crash() -> None:
    value, text = _nested(90), encode({"it": _nested(90)})
    with pytest.raises(InvalidArguments, match=r"^it: too deep for what is left of the stack"):
        _with_little_stack(encode, {"it": value})
    with pytest.raises(InvalidArguments, match=r"nested too deeply"):
        _with_little_stack(decode, text)


def _with_little_stack(call: typing.Callable[[Any], object], argument: object) -> object:
    before, frame, used = sys.getrecursionlimit(), sys._getframe(), 0
    while frame.f_back is not None:
        frame, used = frame.f_back, used + 1
    sys.setrecursionlimit(used + 60)
    try:
        return call(argument)
    finally:
        sys.setrecursionlimit(before)


# Reading what was not written here.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ('{"a": 1', "not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON"),
        ("[1]", "not a JSON object"),
        ("null", "not a JSON object"),
        ('"SECRET"', "not a JSON object"),
        ('{"a": NaN}', "out of range"),
        ('{"a": 1e999}', "out of range"),
        ('{"a": {"$": "SECRET", "v": 1}}', "a class with a name of its own, which is not registered"),
        ('{"a": {"$": "os:system", "v": "SECRET"}}', "a os:system, which is not registered in this process"),
        ('{"a": {"$": "tuple"}}', "malformed"),
        ('{"a": {"$": "tuple", "v": [], "w": 1}}', "malformed"),
        ('{"a": {"$": "tuple", "w": []}}', "malformed"),
        ('{"a": {"$": ["tuple"], "v": []}}', "malformed"),
        ('{"a": {"$": "tuple", "v": "SECRET"}}', "broken tuple"),
        ('{"a": {"$": "tuple", "v": null}}', "broken tuple"),
        ('{"a": {"$": "set", "v": [[1]]}}', "broken set"),
        ('{"a": {"$": "set", "v": [1, 1]}}', "broken set"),
        ('{"a": {"$": "frozenset", "v": {}}}', "broken frozenset"),
        ('{"a": {"$": "dict", "v": [[1]]}}', "broken dict"),
        ('{"a": {"$": "dict", "v": ["ab"]}}', "broken dict"),
        ('{"a": {"$": "dict", "v": [[[], 1]]}}', "broken dict"),
        ('{"a": {"$": "dict", "v": [[1, 2], [1, 3]]}}', "broken dict"),
        ('{"a": {"$": "float", "v": "1.5"}}', "broken float"),
        ('{"a": {"$": "float", "v": [1]}}', "broken float"),
        ('{"a": {"$": "str", "v": "SECRET"}}', "broken str"),
        ('{"a": {"$": "bytes", "v": "SECRET!"}}', "broken bytes"),
        ('{"a": {"$": "uuid", "v": "SECRET"}}', "broken uuid"),
        ('{"a": {"$": "uuid", "v": 1}}', "broken uuid"),
        ('{"a": {"$": "decimal", "v": 1}}', "broken decimal"),
        ('{"a": {"$": "date", "v": "2026-13-01"}}', "broken date"),
        ('{"a": {"$": "datetime", "v": 1}}', "broken datetime"),
        ('{"a": {"$": "datetime", "v": ["2026-01-01T00:00:00+01:00", "Europe/Berlin"]}}', "broken datetime"),
        ('{"a": {"$": "datetime", "v": ["2026-01-01T00:00:00", "../../etc/passwd"]}}', "broken datetime"),
        ('{"a": {"$": "datetime", "v": ["2026-01-01T00:00:00", "SECRET"]}}', "install tzdata"),
        ('{"a": {"$": "datetime", "v": ["2026-01-01T00:00:00", null, 2]}}', "broken datetime"),
        ('{"a": {"$": "timedelta", "v": [1.5, 0, 0]}}', "broken timedelta"),
        ('{"a": {"$": "timedelta", "v": [10000000000, 0, 0]}}', "broken timedelta"),
        ('{"a": {"$": "HERE:Color", "v": "SECRET"}}', "broken HERE:Color"),
        ('{"a": {"$": "HERE:Color", "v": ["RED"]}}', "broken HERE:Color"),
        ('{"a": {"$": "HERE:Rights", "v": 8}}', "broken HERE:Rights"),
        ('{"a": {"$": "HERE:Rights", "v": true}}', "broken HERE:Rights"),
        ('{"a": {"$": "HERE:Point", "v": {"x": 1}}}', "broken HERE:Point"),
        ('{"a": {"$": "HERE:Point", "v": {"x": 1, "y": 2, "z": 3}}}', "broken HERE:Point"),
        ('{"a": {"$": "HERE:Point", "v": [1, 2]}}', "broken HERE:Point"),
        ('{"a": {"$": "HERE:Pair", "v": {}}}', "broken HERE:Pair"),
        ('{"a": {"$": "HERE:Strict", "v": {"number": 1}}}', "broken HERE:Strict"),
        ('{"a": {"$": "noisy", "v": {}}}', "broken class with a name of its own"),
        ('{"a": ' + "[" * 101 + "]" * 101 + "}", "nested too deeply"),
        ('{"a": ' + "[" * 10_000 + "]" * 10_000 + "}", "nested too deeply"),
        ('{"a": ' * 10_000, "nested too deeply"),
    ],
    ids=lambda text: text[:60],
)
def test_a_text_that_was_changed_is_refused_without_its_content(text: str, message: str) -> None:
    with pytest.raises(InvalidArguments) as refusal:
        decode(text.replace("HERE", __name__))
    assert message.replace("HERE", __name__) in str(refusal.value)
    assert str(refusal.value).startswith("the stored arguments ")
    assert "SECRET" not in str(refusal.value)
    assert refusal.value.__context__ is None


def test_a_model_with_a_broken_state_is_refused() -> None:
    good = json.loads(encode({"it": Order(number=1)}))
    for key, broken in [
        ("__dict__", None),
        ("__dict__", {"stranger": 1}),
        ("__pydantic_fields_set__", ["number"]),
        ("__pydantic_extra__", "SECRET"),
        ("__pydantic_private__", [1]),
    ]:
        bad = {"it": {"$": good["it"]["$"], "v": good["it"]["v"] | {key: broken}}}
        with pytest.raises(InvalidArguments, match=r"broken .*:Order"):
            decode(json.dumps(bad))


def assert_read_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidArguments):
        assert isinstance(decode(text), dict)


tags = st.sampled_from([*sorted(argument_types.BUILTIN_TAGS), *argument_types._by_name])
forged = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["2026-01-01", "00:00", "UTC", "nan", "RED", "", "-1", "Europe", "AA=="])
    | any_text,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["$", "v", "x", "y", "item", "left", "number", "name", "__dict__"]), inner),
        st.fixed_dictionaries({"$": tags, "v": inner}),
        st.fixed_dictionaries(
            {"$": st.just(f"{__name__}:Point"), "v": st.fixed_dictionaries({"x": inner, "y": inner})}
        ),
    ),
    max_leaves=10,
)


@quick
@given(st.text() | forged.map(json.dumps) | forged.map(lambda part: json.dumps({"it": part})))
def test_a_forged_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    assert_read_or_refused(text)


@quick
@given(st.dictionaries(st.just("it"), values, min_size=1), st.data())
def test_a_text_that_was_bitten_is_read_or_refused_and_nothing_else(arguments: dict[str, object], data: Any) -> None:
    text = encode(arguments)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 8)))
    inserted = data.draw(
        st.sampled_from(["", "[", "]", "{}", '"', ",", "null", "-1", "1e999", '"$"', "\\ud800", "\x00"])
    )
    assert_read_or_refused(text[:start] + inserted + text[end:])


def test_a_name_is_never_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with pytest.raises(
        InvalidArguments, match=r"a this:that, which is not registered in this process: import its module"
    ):
        decode('{"it": {"$": "this:that", "v": 1}}')
    assert "this" not in sys.modules


# The registry.


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(argument_types, "_by_class", dict(argument_types._by_class))
    monkeypatch.setattr(argument_types, "_by_name", dict(argument_types._by_name))


def is_registered(cls: type) -> bool:
    return argument_types.of_class(cls) is not None


@pytest.mark.usefixtures("registry")
def test_a_class_of_no_module_needs_a_name() -> None:
    class Local(enum.Enum):
        ONE = 1

    with pytest.raises(ConfigurationError, match=r"Local is defined inside a function.*argument_type\(name=\.\.\.\)"):
        argument_type(Local)
    assert argument_type(Local, name="local") is Local
    assert argument_type(Local) is Local
    assert decode(encode({"it": Local.ONE})) == {"it": Local.ONE}


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("module", ["__main__", "__mp_main__"])
def test_a_class_of_main_needs_a_name(module: str) -> None:
    script = enum.Enum("Script", "ONE", module=module)
    with pytest.raises(
        ConfigurationError, match=rf"{module}:Script is defined in __main__, where no worker can find it"
    ):
        argument_type(script)
    argument_type(script, name="script")


@pytest.mark.usefixtures("registry")
def test_two_classes_cannot_share_a_name() -> None:
    argument_type(StrayLine, name="line")
    with pytest.raises(ConfigurationError, match=r"StrayPair cannot be registered as 'line', because .*Line is"):
        argument_type(StrayPair, name="line")
    with pytest.raises(ConfigurationError, match=r"'tuple' cannot be the name"):
        argument_type(StrayPair, name="tuple")
    with pytest.raises(ConfigurationError, match=r"'' cannot be the name"):
        argument_type(StrayPair, name="")


@pytest.mark.usefixtures("registry")
def test_after_a_second_name_both_are_read_and_the_newest_is_written() -> None:
    old = encode({"it": Line(1)})
    argument_type(Line, name="order.line")
    argument_type(Line)
    assert '"order.line"' in encode({"it": Line(1)})
    assert decode(old) == decode(encode({"it": Line(1)})) == {"it": Line(1)}


@pytest.mark.usefixtures("registry")
def test_a_module_may_be_reloaded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reloaded_shop.py").write_text(
        "import enum\nfrom async_task import argument_type\n"
        "@argument_type\nclass Size(enum.Enum):\n    S = 1\n"
        '@argument_type(name="shop.shape")\nclass Shape(enum.Enum):\n    ROUND = 1\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    shop = importlib.import_module("reloaded_shop")
    try:
        text = encode({"it": [shop.Size.S, shop.Shape.ROUND]})
        shop = importlib.reload(shop)
        assert decode(text) == {"it": [shop.Size.S, shop.Shape.ROUND]}
        assert encode({"it": [shop.Size.S, shop.Shape.ROUND]}) == text
    finally:
        del sys.modules["reloaded_shop"]


class Undecorated:
    pass


@dataclasses.dataclass
class Sack(dict[str, int]):
    x: int = 0


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Customer, "^Customer is a mapped class: pass its id$"),
        (MappedLine, "^MappedLine is a mapped class: pass its id$"),
        (Hero, "^Hero is a mapped class: pass its id$"),
        (Undecorated, r"Undecorated is not an Enum, a dataclass, a NamedTuple or a pydantic model: make it one"),
        (dict, "builtins:dict is not an Enum"),
        (Sack, "Sack is a dataclass that extends a builtin type, whose contents are no field: hold them in one"),
        (Line(1), "^argument_type takes a class, and was given a Line$"),
    ],
)
def test_only_the_four_kinds_can_be_registered(cls: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        argument_type(cls)


# Annotations.


class Inner(enum.Enum):
    ONE = 1


@dataclasses.dataclass
class Outer:
    inner: "list[Inner] | None"
    again: "Outer | None"
    pair: "Couple"
    init: dataclasses.InitVar[int] = 0


class Couple(NamedTuple):
    shape: "Shape"


class Shape(pydantic.BaseModel):
    rights: "dict[str, Annotated[Deep, 'a note']]"
    parent: "Shape | None" = None


class Deep(enum.Flag):
    A = 1


class Options(TypedDict, total=False):
    inner: typing.NotRequired[Inner]


class Referring(NamedTuple):
    missing: "Nowhere"  # type: ignore[name-defined]  # noqa: F821


class ReferringModel(pydantic.BaseModel):
    missing: "Nowhere"  # type: ignore[name-defined]  # noqa: F821


@dataclasses.dataclass
class Carrier:
    customer: Customer


InnerId = NewType("InnerId", Inner)
Json = TypeAliasType("Json", "list[Json] | Inner")  # type: ignore[misc]
Listed = TypeAliasType("Listed", list[T], type_params=(T,))
Bound = TypeVar("Bound", bound=Inner)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    "annotation",
    [
        Inner,
        Inner | None,
        Optional[Inner],  # noqa: UP045
        typing.Union[int, Inner],  # noqa: UP007
        list[Inner],
        dict[str, list[Inner]],
        dict[Inner, int],
        tuple[int, Inner],
        tuple[Inner, ...],
        typing.Sequence[Inner],
        collections.abc.Mapping[str, Inner],
        frozenset[Inner],
        Annotated[Inner, "a note", 1],
        Annotated[list[Inner] | None, "a note"],
        Literal[Inner.ONE, "text"],
        typing.Final[Inner],
        collections.abc.Callable[[Inner], None],
        InnerId,
        Json,
        Listed[Inner],
        Bound,
        Options,
        Box[Inner],
        Outer,
    ],
    ids=str,
)
def test_a_class_is_found_wherever_it_stands_in_an_annotation(annotation: object) -> None:
    assert not is_registered(Inner)
    register_annotation(annotation)
    assert is_registered(Inner)


@pytest.mark.usefixtures("registry")
def test_the_fields_of_each_kind_are_searched_and_recursion_ends() -> None:
    register_annotation(Outer)
    assert all(map(is_registered, [Outer, Inner, Couple, Shape, Deep]))
    value = Outer([Inner.ONE], Outer(None, None, Couple(Shape(rights={}))), Couple(Shape(rights={"a": Deep.A})))
    assert_survives(value)


@pytest.mark.usefixtures("registry")
def test_a_generic_model_is_registered_by_its_parameters() -> None:
    register_annotation(Page[Inner] | Page[int])
    assert is_registered(Inner)
    assert_survives([Page[Inner](items=[Inner.ONE]), Page[int](items=[1])])


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]


@pytest.mark.usefixtures("registry")
def test_a_class_that_is_registered_keeps_its_name() -> None:
    argument_type(Inner, name="inner")
    register_annotation(list[Inner])
    assert encode({"it": Inner.ONE}) == '{"it": {"$": "inner", "v": "ONE"}}'


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    "annotation", [None, int, Any, object, typing.Callable[..., int], type[Customer], T, ..., Literal["text"], list]
)
def test_an_annotation_without_such_classes_registers_nothing(annotation: object) -> None:
    before = dict(argument_types._by_name)
    register_annotation(annotation)
    assert argument_types._by_name == before


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("annotation", [Customer, list[Customer] | None, Carrier, Annotated[Customer, 1], MappedLine])
def test_a_mapped_class_is_refused_wherever_it_stands(annotation: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^(Customer|MappedLine) is a mapped class: pass its id$"):
        register_annotation(annotation)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("annotation", ["Nowhere", list["Nowhere"], Referring, ReferringModel])  # noqa: F821
def test_a_name_that_cannot_be_resolved_is_refused(annotation: object) -> None:
    with pytest.raises(ConfigurationError, match=r"the annotation 'Nowhere' cannot be resolved: import it for real"):
        register_annotation(annotation)


@pytest.mark.usefixtures("registry")
def test_a_local_class_in_an_annotation_is_refused_as_by_argument_type() -> None:
    local = enum.Enum("local", "ONE", qualname="f.<locals>.local", module=__name__)
    with pytest.raises(ConfigurationError, match=r"inside a function"):
        register_annotation(list[local])  # type: ignore[valid-type]


def test_pydantic_is_not_imported_for_those_who_have_no_model() -> None:
    script = (
        "import sys, types; package = types.ModuleType('async_task'); "
        f"package.__path__ = [{str(pathlib.Path(argument_types.__file__).parents[1])!r}]; "
        "sys.modules['async_task'] = package; sys.modules['pydantic'] = None; "
        "from async_task.arguments.encoding import encode; from async_task.arguments.decoding import decode; "
        "assert decode(encode({'a': (1,)})) == {'a': (1,)}"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
