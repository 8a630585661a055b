"""Decodes the stored arguments of a call. Only builtin types and registered classes are known; nothing is imported."""

import binascii
import datetime
import decimal
import json
import math
import re
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any, cast

from async_task.arguments.types import MAX_DEPTH, of_name
from async_task.errors import InvalidArguments

_PLACE = re.compile(r"[\w.]{1,200}:[\w.]{1,200}")
_DECIMALS = decimal.Context(traps=[decimal.InvalidOperation])  # the caller's context may turn garbage into NaN


def decode(text: str) -> dict[str, object]:
    """The arguments that `encode` made this text of.

    A field of a registered class that the text does not have gets its default. Raises InvalidArguments for any other
    text; the message contains nothing of it but the "module:qualname" of a class.
    """
    try:
        # Most texts are plain JSON. Without a context manager and a search for space around it, this is twice as fast.
        plain, end = _plain.raw_decode(text) if _is_plain(text) else (None, -1)
        if end == len(text):
            return cast("dict[str, object]", plain)
    except (ValueError, RecursionError):
        pass  # what follows finds the error again, and names it
    return _guarded(lambda: {name: _read(value, 1) for name, value in _as_object(json.loads(text)).items()})


def read_stored(text: str) -> dict[str, Any]:
    """The JSON object in this text, without making values of the user's types. Raises InvalidArguments as `decode`."""
    return _guarded(lambda: _as_object(json.loads(text, parse_float=_finite, parse_constant=_refuse)))


def _as_object(stored: Any) -> dict[str, Any]:
    if type(stored) is not dict:
        raise InvalidArguments("the stored arguments are not a JSON object")
    return stored


def _guarded(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return read()
    except RecursionError:
        message = "the stored arguments are nested too deeply"
    except (ValueError, TypeError):
        message = "the stored arguments are not JSON: the text was cut off or changed"
    raise InvalidArguments(message)


def _is_plain(text: str) -> bool:
    """Whether it is an object of JSON's own types: without tags, and not nested too deeply."""
    return text[:1] == "{" and '"$"' not in text and "\\u0024" not in text and _num_opened(text) <= MAX_DEPTH


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def _refuse(constant: str) -> float:
    raise ValueError(constant)


_plain = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse)


def _num_opened(text: str) -> int:
    return text.count("{") + text.count("[")


# The readers below may raise anything for a changed text. `_read_tagged` turns it into InvalidArguments.


def _read(stored: Any, depth: int) -> object:
    kind = type(stored)
    if kind is dict:
        return _read_tagged(stored, depth) if "$" in stored else _read_names(stored, depth)
    if kind is list:
        return _read_list(stored, depth)
    if kind is float and not math.isfinite(stored):
        raise InvalidArguments("the stored arguments hold a number out of range: the text was changed")
    return stored


def _read_tagged(stored: dict[str, Any], depth: int) -> object:
    tag = stored["$"]
    if type(tag) is not str or len(stored) != 2 or "v" not in stored:
        raise InvalidArguments("the stored arguments hold a malformed value: the text was changed")
    try:
        return _READERS[tag](stored["v"], depth) if tag in _READERS else _read_registered(tag, stored["v"], depth)
    except (InvalidArguments, MemoryError, RecursionError):
        raise
    except zoneinfo.ZoneInfoNotFoundError:
        message = "the stored arguments hold a time zone that this machine does not know: install tzdata"
    except Exception:  # a changed text makes a constructor, a __hash__ or a __setstate__ raise anything
        message = f"the stored arguments hold a broken {_named(tag)}: the text was changed, or the class"
    raise InvalidArguments(message)


def _read_registered(tag: str, stored: Any, depth: int) -> object:
    registered = of_name(tag)
    if registered is None:
        raise InvalidArguments(
            f"the stored arguments hold a {_named(tag)}, which is not registered in this process: import its module"
        )
    return registered.put_together(_read_names(stored, depth) if type(stored) is dict else stored)


def _named(tag: str) -> str:
    # The place of a class is not secret. Another name may be anything that stood in a changed text.
    return tag if tag in _READERS or _PLACE.fullmatch(tag) else "class under a custom name"


def _read_list(stored: Any, depth: int) -> list[object]:
    if depth > MAX_DEPTH:
        raise RecursionError
    return [_read(item, depth + 1) for item in _as(list, stored)]


def _read_names(stored: dict[str, Any], depth: int) -> dict[str, object]:
    if depth > MAX_DEPTH:
        raise RecursionError
    return {name: _read(item, depth + 1) for name, item in stored.items()}


def _read_pairs(stored: Any, depth: int) -> object:
    pairs: Any = [_read_list(pair, depth) for pair in _as(list, stored)]
    return _all_of(pairs, dict(pairs))


def _read_float(stored: Any, _depth: int) -> float:
    return {"nan": float, "inf": float, "-inf": float}[stored](
        stored
    )  # a new NaN each time: as keys of a dict, NaNs differ by identity


def _read_timedelta(stored: Any, _depth: int) -> datetime.timedelta:
    days, seconds, microseconds = (_as(int, part) for part in _as(list, stored))
    return datetime.timedelta(days, seconds, microseconds)


def _read_moment(cls: type[datetime.datetime] | type[datetime.time], stored: Any) -> object:
    if type(stored) is str:
        return cls.fromisoformat(stored)
    text, zone, fold = stored if len(stored) == 3 else (*stored, 0)
    moment = cls.fromisoformat(_as(str, text))
    if zone is not None and moment.tzinfo is not None:
        raise ValueError
    return moment.replace(tzinfo=moment.tzinfo if zone is None else _read_zone(zone), fold=_as(int, fold))


def _read_zone(zone: Any) -> datetime.tzinfo:
    if type(zone) is str:
        return zoneinfo.ZoneInfo(zone)
    parts: list[Any] = _read_list(zone, 0)
    return datetime.timezone(*parts)


def _as(cls: type, part: Any) -> Any:
    if type(part) is not cls:
        raise TypeError
    return part


def _all_of(parts: list[Any], collected: Any) -> Any:
    if len(parts) != len(collected):  # equal keys or elements: `encode` writes none
        raise ValueError
    return collected


_READERS: dict[str, Callable[[Any, int], object]] = {
    "str": lambda stored, _: "".join(_as(list, stored)),
    "float": _read_float,
    "dict": _read_pairs,
    "tuple": lambda stored, depth: tuple(_read_list(stored, depth)),
    "set": lambda stored, depth: _all_of(stored, set(_read_list(stored, depth))),
    "frozenset": lambda stored, depth: _all_of(stored, frozenset(_read_list(stored, depth))),
    "bytes": lambda stored, _: binascii.a2b_base64(_as(str, stored), strict_mode=True),
    "datetime": lambda stored, _: _read_moment(datetime.datetime, stored),
    "date": lambda stored, _: datetime.date.fromisoformat(_as(str, stored)),
    "time": lambda stored, _: _read_moment(datetime.time, stored),
    "timedelta": _read_timedelta,
    "decimal": lambda stored, _: decimal.Decimal(_as(str, stored), _DECIMALS),
    "uuid": lambda stored, _: uuid.UUID(_as(str, stored)),
}
