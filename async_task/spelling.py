"""What somebody may have meant who wrote a name that is not there."""

from collections.abc import Iterable


def near(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'this'?)` for the closest of the known names; empty when none is close."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
