"""Encoding: each value survives exactly, and what cannot be stored is refused in a sentence."""

import collections
import dataclasses
import datetime
import decimal
import io
import json
import math
import pathlib
import sys
import threading
import types
import typing
import uuid
import zoneinfo
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task import argument_type
from async_task.arguments.decoding import decode
from async_task.arguments.encoding import encode
from async_task.errors import InvalidArguments
from stored_values import (
    Box,
    Checked,
    Color,
    Customer,
    Hero,
    Line,
    MappedLine,
    Noisy,
    Order,
    Pair,
    Plain,
    Point,
    Rights,
    Stray,
    StrayLine,
    StrayOrder,
    StrayPair,
    Strict,
    assert_survives,
    hashables,
    likeness,
    quick,
    shown_as,
    values,
)

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
NIGHT = datetime.datetime(2026, 10, 25, 2, 30)
IN_AN_HOUR = datetime.timezone(datetime.timedelta(hours=1))
HERE = datetime.timezone(datetime.timedelta(hours=1), "Here")


@pytest.mark.long
@quick
@given(st.dictionaries(st.from_regex("[a-z]{1,4}|[$]", fullmatch=True), values, max_size=3))
def test_decoding_returns_equal_values_of_the_same_types(arguments: dict[str, object]) -> None:
    text = encode(arguments)
    assert text.isascii()
    assert likeness(decode(text)) == likeness(arguments)
    assert encode(decode(text)) == text


@quick
@given(st.lists(hashables, max_size=6), st.randoms(use_true_random=False))
def test_a_set_is_encoded_alike_in_whatever_order_it_was_filled(elements: list[object], random: Any) -> None:
    unique = list(dict.fromkeys(elements))
    shuffled = random.sample(unique, len(unique))
    assert encode({"s": set(unique)}) == encode({"s": set(shuffled)})


def test_json_types_are_written_as_they_are() -> None:
    assert encode({"token": "t", "n": [1, 2.5, None, True], "d": {"a": {}}}) == (
        '{"token": "t", "n": [1, 2.5, null, true], "d": {"a": {}}}'
    )
    assert encode({}) == "{}"


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
        (Color.CRIMSON, f"{Color.__module__}:Color", "RED"),
        (Rights.READ | Rights.RUN, f"{Color.__module__}:Rights", 5),
        (Point(1, 2), f"{Point.__module__}:Point", {"x": 1, "y": 2}),
        (Pair(1), f"{Pair.__module__}:Pair", {"left": 1, "right": 7}),
        (Noisy(seed=3), "noisy", {"made": 3, "tags": []}),
    ],
)
def test_other_types_become_an_object_with_type_and_value(value: object, tag: str, payload: object) -> None:
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
    ids=shown_as,
)
def test_an_unusual_value_survives(value: object) -> None:
    assert_survives(value)


def test_two_nans_in_a_set_stay_two() -> None:
    found = decode(encode({"it": {float("nan"), float("nan")}}))["it"]
    assert isinstance(found, set)
    assert len(found) == 2


def test_five_megabytes_of_text_survive() -> None:
    for text in ("x" * 5_000_000, "\U0001f600" * 1_250_000, "\x00" * 5_000_000):
        assert decode(encode({"it": text})) == {"it": text}


def test_the_uuid_of_asyncpg_is_written_as_a_uuid() -> None:
    from asyncpg.pgproto import pgproto

    number = uuid.uuid4()
    found = decode(encode({"it": pgproto.UUID(str(number))}))["it"]
    assert type(found) is uuid.UUID
    assert found == number


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
            "it: its field made has no value: set it before the attempt is created",
        ),
        (
            Strict.model_construct(),
            "it: its field number has no value: set it before the attempt is created",
        ),
    ],
    ids=shown_as,
)
def test_a_value_that_cannot_be_stored_is_refused_with_its_path_only(value: object, message: str) -> None:
    with pytest.raises(InvalidArguments) as refusal:
        encode({"first": 1, "it": value})
    assert str(refusal.value) == message
    assert refusal.value.__context__ is None
    assert "SECRET" not in str(refusal.value)


def test_values_are_stored_up_to_a_hundred_levels_deep() -> None:
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
def test_the_name_of_an_argument_must_be_a_str(name: Any) -> None:
    with pytest.raises(InvalidArguments, match=r"^the arguments: each name must be a str"):
        encode({name: 1})


def test_a_python_with_a_lower_limit_of_digits_stores_shorter_ints() -> None:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(1000)
    try:
        assert_survives(10**999)
        with pytest.raises(InvalidArguments, match=r"^it: an int of more than 1000 digits"):
            encode({"it": 10**1000})
    finally:
        sys.set_int_max_str_digits(before)


def test_a_value_too_deep_for_the_stack_is_refused() -> None:
    value, text = _nested(90), encode({"it": _nested(90)})
    with pytest.raises(InvalidArguments, match=r"^it: nested too deeply for the stack that is left"):
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
