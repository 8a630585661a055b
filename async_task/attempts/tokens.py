"""Idempotence tokens as rows hold them: as they were given, or with what else makes them unique.

A given token is printable. What follows SEPARATOR, which is not, was added here:

    report                                given
    report|000000000003                   the third one of `until_done`
    report|window of 3600 s from 2026...  of `within`
    |9f86d081...                          made of the arguments, where no token was given; then the same
"""

import datetime as dt
from typing import Any

from sqlalchemy import ColumnElement, func, or_

from async_task.arguments.digest import digest_of
from async_task.database.clock import EPOCH
from async_task.errors import InvalidArguments

SEPARATOR = "\x1f"
DIGITS = 12
LONGEST_GIVEN = 180
"""Characters of a token to which something may be added."""


def given_token(stored: str | None) -> str | None:
    """The token as its caller gave it; None if none was given."""
    return None if stored is None else stored.partition(SEPARATOR)[0] or None


def is_numbered(column: Any, token: str) -> tuple[ColumnElement[bool], ...]:
    """Whether a row has one of the numbered tokens made of `token`."""
    # A stretch of the index. Collations of PostgreSQL sort other tokens in between, but digits always in their order,
    # and letters, with which windows begin, behind them.
    first, last = numbered_token(token, 0), numbered_token(token, 10**DIGITS - 1)
    return column >= first, column <= last, func.substr(column, 1, len(token) + 1) == token + SEPARATOR


def numbered_token(token: str, number: int) -> str:
    """The token of the `number`-th one of `until_done`."""
    return f"{token}{SEPARATOR}{number:0{DIGITS}}"


def number_of(numbered: str) -> int:
    """Which one of `until_done` has this token."""
    return int(numbered[-DIGITS:])


def is_given_token(column: Any, given: str) -> ColumnElement[bool]:
    """Whether a row was written with this token."""
    begin = given + SEPARATOR
    return or_(column == given, func.substr(column, 1, len(begin)) == begin)  # LIKE ignores case on SQLite


def argument_token(stored_arguments: str) -> str:
    """The token of a call to which none was given: equal arguments have the same one."""
    return SEPARATOR + digest_of(stored_arguments)


def window_token(token: str, length: dt.timedelta, now: dt.datetime) -> str:
    """The token of the window in which `now` is: windows of this length follow one another from 1970 in UTC."""
    begin = EPOCH + (now - EPOCH) // length * length
    return f"{token}{SEPARATOR}window of {length.total_seconds():.6f} s from {begin.isoformat()}"


def check_length(token: str) -> None:
    """Raises InvalidArguments for a token that is too long to get an addition."""
    if len(token) > LONGEST_GIVEN:
        raise InvalidArguments(
            f"idempotence_token: with within or until_done it has at most {LONGEST_GIVEN} characters, not {len(token)}"
        )
