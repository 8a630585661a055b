"""Encodes the arguments of a call as JSON without loss, in ASCII. `decoding` reads it.

Values that JSON has are written as they are. Others become an object of two keys, the type and the value:

    {"number": 7355608, "price": {"$": "decimal", "v": "19.90"}, "due": {"$": "datetime", "v": "2026-10-25T02:30:00"}}
"""

import binascii
import collections.abc
import datetime
import decimal
import io
import json
import math
import os
import re
import sys
import types
import uuid
import zoneinfo
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeGuard

from async_task.arguments.kinds import Unstorable, a, is_mapped, kind_of
from async_task.arguments.types import MAX_DEPTH, of_class
from async_task.errors import InvalidArguments

_MAX_DIGITS = 4300  # Python's default limit for reading an int


def encode(arguments: Mapping[str, object]) -> str:
    """These arguments as text: `decode` returns equal values of exactly the same types.

    Not kept: that two values are the same object, the order in which a set was filled, and `UUID.is_safe`. Raises
    InvalidArguments, which begins with the path of what cannot be stored, and contains no value.
    """
    name = ""
    written: dict[str, object] = {}
    try:
        for name, value in arguments.items():
            if not _is_plain_text(name):
                raise InvalidArguments("the arguments: each name must be a str without surrogate pairs")
            written[name] = _WRITERS[type(value)](value, 1)
        return _dumps(written)
    except Unstorable as refused:
        message = f"{name}{_where(refused)}: {refused}"
    except RecursionError:
        message = f"{name}: nested too deeply for the stack that is left: pass an id, or store it elsewhere"
    raise InvalidArguments(message)  # outside of the handlers: a context would drag the value along


# ASCII holds NUL and lone surrogates, fits every encoding of a server, and is the fast path of the JSON encoder.
_dumps = json.JSONEncoder(check_circular=False, allow_nan=False).encode
_SURROGATE_PAIR = re.compile("(?<=[\ud800-\udbff])(?=[\udc00-\udfff])")
_WORD = re.compile("[A-Za-z_]{1,32}")


def _is_plain_text(value: object) -> TypeGuard[str]:
    # JSON would join two surrogates that stand side by side into one character.
    return type(value) is str and (value.isascii() or _SURROGATE_PAIR.search(value) is None)


def _where(refused: Unstorable) -> str:
    path = [part for part in reversed(refused.path) if part != ".__dict__"]  # a pydantic model's fields are in it
    return "".join(path[:20]) + ("..." if len(path) > 20 else "")


# The writers take a value and its level of nesting, and return what JSON can hold.


def _write_itself(value: object, _depth: int) -> object:
    return value


def _write_str(value: str, _depth: int) -> object:
    return value if _is_plain_text(value) else {"$": "str", "v": _SURROGATE_PAIR.split(value)}


def _write_int(value: int, _depth: int) -> object:
    if -(1 << 63) <= value < 1 << 63:
        return value
    digits = min(_MAX_DIGITS, sys.get_int_max_str_digits() or _MAX_DIGITS)
    if abs(value) >= 10**digits:
        raise Unstorable(f"an int of more than {digits} digits cannot be stored: pass it as bytes")
    return value


def _write_float(value: float, _depth: int) -> object:
    return value if math.isfinite(value) else {"$": "float", "v": repr(value)}


def _write_list(value: Iterable[object], depth: int) -> list[object]:
    _check_depth(depth)
    written: list[object] = []
    try:
        for item in value:
            written.append(_WRITERS[type(item)](item, depth + 1))
    except Unstorable as refused:
        refused.path.append(f"[{len(written)}]")
        raise
    return written


def _write_dict(value: dict[Any, object], depth: int) -> object:
    for key in value:
        if not _is_plain_text(key) or key == "$":
            return {"$": "dict", "v": _write_pairs(value, depth)}
    return _write_names(value, depth)


def _write_names(value: Mapping[str, object], depth: int) -> dict[str, object]:
    _check_depth(depth)
    written: dict[str, object] = {}
    name = ""
    try:
        for name, item in value.items():
            written[name] = _WRITERS[type(item)](item, depth + 1)
    except Unstorable as refused:
        # A key is shown only if it looks like the name of a field: another one may be a secret.
        refused.path.append(f".{name}" if _WORD.fullmatch(name) else f"[entry {len(written)}]")
        raise
    return written


def _write_pairs(value: dict[object, object], depth: int) -> list[list[object]]:
    _check_depth(depth)
    written: list[list[object]] = []
    part = "key"
    try:
        for key, item in value.items():
            part = "key"
            written_key = _WRITERS[type(key)](key, depth + 1)
            part = "entry"
            written.append([written_key, _WRITERS[type(item)](item, depth + 1)])
    except Unstorable as refused:
        refused.path.append(f"[{part} {len(written)}]")
        raise
    return written


def _write_set(value: Iterable[object], depth: int) -> list[object]:
    _check_depth(depth)
    try:
        return sorted((_WRITERS[type(item)](item, depth + 1) for item in value), key=_dumps)
    except Unstorable as refused:
        refused.path.append("[element]")
        raise


def _write_moment(tag: str, value: datetime.datetime | datetime.time) -> object:
    """ISO text where that says everything, else [text, zone] or [text, zone, fold]."""
    zone = _write_zone(value.tzinfo)
    text = value.isoformat() if zone is None else value.replace(tzinfo=None).isoformat()
    if value.fold:
        return {"$": tag, "v": [text, zone, 1]}
    return {"$": tag, "v": text if zone is None else [text, zone]}


def _write_zone(zone: datetime.tzinfo | None) -> object:
    """The key of a ZoneInfo; [timedelta] or [timedelta, name] for a special offset; None if the text has it all."""
    if zone is None or zone is datetime.UTC:
        return None
    if type(zone) is datetime.timezone:
        pickled: Any = zone.__reduce__()  # only this tells a given name from the default one
        offset, *name = pickled[1]
        # fromisoformat of Python 3.11 reads an offset below a second as UTC.
        return [_WRITERS[type(part)](part, 0) for part in pickled[1]] if name or offset.microseconds else None
    if type(zone).__module__ == "pydantic_core._pydantic_core":
        return None  # the fixed offset of any instant that pydantic has read
    if type(zone) is not zoneinfo.ZoneInfo:
        raise Unstorable(f"its time zone is {a(type(zone))}: use zoneinfo.ZoneInfo(key) or datetime.timezone")
    if not _is_plain_text(zone.key):
        raise Unstorable("its time zone was read from a file, without a key: use zoneinfo.ZoneInfo(key)")
    return zone.key


def _write_other(value: object, depth: int) -> object:
    registered = of_class(type(value))
    if registered is None or is_mapped(type(value)):
        if isinstance(value, uuid.UUID) and type(value).__module__ == "asyncpg.pgproto.pgproto":
            return {"$": "uuid", "v": str(value)}  # asyncpg returns this class for each UUID column
        raise Unstorable(_why_not(value))
    parts = registered.take_apart(value)
    if type(parts) is dict:
        return {"$": registered.name, "v": _write_names(parts, depth)}
    return {"$": registered.name, "v": _WRITERS[type(parts)](parts, depth)}


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Unstorable(
            f"nested more than {MAX_DEPTH} levels deep, or containing itself: pass an id, or store it elsewhere"
        )


class _Writers(dict[type, Callable[[Any, int], object]]):
    def __missing__(self, cls: type) -> Callable[[Any, int], object]:
        return _write_other


_WRITERS = _Writers(
    {
        type(None): _write_itself,
        bool: _write_itself,
        int: _write_int,
        float: _write_float,
        str: _write_str,
        list: _write_list,
        dict: _write_dict,
        tuple: lambda value, depth: {"$": "tuple", "v": _write_list(value, depth)},
        set: lambda value, depth: {"$": "set", "v": _write_set(value, depth)},
        frozenset: lambda value, depth: {"$": "frozenset", "v": _write_set(value, depth)},
        bytes: lambda value, _: {"$": "bytes", "v": binascii.b2a_base64(value, newline=False).decode("ascii")},
        datetime.datetime: lambda value, _: _write_moment("datetime", value),
        datetime.date: lambda value, _: {"$": "date", "v": value.isoformat()},
        datetime.time: lambda value, _: _write_moment("time", value),
        datetime.timedelta: lambda value, _: {"$": "timedelta", "v": [value.days, value.seconds, value.microseconds]},
        decimal.Decimal: lambda value, _: {"$": "decimal", "v": str(value)},
        uuid.UUID: lambda value, _: {"$": "uuid", "v": str(value)},
    }
)

_INSTEAD: tuple[tuple[Any, str], ...] = (
    ((type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType), "pass its name"),
    (os.PathLike, "pass str(path)"),
    ((bytearray, memoryview), "pass bytes"),
    (io.IOBase, "pass the path of the file, or what it contains"),
    (collections.abc.Mapping, "pass a dict"),
    (collections.abc.Set, "pass a set"),
    ((collections.abc.Iterator, collections.abc.Sequence), "pass a list"),
    (collections.abc.Callable, "pass its name"),
)


def _why_not(value: object) -> str:
    cls = type(value)
    if is_mapped(cls):
        return f"{a(cls)} is a row of the database: pass its id"
    kind = kind_of(cls)
    if kind is not None:
        return (
            f"{a(cls)} is {kind.kind} that is not registered: "
            "put @argument_type on its class, in a module that the workers import"
        )
    for plain in _WRITERS:
        if isinstance(value, plain):
            return f"{a(cls)} is a subclass of {plain.__name__} that would not come back: pass a plain {plain.__name__}"
    return f"{a(cls)} cannot be stored: {instead_of(cls)}"


def instead_of(cls: type) -> str:
    """What to pass instead of an instance of this class, which cannot be stored."""
    return next((say for given, say in _INSTEAD if issubclass(cls, given)), "pass what it is made of, or an id")


PLAIN_TYPES = tuple(_WRITERS)
"""The types of the values that can be stored without a registration."""
