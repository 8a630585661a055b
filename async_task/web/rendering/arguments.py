"""Arguments as a page shows them: a short text of each value, and masked where the name looks like a secret."""

import datetime as dt
import re
from typing import Any

from async_task.error_text import HIDDEN
from async_task.web.rendering.excerpts import beginning

MASKED = "[masked]"
SECRET = re.compile(
    r"pass(word|wd|phrase)?|pwd|secret|token|(api|access|private|secret)[-_ ]?key|credential|authorization|cookie"
    r"|iban|card|cvv|ssn|pin$",
    re.IGNORECASE,
)
"""In the name of an argument, or of a field in it."""


def shown(value: Any, name: str, is_revealed: bool = False) -> str:
    """As one line of text."""
    return beginning(_literal(value if is_revealed else masked(value, name)))


def masked(value: Any, name: str) -> Any:
    """The same without what has a name like a secret's, at any depth."""
    if SECRET.search(name):
        return MASKED
    if isinstance(value, dict):
        return {key: masked(one, str(key)) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(one, "") for one in value]
    return value


def kind_of(value: Any) -> str:
    """The name of its type."""
    return type(value).__name__


def _literal(value: Any) -> str:
    if value in (MASKED, HIDDEN):
        return str(value)
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return value.isoformat()
    return repr(value)
