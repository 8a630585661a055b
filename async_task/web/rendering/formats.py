"""A view as JSON and as CSV."""

import csv
import dataclasses
import datetime as dt
import enum
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

FORMULA = ("=", "+", "-", "@", "\N{FULLWIDTH EQUALS SIGN}", "\N{FULLWIDTH PLUS SIGN}", "\N{FULLWIDTH COMMERCIAL AT}")
"""What a spreadsheet takes for the begin of a formula."""


def as_json(data: Any) -> str:
    """Instants in ISO 8601 with their zone, lengths of time in seconds, ids and states as texts."""
    return json.dumps(_plain(data), ensure_ascii=False, indent=1, allow_nan=False)


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A text that would be a formula in a spreadsheet gets an apostrophe before it."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return written.getvalue()


def _plain(value: Any) -> Any:  # noqa: PLR0911  (one line for each kind)
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, dt.timedelta):
        return round(value.total_seconds(), 6)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one) for one in value]
    return str(value)


def _cell(value: Any) -> Any:
    plain = _plain(value)
    if plain is None:
        return ""
    if isinstance(plain, (int, float)):
        return plain
    text = plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
    return f"'{text}" if text[:1].isspace() or text.startswith(FORMULA) else text
