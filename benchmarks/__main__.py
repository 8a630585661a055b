"""`make bench`, also with `QUICK=1`, `ONLY=drain,latency`, `PEERS=0` or `PEERS=pgqueuer,chancy`."""

import argparse
import dataclasses
import datetime as dt
import fnmatch
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

from benchmarks import report
from benchmarks.child import Broken
from benchmarks.measure import Measure, Result, run
from benchmarks.measures import (
    batch,
    beside,
    bulk,
    drain,
    each,
    enqueue,
    idle,
    latency,
    link,
    producers,
    prune,
    recovery,
    restart,
    sustained,
    targets,
)
from benchmarks.plan import PLANS, Plan
from benchmarks.server import private_server
from benchmarks.stage import Stage
from benchmarks.system import BARE, OURS, PEERS, Cannot

# The most important measures come first: a quick run leaves out those for which it has no time.
MEASURES: tuple[Measure, ...] = (
    drain.MEASURE, drain.SINGLE, drain.WRITES, batch.MEASURE, enqueue.MEASURE, bulk.MEASURE, latency.MEASURE,
    latency.HUNDRED, targets.MEASURE, drain.TWO, idle.MEASURE, recovery.MEASURE, recovery.SUPERVISED, restart.MEASURE,
    *each.FAMILY, link.MEASURE, beside.FUTURE, beside.FINISHED, prune.MEASURE, producers.MEASURE,
    sustained.SNAPSHOT, sustained.MEMORY,
)  # fmt: skip
HOME = pathlib.Path(__file__).parent.parent
PAGE = HOME / "docs" / "benchmarks.md"
RESULTS = HOME / "benchmarks" / "results"


def main(words: list[str]) -> int:
    said = _parser().parse_args(words)
    plan, chosen, names = PLANS[said.plan], _chosen(said.only), [OURS, BARE, *_peers(said.peers)]
    plan = dataclasses.replace(plan, within=plan.within if said.within is None else said.within)
    begun, started = dt.datetime.now(dt.UTC), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="async-task-bench-") as folder, private_server() as server:
        stage = Stage(server, pathlib.Path(folder), plan, names)
        try:
            systems, missing = _introduced(stage)
            found = _measured(stage, plan, chosen, started)
        finally:
            stage.close()
        places = {name: place.settings() for name, place in stage.places.items()}
        told = report.assembled(
            plan.name, begun, time.monotonic() - started, server.settings(), systems, missing, places, found
        )  # fmt: skip
    report.write(told, said.results / f"{plan.name}.json")
    print("\n" + report.markdown(told))
    if said.page:
        report.publish(told, said.page)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what is promised about speed.")
    parser.add_argument("--plan", choices=PLANS, default="full")
    parser.add_argument("--only", default="", help=f"of: {', '.join(one.name for one in MEASURES)}")
    parser.add_argument("--peers", default="", help=f"0, or of: {', '.join(PEERS)}")
    parser.add_argument("--within", type=float, help="seconds after which no further measure begins")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="the folder for the JSON")
    parser.add_argument("--page", type=pathlib.Path, default=None, help="the page whose tables to replace")
    return parser


def _chosen(only: str) -> list[Measure]:
    names = [one.strip() for one in only.split(",") if one.strip()]
    known = {one.name: one for one in MEASURES}
    if unknown := [name for name in names if not fnmatch.filter(known, name)]:
        raise SystemExit(f"ONLY: there is no measure {', '.join(unknown)}; there are {', '.join(known)}")
    return [one for one in MEASURES if not names or any(fnmatch.fnmatch(one.name, name) for name in names)]


def _peers(asked: str) -> list[str]:
    names = [one.strip() for one in asked.split(",") if one.strip()]
    if names in (["0"], ["none"]):
        return []
    found = [peer for peer in PEERS if not names or names == ["1"] or any(peer.startswith(one) for one in names)]
    if not found:
        raise SystemExit(f"PEERS: there is none named {asked}; there are {', '.join(PEERS)}")
    return found


def _introduced(stage: Stage) -> tuple[dict[str, Any], dict[str, str]]:
    """The version and settings of each system, and why a system is missing on this machine."""
    systems, missing = {}, {}
    for name in list(stage.names):
        try:
            systems[name] = {"version": stage.ask(name, "version"), "settings": stage.ask(name, "settings")}
            _tell(f"{name} {systems[name]['version']}")
        except (Cannot, Broken) as error:
            stage.names.remove(name)
            missing[name] = str(error)
            _tell(f"{name} is left out: {error}")
    return systems, missing


def _measured(
    stage: Stage, plan: Plan, chosen: list[Measure], started: float
) -> list[tuple[Measure, list[Result]]]:  # fmt: skip
    until = None if plan.within is None else started + plan.within
    return [(one, run(stage, one, until, _tell)) for one in chosen]


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # in the processes of the systems
    sys.exit(main(sys.argv[1:]))
