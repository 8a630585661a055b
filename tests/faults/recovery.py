"""How long calls waited after a fault until somebody else made them again."""

import collections
import pathlib
import statistics
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from faults.injection import Injected
from faults.invariants import marks_in


class Recovery(NamedTuple):
    """Of all faults of one name: how often it was injected, how many calls it interrupted, and the median and longest
    time in seconds until these were called again. For a fault of the database: until the first call of any after it."""

    name: str
    times: int
    calls: int
    median: float | None
    longest: float | None


def recoveries(injected: Iterable[Injected], marks: pathlib.Path) -> Iterator[Recovery]:
    noted = marks_in(marks)
    starts = [one for one in noted if one["what"] == "start"]
    waits: dict[str, list[list[float]]] = collections.defaultdict(list)
    for fault in injected:
        waits[fault.name].append([*_until_called_again(fault, noted, starts), *_until_first_call(fault, starts)])
    for name, each in waits.items():
        all_ = sorted(wait for one in each for wait in one)
        median, longest = (statistics.median(all_), all_[-1]) if all_ else (None, None)
        yield Recovery(name, len(each), len(all_), median, longest)


def _until_called_again(fault: Injected, noted: list[dict[str, Any]], starts: list[dict[str, Any]]) -> Iterator[float]:
    last = {one["id"]: one for one in noted if one["at"] <= fault.at}
    interrupted = [one for one in last.values() if one["what"] == "start" and one["pid"] in fault.pids]
    for call in interrupted:
        later = (one["at"] for one in starts if one["id"] == call["id"] and one["at"] > fault.at)
        yield from (at - fault.at for at in list(later)[:1])


def _until_first_call(fault: Injected, starts: list[dict[str, Any]]) -> Iterator[float]:
    if fault.until is not None:
        yield from [one["at"] - fault.until for one in starts if one["at"] > fault.until][:1]
