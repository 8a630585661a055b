"""The text of an exception as it is stored and logged: safe to read, and without secret arguments."""

import base64
import contextlib
import datetime as dt
import enum
import json
import traceback
import types
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TypeVar
from urllib.parse import quote, quote_plus

from sqlalchemy.exc import StatementError

LONGEST_MESSAGE, LONGEST_TRACEBACK = 2_000, 20_000
"""Characters that are kept of a summary and of a traceback."""
SHORTEST_SECRET, MAX_SECRETS = 3, 1_000
"""Shorter secrets are not hidden: they would be found everywhere. More secrets take longer to hide than the call."""
HIDDEN = "[hidden]"
MOST_PLACES = 50
"""How many places of a traceback go to a log: the last ones."""
_QUOTES_NOTHING = "_async_task_quotes_nothing"
_OF_LIBRARY = "_async_task_of_library"
E = TypeVar("E", bound=BaseException)


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
    try:
        return _described(error, secrets)
    except Exception as broken:
        text = f"{type(error).__qualname__}: {_unreadable(broken)}"
        return Failure(text, text)


def _described(error: BaseException, secrets: Collection[str]) -> Failure:
    for one in _with_causes(error):
        if isinstance(one, StatementError):  # else it puts the parameters of the statement into its message
            one.hide_parameters = True
    if len(secrets) > MAX_SECRETS:
        message, trace = HIDDEN, "".join(traceback.format_tb(error.__traceback__))
    else:
        message, trace = _message(error), _trace(error)
    # Hidden before it is cut: a part of a secret would not be found.
    kind, message, trace = (_hide(one, secrets) for one in (type(error).__qualname__, message, trace))
    summary = _cut(f"{kind}: {_first_line(message)}".removesuffix(": "), LONGEST_MESSAGE, " ")
    return Failure(summary, _cut(trace or f"{kind}: {message}", LONGEST_TRACEBACK, "\n"))


def describe_place(error: BaseException) -> Failure:
    """`error` as its class and the place that raised it, for calls whose arguments are secret: a message may quote any
    part of them, in any form. The message of an error of this library is kept: it quotes none."""
    is_ours = type(error).__module__ == "async_task.errors" and _is_raised_here(error)
    if is_ours or _has_mark(error, _QUOTES_NOTHING):
        return Failure(describe(error).summary, _places(error))
    return Failure(f"{type(error).__qualname__}{_place(error)} (message not stored)", _places(error))


def without_values(error: BaseException, failure: Failure) -> Exception:
    """An exception for a log: of a class with the same name, with the message of `failure` and the places of `error`.
    Its frames hold no local variables: error trackers store those of an exception, and arguments are among them."""
    kind = type(error)
    message = failure.summary.removeprefix(kind.__qualname__).removeprefix(": ").strip()
    places: types.TracebackType | None = None
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))[-MOST_PLACES:]):
        empty = _empty_frame(frame.f_code, str(frame.f_globals.get("__name__", "")), line)
        places = types.TracebackType(places, empty, -1, line)
    return _class_like(kind)(message).with_traceback(places)


def _class_like(kind: type[BaseException]) -> type[Exception]:
    """A class of exceptions of the same name."""
    return type(kind.__name__, (Exception,), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})


def _empty_frame(code: types.CodeType, module: str, line: int) -> types.FrameType:
    """A frame that seems to be of `code`: of a generator that never starts, so that it has neither variables nor a
    caller."""
    seeming = _never_started.__code__.replace(
        co_filename=code.co_filename, co_name=code.co_name, co_qualname=code.co_qualname, co_firstlineno=line
    )
    made = types.FunctionType(seeming, {"__name__": module, "__file__": code.co_filename})
    frame: types.FrameType = made().gi_frame
    return frame


def _never_started() -> Iterator[None]:
    yield


def quotes_nothing(error: E) -> E:
    """Mark an error of this library whose message quotes nothing of the call."""
    setattr(error, _QUOTES_NOTHING, True)
    return error


def of_library(error: E) -> E:
    """Mark an error of this library about a call, which the target has not raised; its message may quote the call."""
    setattr(error, _OF_LIBRARY, True)
    return error


def is_of_library(error: BaseException) -> bool:
    """Whether this library raised it about a call: its target did not."""
    return _has_mark(error, _OF_LIBRARY) or _has_mark(error, _QUOTES_NOTHING)


def _has_mark(error: BaseException, mark: str) -> bool:
    # Not by `hasattr`: the `__getattr__` of an exception may raise anything.
    return mark in object.__getattribute__(error, "__dict__")


def readable(error: BaseException) -> BaseException:
    """`error`; or, if its class or its causes cannot be read without another error, one of a class of the same name
    that says so."""
    try:
        for one in _with_causes(error):
            _ = bool(one), one.__traceback__, one.__suppress_context__
        return error
    except BaseException as broken:
        return _class_like(type(error))(_unreadable(broken))


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """The error, those that caused it, and those in groups of errors, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions


def _unreadable(broken: BaseException) -> str:
    return f"(it cannot be read: {type(broken).__name__})"


def _is_raised_here(error: BaseException) -> bool:
    frames = list(traceback.walk_tb(error.__traceback__))
    return not frames or str(frames[-1][0].f_globals.get("__name__")).startswith("async_task.")


def _place(error: BaseException) -> str:
    """Where it was raised, if that is known."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return ""
    frame, line = frames[-1]
    return f" in {frame.f_code.co_qualname}, {PurePath(frame.f_code.co_filename).name}:{line}"


def _places(error: BaseException) -> str:
    """The traceback without messages: of the error and of those that it replaced, the first one first."""
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    parts = ["".join(traceback.format_tb(one.__traceback__)) + type(one).__qualname__ for one in reversed(chain)]
    return _cut("\n\n".join(parts), LONGEST_TRACEBACK, "\n")


def secrets_in(arguments: Mapping[str, object], names: Collection[str] | None) -> frozenset[str]:
    """The texts that would show the values of these arguments. `names`: of which arguments; None: of all."""
    values = [value for name, value in arguments.items() if names is None or name in names]
    texts = {text for value in values for text in _texts(value)}
    # Each line too: a traceback indents the lines of an exception group.
    lines = {line for text in texts for line in text.splitlines()}
    found = {text for text in texts | lines if len(text.strip()) >= SHORTEST_SECRET}
    return frozenset(found | {written for text in found for written in _encodings(text)})


def one_line_without(text: str, secrets: Collection[str]) -> str:
    """The first line of a text of the user's, without any of `secrets`."""
    shown = HIDDEN if len(secrets) > MAX_SECRETS else _hide(text, secrets)  # before it is cut, as in `describe`
    return _cut(_first_line(shown), LONGEST_MESSAGE, " ")


def sanitized(text: str) -> str:
    """The first word of an error alone: what follows may be personal data."""
    return (text.split(maxsplit=1) or [""])[0].rstrip(":")


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
        for text in (str, repr):
            with contextlib.suppress(Exception):  # of the user's own class
                yield text(value)


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
        told = error.orig if isinstance(error, StatementError) and error.orig is not None else error
        return "".join((str(told),))  # a plain text, where `__str__` returns one with methods of its own
    except BaseException as broken:
        return f"(its __str__ raised {type(broken).__name__})"


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
