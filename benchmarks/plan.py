"""How much is measured: everything, what fits into three minutes, or just enough to test the benchmark itself."""

import dataclasses
from collections.abc import Mapping
from typing import Self


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes are numbers of jobs or transactions, times are seconds.

    `within`: a measure that has not begun by then is left out, and the table says so. `longest`: a drain that has not
    ended by then is stopped, and its rate until then counts. `settled`: how long a worker has run before latencies are
    measured. `peers_in`: the measures with peers; None: all.
    `fastest_in`: those with only the fastest peers. `each`: the sizes that differ when each database is measured.
    """

    name: str
    rounds: int
    within: float | None
    transactions: int
    bulk: int
    drain: int
    warm: int
    single: int
    longest: float
    paced: int
    settled: float
    idle: float
    beside: int
    others: int
    snapshot: float
    producers: int
    produce: float
    recovery: float
    memory: float
    peers_in: frozenset[str] | None = None
    fastest_in: frozenset[str] = frozenset()
    each: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def for_each_place(self) -> Self:
        return dataclasses.replace(self, **self.each)


FULL = Plan(
    name="full", rounds=3, within=None, transactions=2000, bulk=10_000, drain=20_000, warm=2_000, single=3_000,
    longest=15, paced=200, settled=1, idle=60, beside=60_000, others=1_000_000, snapshot=600, producers=32, produce=4,
    recovery=150, memory=300, fastest_in=frozenset({"latency", "two", "future", "finished", "producers"}),
)  # fmt: skip
QUICK = Plan(
    name="quick", rounds=1, within=155, transactions=300, bulk=10_000, drain=10_000, warm=300, single=1_500,
    longest=2.5, paced=30, settled=1, idle=10, beside=3_000, others=100_000, snapshot=12, producers=32, produce=1,
    recovery=15, memory=10, peers_in=frozenset({"drain", "enqueue", "bulk", "latency100", "idle"}),
    each={"drain": 3_000, "single": 300, "longest": 1, "transactions": 100, "paced": 10},
)  # fmt: skip
TINY = Plan(
    name="tiny", rounds=1, within=None, transactions=5, bulk=50, drain=100, warm=10, single=50, longest=10, paced=5,
    settled=0, idle=0.2, beside=100, others=500, snapshot=0.5, producers=2, produce=0.1, recovery=10, memory=0.5,
)  # fmt: skip
PLANS = {plan.name: plan for plan in (FULL, QUICK, TINY)}
