"""Instants and lengths of time as a page shows them: relative, in one or two units, with the exact instant beside."""

import datetime as dt

UNITS = ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s"))


def span(length: dt.timedelta | float) -> str:
    """A length of time: `2 h 5 min`, `22 h`, in one unit from ten of it on; below a second in milliseconds."""
    seconds = length.total_seconds() if isinstance(length, dt.timedelta) else length
    if 0 < seconds < 1:
        return f"{max(1, round(seconds * 1000))} ms"
    for unit, name, part, part_name in UNITS:
        if seconds >= unit:
            rest = int(seconds % unit // part)
            return f"{int(seconds // unit):,} {name}" + (f" {rest} {part_name}" if rest and seconds < 10 * unit else "")
    return f"{int(max(0, seconds))} s"


def since(when: dt.datetime, now: dt.datetime) -> str:
    """`3 min ago`, `in 2 h`, `now`; both instants are of the database's clock."""
    seconds = (now - when).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"{span(seconds)} ago" if seconds > 0 else f"in {span(-seconds)}"


def exact(when: dt.datetime) -> str:
    """`2026-10-25 02:30:00.123 UTC`."""
    utc = when.astimezone(dt.UTC)
    return f"{utc:%Y-%m-%d %H:%M:%S}.{utc.microsecond // 1000:03d} UTC"
