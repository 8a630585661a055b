"""An attempt found by its id, or by a part of the id that people copy."""

import re
import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import String, Table, cast, func, select
from sqlalchemy.orm import Session

from async_task.errors import UnknownAttempt

SHORTEST = 4
"""How many hexadecimal digits a part of an id has at least."""
NEWEST = 50_000
"""Among how many of the newest attempts the end of an id is searched: no index finds ids by their end."""
DIGITS = 32
SHORT = 8
"""How many digits a short id has: two of 50,000 attempts share them once in three tables."""
_PART = re.compile(r"[0-9a-f]+", re.IGNORECASE)


def id_meant(session: Session, table: Table, given: uuid.UUID | str) -> uuid.UUID:
    """The id that is given as such, as text, or by its first or last digits; a whole id need not be of any row. Raises
    UnknownAttempt where a part fits no attempt, or several, or is not a part of an id."""
    if isinstance(given, uuid.UUID):
        return given
    digits = str(given).strip().replace("-", "").lower()
    if not _PART.fullmatch(digits) or not SHORTEST <= len(digits) <= DIGITS:
        raise UnknownAttempt(
            f"{given!r} is not a valid id: give a UUID, or at least {SHORTEST} of its first or last hexadecimal digits"
        )
    if len(digits) == DIGITS:
        return uuid.UUID(digits)
    found = sorted({*_by_begin(session, table, digits), *_by_end(session, table, digits)})
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownAttempt(f"several attempts fit {given!r}, {found[0]} and {found[1]} for example: give more digits")
    raise UnknownAttempt(
        f"no attempt's id begins with {given!r}, and none of the newest {NEWEST:,} ends with it: give the whole id"
    )


def _by_begin(session: Session, table: Table, digits: str) -> Sequence[uuid.UUID]:
    first, last = (uuid.UUID(digits.ljust(DIGITS, fill)) for fill in "0f")
    key = table.c.id
    return session.scalars(select(key).where(key >= first, key <= last).order_by(key).limit(2)).all()


def _by_end(session: Session, table: Table, digits: str) -> Sequence[uuid.UUID]:
    newest = select(table.c.id).order_by(table.c.id.desc()).limit(NEWEST).subquery()
    text: Any = func.replace(cast(newest.c.id, String(36)), "-", "")
    found: Any = select(newest.c.id).where(text.endswith(digits)).limit(2)
    return session.scalars(found).all()


def short_ids(session: Session, table: Table, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, str]:
    """For each id its last SHORT digits, where `id_meant` finds it by these; else the whole id."""
    newest = select(table.c.id).order_by(table.c.id.desc()).limit(NEWEST).subquery()
    text: Any = func.replace(cast(newest.c.id, String(36)), "-", "")
    end: Any = func.substr(text, DIGITS - SHORT + 1, SHORT)
    wanted = {one.hex[-SHORT:] for one in ids}
    asked: Any = select(end, newest.c.id).where(end.in_(wanted))
    found: dict[str, list[uuid.UUID]] = {}
    rows: Any = session.execute(asked)
    for digits, one in rows:
        found.setdefault(digits.lower(), []).append(one)
    return {one: one.hex[-SHORT:] if found.get(one.hex[-SHORT:]) == [one] else str(one) for one in ids}
