"""Processor time and memory of processes and their descendants, from /proc of Linux."""

import contextlib
import os
import pathlib
from collections.abc import Iterable

TICKS = os.sysconf("SC_CLK_TCK")
_PROC = pathlib.Path("/proc")
Times = dict[int, float]
"""Seconds on a processor so far, by process, with those of children that it has waited for."""


def is_told() -> bool:
    """Whether this machine has these figures."""
    return (_PROC / "self" / "schedstat").exists()


def times(roots: Iterable[int]) -> Times:
    """Those of these processes and their living descendants; {} if the machine has no figures."""
    return {pid: _seconds(pid) for pid in tree(roots)} if is_told() else {}


def spent(before: Times, after: Times) -> float:
    """Seconds between two readings. The time of a process that ended in between is in that of its parent."""
    return max(0.0, sum(after.values()) - sum(before.values()))


def tree(roots: Iterable[int]) -> list[int]:
    """These processes and their living descendants."""
    below: dict[int, list[int]] = {}
    for folder in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            below.setdefault(parent, []).append(int(folder.name))
    found, open_ends = [], list(roots)
    while open_ends:
        found.append(pid := open_ends.pop())
        open_ends += below.get(pid, [])
    return found


def resident(roots: Iterable[int]) -> int:
    """Bytes of memory of these processes and their descendants. Shared pages count once for each process."""
    found = 0
    for pid in tree(roots):
        with contextlib.suppress(OSError, IndexError):
            found += int((_PROC / str(pid) / "statm").read_text().split()[1]) * 4096
    return found


def _seconds(pid: int) -> float:
    """To the nanosecond for a backend of PostgreSQL, which has one thread; to the clock tick for others."""
    folder = _PROC / str(pid)
    try:
        name, _, rest = (folder / "stat").read_text().rpartition(")")
        own, system, buried, buried_system = map(int, rest.split()[11:15])
        if name.endswith("(postgres"):
            seconds = int((folder / "schedstat").read_text().split()[0]) / 1e9
        else:
            seconds = (own + system) / TICKS
    except (OSError, IndexError, ValueError):  # it has ended
        return 0.0
    return seconds + (buried + buried_system) / TICKS
