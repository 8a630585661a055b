"""The parameters of a page: read from the URL, checked, and kept in the links to other pages."""

import datetime as dt
import re
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar
from urllib.parse import urlencode

from async_task.errors import near
from async_task.web.security.refusal import Refused

W = TypeVar("W")
LONGEST = 500
"""Characters of a parameter."""
UNITS = {"s": 1, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}
LENGTH = re.compile(r"(\d{1,6}) ?(s|min|h|d|w)", re.ASCII)


class Query:
    """The parameters of one request. What cannot be meant is refused with status 400 and a sentence."""

    def __init__(self, parameters: Iterable[tuple[str, str]]) -> None:
        self._all = [(name, value) for name, value in parameters if value.strip()]
        for name, value in self._all:
            if len(value) > LONGEST:
                raise Refused(400, f"{_shown(name)} has more than {LONGEST} characters.")
            if any(one == "\0" or "\ud800" <= one <= "\udfff" for one in name + value):
                raise Refused(400, f"{_shown(name)} holds a character that no database stores.")

    @property
    def items(self) -> tuple[tuple[str, str], ...]:
        """All parameters that have a value."""
        return tuple(self._all)

    def text(self, name: str) -> str | None:
        """The last value of this name, without white space around it; None if there is none."""
        found = [value.strip() for one, value in self._all if one == name]
        return found[-1] if found else None

    def choice(self, name: str, known: Iterable[W], default: W) -> W:
        """One of these words."""
        found, words = self.text(name), tuple(known)
        for one in words:
            if one == found:
                return one
        if found is not None:
            raise _unknown(name, found, words)
        return default

    def choices(self, name: str, known: Collection[str]) -> tuple[str, ...]:
        """All values of this name, each one of these words, or several with commas between them."""
        words = [word.strip() for one, value in self._all if one == name for word in value.split(",")]
        return tuple(dict.fromkeys(_known(name, word, known) for word in words if word))

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """A whole number; beyond the bounds, the bound."""
        found = self.text(name)
        if found is None:
            return default
        if not re.fullmatch(r"\d{1,18}", found, re.ASCII):
            raise Refused(400, f"{_shown(name)} is a whole number, not {_shown(found)}.")
        return min(max(int(found), least), most)

    def cursor(self, name: str = "after") -> int | None:
        """The number at which the page before has ended."""
        return None if self.text(name) is None else self.number(name, 0, 0, 2**63 - 1)

    def moment(self, name: str) -> dt.datetime | dt.timedelta | None:
        """An instant with its zone, `2026-10-25T02:30Z`, or a length of time before now, `2h`."""
        found = self.text(name)
        if found is None:
            return None
        if (length := LENGTH.fullmatch(found)) is not None:
            return dt.timedelta(seconds=int(length[1]) * UNITS[length[2]])
        return instant(name, found)

    def link(self, path: str = "", /, **changes: object) -> str:
        """`path` with these parameters, changed; None leaves one out. Without what belongs to one look only."""
        kept = [(name, value) for name, value in self._all if name not in changes and name not in ("after", "done")]
        made = [(name, str(value)) for name, value in changes.items() if value is not None]
        return f"{path}?{urlencode(kept + made)}" if kept or made else path or "?"

    def as_mapping(self) -> Mapping[str, str]:
        """The last value of each name, for the fields of a form."""
        return dict(self._all)


def instant(name: str, text: str) -> dt.datetime:
    """An instant. Raises Refused for a text that is none, or that has no zone."""
    try:
        found = dt.datetime.fromisoformat(text)
        found = found.replace(tzinfo=dt.UTC) if found.tzinfo is None else found
        return found.astimezone(dt.UTC)
    except (ValueError, OverflowError):
        words = f"{_shown(name)} is an instant like 2026-10-25T02:30Z, or a length of time like 2h: {_shown(text)}"
        raise Refused(400, f"{words} is neither.") from None


def _known(name: str, word: str, known: Collection[str]) -> str:
    if word not in known:
        raise _unknown(name, word, known)
    return word


def _unknown(name: str, word: str, known: Iterable[object]) -> Refused:
    words = [str(one) for one in known if one]
    return Refused(400, f"{_shown(name)} is one of {', '.join(words)}: it was {_shown(word)}{near(word, words)}.")


def _shown(text: str) -> str:
    """As a message quotes it: a part of it, and nothing that is not printable."""
    short = text if len(text) <= 60 else f"{text[:60]}..."
    return repr(short)
