"""Instants and lengths of time, as people write them after an option."""

import datetime as dt
import re
from typing import Any

import click

UNITS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
LONGEST = dt.timedelta(days=36_500)
_LENGTH = re.compile(r"(?:\d{1,12}(?:\.\d{1,6})?(?:ms|min|[smhdwy]))+", re.ASCII)
_PART = re.compile(r"([\d.]+)(\D+)", re.ASCII)


class Moment(click.ParamType):  # type: ignore[type-arg]
    """An instant in ISO 8601, with its zone: `2026-10-25T02:30Z`. Refused without a zone."""

    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dt.datetime:
        try:
            return instant(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Length(click.ParamType):  # type: ignore[type-arg]
    """A length of time: `90s`, `15min`, `2h`, `1h30m`, `3d`, `2w`, `1y`. `least` and `most`: the shortest and the
    longest that the option takes, written likewise."""

    name = "duration"

    def __init__(self, least: str | None = None, most: str | None = None) -> None:
        self._least = least
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dt.timedelta:
        if (found := length(str(value))) is None:
            self.fail(
                f"{value!r} is not a length of time up to 100 years: write 5ms, 90s, 15min, 1h30m, 3d, 2w or 1y",
                param,
                ctx,
            )
        if self._least is not None and found < _known(self._least):
            self.fail(f"it is at least {self._least}, and was {value}", param, ctx)
        if self._most is not None and found > _known(self._most):
            self.fail(f"it is at most {self._most}, and was {value}", param, ctx)
        return found


class MomentOrLength(click.ParamType):  # type: ignore[type-arg]
    """Either one; a length counts back from the database's clock."""

    name = "instant|duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dt.datetime | dt.timedelta:
        if (found := length(str(value))) is not None:
            return found
        try:
            return Moment().convert(value, param, ctx)
        except click.BadParameter as error:
            if "is not an instant" not in error.message:
                raise
            self.fail(f"{error.message}, or like 2h", param, ctx)


def instant(text: str) -> dt.datetime:
    """The instant that `text` names, in UTC. Raises ValueError, with words for people."""
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an instant: write it like 2026-10-25T02:30Z") from None
    if moment.utcoffset() is None:
        raise ValueError(f"{text!r} names no instant without a zone: end it with Z, or like +02:00")
    try:
        return moment.astimezone(dt.UTC)
    except OverflowError:
        raise ValueError(f"{text!r} is outside the years 1 to 9999 in UTC") from None


def _known(text: str) -> dt.timedelta:
    found = length(text)
    assert found is not None
    return found


def length(text: str) -> dt.timedelta | None:
    """The length of time that `text` names; None when it names none, or more than a hundred years."""
    if not _LENGTH.fullmatch(text):
        return None
    seconds = sum(float(number) * UNITS[unit] for number, unit in _PART.findall(text))
    return dt.timedelta(seconds=seconds) if seconds <= LONGEST.total_seconds() else None
