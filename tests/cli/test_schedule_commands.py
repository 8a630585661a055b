"""`async-task schedule` and the beginning of `async-task clock`: what they print, and how they end."""

import pathlib
import uuid
from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from async_task import Status
from clockwork import row_of
from databases import Database
from said import Run
from timetable import occurrences

HEAD = """
from async_task import AsyncTask, Attempt, Schedule
from outbox import Client, effect
schedule = Schedule()
"""
ENTRIES = """
schedule.every(minutes=5, call=Client.ping)
schedule.cron("5 * * * *", tz="Europe/London", call=Client.fail, args={"message": "canary-7355608"})
schedule.at("02:30", tz="America/New_York", days="mon-fri", call=effect, key="close day", catch_up="all")
"""
Project = Callable[[str], str]


@pytest.fixture
def project(alone: None, database: Database) -> Project:
    """`project(source)`: the name of an application with these entries, in a module in this folder."""

    def project(source: str) -> str:
        name = f"scheduled_{uuid.uuid4().hex}"
        app = f"outbox = AsyncTask({database.sync_url!r}, schedule=schedule)\n"
        pathlib.Path(f"{name}.py").write_text(f"{HEAD}{source}{app}")
        return f"{name}:outbox"

    return project


@pytest.fixture
def run(say: Run, engine: Engine, project: Project) -> Run:
    """`run("schedule", ...)` with the application of ENTRIES."""
    app = project(ENTRIES)
    return lambda *words: say(*words, "--app", app)


def test_list_shows_each_entry_with_its_rule_its_call_and_its_next_time(run: Run) -> None:
    said = run("schedule", "list")
    assert (said.code, said.err) == (0, "3 entries.\n")
    head, *rows = said.out.splitlines()
    assert head.split() == ["KEY", "RULE", "CALL", "NEXT", "STATE"]
    assert [row.split("  ")[0] for row in rows] == ["test.client.ping", "test.client.fail", "close day"]
    assert "at 02:30 on mon-fri America/New_York  test.effect" in rows[2]
    assert all(row.endswith("new") for row in rows)
    assert "canary" not in said.out
    first = run("schedule", "list", "--json").lines[0]
    assert (first["key"], first["rule"], first["jitter"], first["last"]) == (
        "test.client.ping",
        "every 5 minutes",
        0,
        None,
    )
    assert first["next_at"].endswith("+00:00")


def test_next_across_a_change_of_daylight_saving_shows_both_zones(run: Run) -> None:
    said = run("schedule", "next", "close day", "--count", "5", "--after", "2026-10-28T12:00Z")
    assert [line.split() for line in said.out.splitlines()] == [
        ["KEY", "UTC", "LOCAL", "ZONE"],
        ["close", "day", "2026-10-29", "06:30:00", "Thu", "2026-10-29", "02:30:00", "EDT", "-04:00"],
        ["close", "day", "2026-10-30", "06:30:00", "Fri", "2026-10-30", "02:30:00", "EDT", "-04:00"],
        ["close", "day", "2026-11-02", "07:30:00", "Mon", "2026-11-02", "02:30:00", "EST", "-05:00"],
        ["close", "day", "2026-11-03", "07:30:00", "Tue", "2026-11-03", "02:30:00", "EST", "-05:00"],
        ["close", "day", "2026-11-04", "07:30:00", "Wed", "2026-11-04", "02:30:00", "EST", "-05:00"],
    ]
    (found,) = run("schedule", "next", "close day", "--count", "1", "--after", "2026-10-28T12:00Z", "--json").lines
    assert found == {
        "key": "close day", "call": "test.effect",
        "fire_at": "2026-10-29T06:30:00+00:00", "local": "2026-10-29T02:30:00-04:00",
    }  # fmt: skip
    assert len(run("schedule", "next", "--json").lines) == 5


@pytest.mark.slow
def test_run_enqueues_now_and_history_says_by_whom(run: Run, engine: Engine) -> None:
    assert run("schedule", "run", "close day", "--dry-run").err == "test.effect would be enqueued.\n"
    assert occurrences(engine) == []
    said = run("schedule", "run", "close day", "--actor", "anna@host")
    assert row_of(engine, uuid.UUID(said.out.strip())).status is Status.PENDING
    (found,) = run("schedule", "history", "--json").lines
    assert (found["status"], found["reason"]) == ("enqueued", "by hand, anna@host")
    assert found["attempt_id"] == said.out.strip()
    assert run("schedule", "history").out.splitlines()[1].split()[-1] == said.out.strip()[-8:]
    assert " enqueued " in run("schedule", "list").out


def test_pause_and_resume_say_what_they_did(run: Run) -> None:
    said = [
        run("schedule", *words).err
        for words in (
            ("pause", "close day", "--dry-run"),
            ("pause", "close day", "--reason", "stocktaking", "--actor", "anna@host"),
            ("pause", "close day"),
            ("resume", "close day", "--dry-run"),
        )
    ]
    assert said == [
        "The entry close day would be paused.\n",
        "The entry close day is paused.\n",
        "The entry close day was paused before.\n",
        "The entry close day would be resumed.\n",
    ]
    assert "paused by anna@host: stocktaking" in run("schedule", "list").out
    assert run("schedule", "resume", "close day").err == "The entry close day is resumed.\n"
    assert run("schedule", "resume", "close day").err == "The entry close day was not paused.\n"


def test_an_unknown_entry_is_one_sentence_with_the_nearest_key(run: Run) -> None:
    for words in (("run", "close dai"), ("pause", "close dai"), ("next", "close dai"), ("history", "close dai")):
        said = run("schedule", *words)
        words_said = "async-task: the schedule has no entry 'close dai' (did you mean 'close day'?)\n"
        assert (said.code, said.out, said.err) == (78, "", words_said)


@pytest.mark.in_turns
@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ('schedule.cron("0 0 31 2 *", tz="UTC", call=effect)', "schedule entry cron '0 0 31 2 *' of effect: "),
        ('schedule.at("02:30", call=effect)', "a time of day needs its zone"),
        ('schedule.at("02:30", tz="Mars", call=effect)', "no time zone is called 'Mars'"),
        ("schedule.every(minutes=5, call=Client.fulfill)", "the argument 'customer_token' is missing"),
        ("schedule.every(minutes=5, call=effect, key='close day')", "schedule entry 'close day': there are two"),
        ("schedule.every(minutes=5, call=Attempt.options(max_attempts=0).of(effect))", "max_attempts"),
    ],
)
def test_a_schedule_that_cannot_be_loaded_ends_with_78_and_names_the_entry(
    say: Run, project: Project, engine: Engine, entry: str, words: str
) -> None:
    app = project(f"{ENTRIES}{entry}\n")
    for command in (("clock",), ("schedule", "list"), ("worker", "--clock")):
        said = say(*command, "--app", app)
        assert (said.code, said.out, said.err.count("\n")) == (78, "", 1)
        assert said.err.startswith("async-task: schedule entry ")
        assert words in said.err


def test_a_clock_without_a_schedule_ends_with_78(say: Run, engine: Engine, database: Database) -> None:
    for command in (("clock",), ("worker", "--clock")):
        said = say(*command, "--database-url", database.sync_url)
        assert (said.code, said.err.endswith("AsyncTask(..., schedule=schedule)\n")) == (78, True)
    assert say("schedule", "list", "--database-url", database.sync_url).err == "0 entries.\n"


def test_a_clock_whose_database_is_away_at_the_start_ends_with_69(say: Run, alone: None) -> None:
    name = f"away_{uuid.uuid4().hex}"
    source = f"{HEAD}{ENTRIES}outbox = AsyncTask('postgresql+psycopg://me@127.0.0.1:9/shop', schedule=schedule)\n"
    pathlib.Path(f"{name}.py").write_text(source)
    said = say("clock", "--app", f"{name}:outbox")
    assert (said.code, said.out, said.err.count("\n")) == (69, "", 1)
