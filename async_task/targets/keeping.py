"""How long ended attempts are kept: `keep=` of a target or an application, and the ages that `prune` takes."""

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from async_task.errors import ConfigurationError, near
from async_task.schema.states import Status
from async_task.targets.retry import Duration, duration

Age: TypeAlias = Duration | str
"""A timedelta, a number of seconds, or a text: "90s", "15min", "2h", "30d", "2w", "1y", "1d12h"."""
Keep: TypeAlias = Age | Mapping[str, Age]
"""How long; or for each status that is to be pruned, how long."""
Ages: TypeAlias = tuple[tuple[Status, dt.timedelta], ...]
"""By status: how long an attempt is kept after it has ended."""

ENDED = tuple(one for one in Status if one.is_terminal)
PRUNED = (Status.SUCCEEDED, Status.EXPIRED, Status.CANCELED)
"""What is pruned unless statuses are named. Not what failed: a person may still have to see and retry it."""
UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_TEXT = re.compile(r"(?:\d{1,12}(?:\.\d{1,6})?(?:min|[smhdwy]))+", re.ASCII)
_PART = re.compile(r"([\d.]+)(\D+)", re.ASCII)


def age(given: Age, *, name: str) -> dt.timedelta:
    """`given` as a timedelta. Raises ConfigurationError, naming `name`."""
    if not isinstance(given, str):
        return duration(given, name=name)
    if not _TEXT.fullmatch(given):
        raise ConfigurationError(
            f'{name} is a length of time like "90s", "15min", "12h", "30d" or "1y", and was {given[:40]!r}'
        )
    return duration(sum(float(number) * UNITS[unit] for number, unit in _PART.findall(given)), name=name)


def ages_of(keep: Keep) -> Ages:
    """The ages of `keep=`: one for the statuses PRUNED, or those of a mapping. Raises ConfigurationError."""
    if not isinstance(keep, Mapping):
        return tuple((one, age(keep, name="keep")) for one in PRUNED)
    if not keep:
        raise ConfigurationError('keep names at least one status: keep={"succeeded": "30d"}')
    return tuple((_ended(one, "keep"), age(value, name=f"keep of {one!s}")) for one, value in keep.items())


def statuses_of(given: str | Iterable[str] | None) -> tuple[Status, ...]:
    """The statuses to prune, each once: PRUNED for None. Raises ConfigurationError."""
    if given is None:
        return PRUNED
    if not isinstance(given, Iterable):
        raise ConfigurationError(f"statuses takes a list of statuses, not {type(given).__name__}")
    names: Any = (given,) if isinstance(given, str) else tuple(given)
    if not names:
        raise ConfigurationError(f"statuses names at least one of {', '.join(ENDED)}")
    return tuple(dict.fromkeys(_ended(one, "statuses") for one in names))


def _ended(given: object, name: str) -> Status:
    if given in ENDED:
        return Status(str(given))
    said = f"{given!r}{near(given, ENDED)}" if isinstance(given, str) else repr(given)
    raise ConfigurationError(f"{name} takes what has ended ({', '.join(ENDED)}): it was {said}")
