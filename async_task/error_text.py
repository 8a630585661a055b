"""The text of an exception as it is stored and logged: safe to read, and without secret arguments."""

import base64
import datetime as dt
import enum
import json
import traceback
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote, quote_plus

from sqlalchemy.exc import StatementError

LONGEST_MESSAGE, LONGEST_TRACEBACK = 2_000, 20_000
"""Characters that are kept of a summary and of a traceback."""
SHORTEST_SECRET, MAX_SECRETS = 3, 1_000
"""Shorter secrets are not hidden: they would be found everywhere. More secrets take longer to hide than the call."""
HIDDEN = "[hidden]"


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception as text: `summary` in one line, `trace` with the traceback (without local variables)."""

    summary: str
    trace: str

    def in_ascii(self) -> "Failure":
        """The same, escaped, for a database that stores no other characters."""
        escaped = [text.encode("ascii", "backslashreplace").decode() for text in (self.summary, self.trace)]
        return Failure(*escaped)


def describe(error: BaseException, secrets: Collection[str] = ()) -> Failure:
    """`error` as text, without any of `secrets`. Never raises, whatever the exception's own methods do.

    The summary is the class and the first line of the message; for a failed statement, of the driver's message:
    SQLAlchemy adds the statement and a link, which are in the trace."""
    _hide_parameters(error)
    if len(secrets) > MAX_SECRETS:
        message, trace = HIDDEN, "".join(traceback.format_tb(error.__traceback__))
    else:
        message, trace = _message(error), _trace(error)
    # Hidden before it is cut: a part of a secret would not be found.
    kind, message, trace = (_hide(one, secrets) for one in (type(error).__qualname__, message, trace))
    summary = _cut(f"{kind}: {_first_line(message)}".removesuffix(": "), LONGEST_MESSAGE, " ")
    return Failure(summary, _cut(trace or f"{kind}: {message}", LONGEST_TRACEBACK, "\n"))


def secrets_in(arguments: Mapping[str, object], names: Collection[str] | None) -> frozenset[str]:
    """The texts that would show the values of these arguments. `names`: of which arguments; None: of all."""
    values = [value for name, value in arguments.items() if names is None or name in names]
    texts = {text for value in values for text in _texts(value)}
    # Each line too: a traceback indents the lines of an exception group.
    lines = {line for text in texts for line in text.splitlines()}
    found = {text for text in texts | lines if len(text.strip()) >= SHORTEST_SECRET}
    return frozenset(found | {written for text in found for written in _encodings(text)})


def storable(text: str) -> str:
    """`text` with NUL and lone surrogates escaped: no database stores them."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def _encodings(text: str) -> Iterator[str]:
    """`text` as a repr, a JSON document and a URL contain it."""
    yield repr(text)[1:-1]
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    plain = text.encode("utf-8", "surrogatepass")
    yield quote(plain, safe="")
    yield quote(plain)
    yield quote_plus(plain)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, bytes):
        yield from (value.decode("utf-8", "replace"), repr(value)[2:-1], value.hex(), base64.b64encode(value).decode())
    elif isinstance(value, enum.Enum):
        yield value.name
        yield from _texts(value.value)
    elif isinstance(value, dt.date | dt.time):
        yield from (str(value), repr(value), value.isoformat())
    elif value is not None and not isinstance(value, bool):
        for name in _attributes(value):
            yield from _texts(getattr(value, name, None))
        yield from (str(value), repr(value))


def _attributes(value: object) -> Iterator[str]:
    """The names of the attributes of an object of the user's own class."""
    if type(value).__module__ not in ("builtins", "datetime", "decimal", "uuid"):
        yield from getattr(value, "__dict__", ())
        for kind in type(value).__mro__:
            slots = getattr(kind, "__slots__", ())
            yield from {slots} if isinstance(slots, str) else set(slots) - _NOT_FIELDS


_NOT_FIELDS = frozenset({"__dict__", "__weakref__", "__pydantic_fields_set__"})


def _trace(error: BaseException) -> str:
    try:
        return "".join(traceback.TracebackException.from_exception(error, compact=True).format())
    except Exception:
        return ""


def _message(error: BaseException) -> str:
    try:
        return str(error.orig) if isinstance(error, StatementError) and error.orig is not None else str(error)
    except BaseException as broken:
        return f"(its __str__ raised {type(broken).__name__})"


def _hide_parameters(error: BaseException) -> None:
    """SQLAlchemy puts a statement's parameters into its messages unless `hide_parameters` is set."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, StatementError):
            one.hide_parameters = True
        waiting += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions


def _hide(text: str, secrets: Collection[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return storable(text)


def _first_line(text: str) -> str:
    first, *more = text.strip().splitlines() or [""]
    return f"{first.rstrip()} [...]" if more else first


def _cut(text: str, longest: int, gap: str) -> str:
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]}{gap}[... {len(text) - longest} characters ...]{gap}{text[-longest // 2 :]}"
