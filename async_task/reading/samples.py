"""How many rows there are in stretches of the primary key, and of which kinds, estimated from the first rows of parts.

An index does not tell how many entries it has between two ids. But ids are UUIDv7, so that the first rows of a part
tell how many come in a time. What was not read of a stretch counts at the rate of all that was read of it. Where a
burst begins, its end is looked for.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

SAMPLED = 200
"""How many rows are read from the beginning of a part."""
CUTS = (0.0, 0.29, 0.62)
"""Where the parts of a stretch begin: not at regular places, which what is enqueued at set times could meet."""
BURST = 8
"""From how many times the rate of its stretch on the last half of a part's rows is a burst."""
MOST_BURSTS = 8
"""Of how many bursts the end is looked for."""
LINKS = 12
"""In how many parts what is behind the beginning of a burst is read, each longer than the one before."""


class Part(NamedTuple):
    """Ids from a time on to before another one, in 4096ths of a millisecond."""

    begin: int
    end: int


class Probe(NamedTuple):
    """The first rows of a part. `kinds`: how many of them are of each kind. `middle`, `last`: the times of the last one
    of their first half, and of the last one."""

    part: Part
    kinds: Sequence[int]
    middle: int
    last: int

    @property
    def number(self) -> int:
        return sum(self.kinds)

    @property
    def is_open(self) -> bool:
        """Whether there may be more rows."""
        return self.number >= SAMPLED

    @property
    def rest(self) -> int:
        """The time of which nothing was read."""
        return max(0, self.part.end - self.last) if self.is_open else 0

    @property
    def read(self) -> int:
        return max(1, self.part.end - self.part.begin - self.rest)

    @property
    def last_rate(self) -> float:
        """Rows in a time, in the last half of those that were read."""
        return (self.number - self.number // 2) / max(1, self.last - self.middle)


@dataclass(frozen=True, slots=True)
class Estimate:
    """How many rows of a stretch are of each kind; exact, unless it `is_estimate`."""

    kinds: Sequence[float]
    is_estimate: bool = False

    def __add__(self, other: Self) -> "Estimate":
        kinds = [one + another for one, another in zip(self.kinds, other.kinds, strict=True)]
        return Estimate(kinds, self.is_estimate or other.is_estimate)


Read = Callable[[Sequence[Part]], Sequence[Probe]]
"""Reads up to SAMPLED rows of each part, in their order."""


def estimates_of(stretches: Sequence[Part], read: Read) -> list[Estimate]:
    """An estimate for each stretch, from a bounded number of rows."""
    probes = iter(read([part for one in stretches for part in _cut(one)]))
    by_stretch = [[next(probes) for _ in CUTS] for _ in stretches]
    bursts = sorted(_bursts(by_stretch), key=lambda one: -one.last_rate * one.rest)[:MOST_BURSTS]
    links = iter(read([part for one in bursts for part in _chain(one)]))
    chains = {one.part: [next(links) for _ in range(LINKS)] for one in bursts}
    return [_estimate(one, chains) for one in by_stretch]


def _cut(stretch: Part) -> list[Part]:
    begin, end = stretch
    places = [*(begin + int(cut * (end - begin)) for cut in CUTS), end]
    return [Part(*pair) for pair in itertools.pairwise(places)]


def _bursts(by_stretch: Iterable[Sequence[Probe]]) -> Iterable[Probe]:
    for probes in by_stretch:
        rate = _rate(probes)
        yield from (one for one in probes if one.rest and one.last_rate > BURST * rate)


def _rate(probes: Sequence[Probe]) -> float:
    return sum(one.number for one in probes) / max(1, sum(one.read for one in probes))


def _chain(burst: Probe) -> list[Part]:
    """What is behind these rows, in parts that grow by the same factor."""
    shortest = min(burst.rest, max(1, burst.last - burst.middle))
    factor = (burst.rest / shortest) ** (1 / (LINKS - 1))
    ends = [burst.last + int(shortest * factor**number) for number in range(LINKS - 1)]
    places = [burst.last, *ends, burst.part.end]
    return [Part(begin + 1, end + 1) for begin, end in itertools.pairwise(places)]


def _estimate(probes: Sequence[Probe], chains: Mapping[Part, Sequence[Probe]]) -> Estimate:
    alone = [one for one in probes if one.part not in chains]
    number, rest = sum(one.number for one in alone), sum(one.rest for one in alone)
    each = 1 + _rate(alone) * rest / max(1, number)
    weighed = [(one.kinds, 1 if one.part in chains else each) for one in probes]
    weighed += [(link.kinds, 1 + link.rest / link.read) for one in probes for link in chains.get(one.part, ())]
    kinds = [sum(parts) for parts in zip(*([weight * one for one in some] for some, weight in weighed), strict=True)]
    return Estimate(kinds, any(weight > 1 for some, weight in weighed if sum(some)))
