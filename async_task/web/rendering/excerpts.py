"""Long texts as a page shows them: cut, with the number of characters that are left out."""

from collections.abc import Mapping, Sequence
from typing import Any

LONGEST, LONGEST_TRACEBACK = 2_000, 10_000
MOST_OF_TRACEBACKS = 100_000
"""Characters of all tracebacks of a page, which an open tab reads every few seconds."""


def beginning(text: str, longest: int = LONGEST) -> str:
    """The text, or its begin and its length."""
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"


def tracebacks(tries: Sequence[Any]) -> Mapping[int, str]:
    """By the ids of these events, the newest last: of the newest ones, as many as there is room for."""
    found: dict[int, str] = {}
    room = MOST_OF_TRACEBACKS
    for one in reversed(tries):
        if one.detail and room >= LONGEST_TRACEBACK:
            found[one.id] = _ends(one.detail, LONGEST_TRACEBACK)
            room -= len(found[one.id])
    return found


def _ends(text: str, longest: int) -> str:
    """The begin of the text, and more of its end: the last lines of a traceback say what was raised."""
    if len(text) <= longest:
        return text
    first = longest // 5
    return f"{text[:first]}\n[... {len(text) - longest:,} characters ...]\n{text[first - longest :]}"
