"""Clocks as processes: any number of them, killed and stopped, beside workers."""

import collections
import itertools
import json
import os
import pathlib
import signal
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, select

from async_task import Attempt
from async_task.schema.tables import ScheduleEntry
from elsewhere import Program, await_
from timetable import NUM_ENTRIES, forget_days, num_attempts, occurrences
from workers import counted

pytestmark = pytest.mark.long

Start = Callable[..., Program]
DAYS = 25


@pytest.fixture
def start(process: Start) -> Start:
    """`async-task clock`, or another command, with the application of `timetable`, in a process of its own."""
    return lambda command="clock", *words: process(command, "--app", "timetable:outbox", *words)


def begin(engine: Engine, start: Start) -> None:
    """A clock has seen all entries, and was killed; then days have passed."""
    clock = start()
    await_(lambda: num_entries(engine) == NUM_ENTRIES, "the entries are known")
    clock.kill()
    clock.wait()
    forget_days(engine, DAYS)


def num_entries(engine: Engine) -> int:
    with engine.connect() as connection:
        return len(connection.scalars(select(ScheduleEntry.schedule_key)).all())


def missing(engine: Engine) -> dict[str, Any]:
    """What does not hold: times that were left out or that came twice, attempts of no occurrence or of two."""
    rows = occurrences(engine)
    times = collections.defaultdict(list)
    for row in rows:
        times[row.schedule_key].append(row.fire_at)
    gaps = {key: found for key, found in times.items() if {(b - a).days for a, b in itertools.pairwise(found)} != {1}}
    with engine.connect() as connection:
        written = sorted(connection.scalars(select(Attempt.id)).all())
    return {
        "gaps": gaps,
        "too few": {key: len(found) for key, found in times.items() if len(found) < DAYS},
        "attempts": written != sorted(row.attempt_id for row in rows),
        "entries": NUM_ENTRIES - len(times),
    }  # fmt: skip


def test_of_three_clocks_at_once_no_occurrence_is_twice_and_none_is_lost_over_a_kill_9(
    start: Start, engine: Engine
) -> None:
    begin(engine, start)
    clocks = [start() for _ in range(3)]
    await_(lambda: num_attempts(engine), "one of them has begun to write")
    clocks[0].kill()
    clocks[0].wait()
    for clock in clocks[1:]:
        os.kill(clock.pid, signal.SIGSTOP)  # and is frozen for a moment
        os.kill(clock.pid, signal.SIGCONT)
    await_(lambda: num_attempts(engine) >= DAYS * NUM_ENTRIES, "all is enqueued")
    for clock in clocks[1:]:
        clock.send_signal(signal.SIGTERM)
    assert [clock.wait() for clock in clocks[1:]] == [143, 143]
    assert missing(engine) == {"gaps": {}, "too few": {}, "attempts": False, "entries": 0}


def test_all_clocks_killed_in_the_middle_lose_nothing_and_enqueue_nothing_twice(start: Start, engine: Engine) -> None:
    begin(engine, start)
    for number in (1, 1 + DAYS, 1 + 4 * DAYS):
        clocks = [start() for _ in range(2)]
        await_(lambda number=number: num_attempts(engine) >= number, "they have begun to write")
        for clock in clocks:
            clock.kill()
            clock.wait()
    start()
    await_(lambda: num_attempts(engine) >= DAYS * NUM_ENTRIES, "the next one writes what is left")
    assert missing(engine) == {"gaps": {}, "too few": {}, "attempts": False, "entries": 0}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_clock_ends_at_a_signal_and_says_what_it_has_done(
    start: Start, engine: Engine, number: signal.Signals, code: int
) -> None:
    begin(engine, start)
    clock = start("clock", "--json", "--log-format", "json")
    await_(lambda: num_attempts(engine) >= DAYS * NUM_ENTRIES, "all is enqueued")
    clock.send_signal(number)
    out, err = clock.communicate()
    assert clock.returncode == code
    report = json.loads(out)
    assert (report["skipped"], report["missed"], report["seconds"] > 0) == (0, 0, True)
    assert report["enqueued"] == len(occurrences(engine))
    lines = [json.loads(line) for line in err.splitlines()]
    assert f": clock {lines[0]['worker']} on " in lines[0]["message"]
    assert lines[0]["message"].endswith(f", {NUM_ENTRIES} entries")
    assert "stopping the clock" in [one["message"] for one in lines]
    assert f": {report['enqueued']:,} enqueued" in lines[-1]["message"]


def test_a_clock_that_is_stopped_by_its_machine_is_dead_in_the_list_of_workers(
    start: Start, engine: Engine, run: Any
) -> None:
    clock = start()
    await_(lambda: num_entries(engine) == NUM_ENTRIES, "it ticks")
    said = run("workers")
    (line,) = said.out.splitlines()[1:]
    assert (f":{clock.pid}:" in line, " ticking" in line) == (True, True)
    clock.kill()
    clock.wait()
    (found,) = run("workers", "--json").lines
    assert (found["kind"], found["state"]) == ("clock", "dead")


def test_clock_and_worker_are_separate_processes_from_one_code_base_with_different_commands(
    start: Start, engine: Engine, tmp_path: pathlib.Path
) -> None:
    begin(engine, start)
    start("clock")
    start("worker", "--poll", "50ms")
    await_(lambda: counted(engine).get("succeeded", 0) >= DAYS * NUM_ENTRIES, "what one enqueues, the other performs")


@pytest.mark.only_on("postgresql")
def test_several_workers_that_carry_a_clock_are_harmless(start: Start, engine: Engine) -> None:
    begin(engine, start)
    working = start("worker", "--clock", "--processes", "2", "--poll", "50ms")
    await_(lambda: counted(engine).get("succeeded", 0) >= DAYS * NUM_ENTRIES, "all is enqueued and performed")
    working.send_signal(signal.SIGTERM)
    assert working.wait() == 143
    assert missing(engine) == {"gaps": {}, "too few": {}, "attempts": False, "entries": 0}
