"""Pauses: queues and targets of which nothing is claimed for now."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from async_task import AsyncTask, Attempt, ConfigurationError, UnknownTarget
from async_task.database.engines import Source
from async_task.queue.claim import ClaimRequest
from async_task.queue.limits import PAUSE, claim_limited
from async_task.schema.audit import acting
from async_task.targets.policies import Limit
from clockwork import row_of
from outbox import Client, effect
from said import Run

Write = Callable[..., Attempt]
TABLE: Any = Attempt.__table__


@pytest.fixture
def outbox_app(engine: Engine) -> Iterator[AsyncTask]:
    made = AsyncTask(engine, lease=1.0)
    yield made
    made.close()


@pytest.mark.slow
def test_nothing_is_started_from_a_paused_queue_until_it_is_resumed(outbox_app: AsyncTask, write: Write) -> None:
    write(Client, "ping", queue="mail")
    write(Client, "ping")
    with acting("anna@shop"):
        assert outbox_app.pause("mail", reason="their server is down")
    assert not outbox_app.pause("mail")
    (paused,) = outbox_app.paused()
    assert (paused.name, paused.paused_by, paused.reason) == ("mail", "anna@shop", "their server is down")
    report = outbox_app.run_batch()
    assert (report.claimed, report.paused) == (1, 1)
    assert outbox_app.run_batch(queues=["mail"]).claimed == 0
    assert outbox_app.resume("mail")
    assert not outbox_app.resume("mail")
    assert outbox_app.paused() == []
    report = outbox_app.run_batch()
    assert (report.claimed, report.paused) == (1, 0)


@pytest.mark.slow
def test_calls_of_a_paused_target_wait_uncharged_in_its_own_queue_and_others_are_performed(
    outbox_app: AsyncTask, engine: Engine, write: Write
) -> None:
    ours, others = [write(effect).id for _ in range(3)], [write(Client, "ping").id for _ in range(3)]
    assert outbox_app.pause(target=effect)
    report = outbox_app.run_batch(concurrency=2)
    assert (report.claimed, report.succeeded) == (3, 3)
    rows = [row_of(engine, one) for one in ours]
    assert {(row.queue, row.num_attempts, row.claim_id) for row in rows} == {("test.effect", 0, None)}
    assert outbox_app.run_batch().claimed == 0
    assert outbox_app.resume(target="test.effect")
    assert outbox_app.run_batch().succeeded == 3
    assert {row_of(engine, one).queue for one in others} == {"default"}


def test_a_paused_queue_with_a_limit_keeps_its_limit(outbox_app: AsyncTask, engine: Engine, write: Write) -> None:
    write(Client, "ping", queue="mail")
    own = Source(engine).private()
    request = ClaimRequest("lane", outbox_app.lease, "mail", 5, uuid.uuid4())
    outbox_app.pause("mail")
    assert claim_limited(own, TABLE, request, Limit(2)) == ([], PAUSE)
    outbox_app.resume("mail")
    (state,) = outbox_app.queues()
    assert (state.name, state.paused_at, state.max_running) == ("mail", None, 2)
    assert len(claim_limited(own, TABLE, request, None)[0]) == 1
    own.dispose()


def test_a_reason_is_stored_whatever_its_characters(outbox_app: AsyncTask) -> None:
    assert outbox_app.pause("mail", reason="NUL \0 and half a pair \ud800")
    (paused,) = outbox_app.paused()
    assert paused.reason == "NUL \\0 and half a pair \\ud800"


def test_a_name_that_is_neither_a_queue_nor_a_target_is_refused(outbox_app: AsyncTask) -> None:
    for wrong in ({}, {"queue": "a", "target": effect}, {"queue": ""}, {"queue": "a", "reason": 7}):
        with pytest.raises(ConfigurationError):
            outbox_app.pause(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UnknownTarget):
        outbox_app.pause(target="no.such")
    assert outbox_app.queues() == []


@pytest.mark.slow
def test_the_command_line_pauses_lists_and_resumes(run: Run, outbox_app: AsyncTask, write: Write) -> None:
    write(Client, "ping", queue="mail")
    assert run("queues").out == "No queue is paused or limited.\n"
    said = run("pause", "--queue", "mail", "--reason", "their server is down", "--actor", "anna")
    assert (said.code, said.err) == (0, "The queue mail is paused.\n")
    assert "was paused before" in run("pause", "--queue", "mail").err
    outbox_app.pause("q" * 64, reason="why " * 40)
    head, listed, long = run("queues").out.splitlines()
    assert head.split() == ["QUEUE", "STATE", "SINCE", "BY", "REASON"]
    assert listed.split()[:2] == ["mail", "paused"]
    assert listed.split("  ")[-2:] == ["anna", "their server is down"]
    assert ("q" * 64 in long, long.endswith("why " * 39 + "why")) == (True, True)
    assert outbox_app.resume("q" * 64)
    told = run("queues", "--json").json
    assert (told["name"], told["paused_by"], told["max_running"]) == ("mail", "anna", None)
    assert run("run-batch", "--dry-run", "--json").json["paused"] == ["mail"]
    assert "Nothing is due.\nLeft out because paused: mail." in run("run-batch", "--dry-run").out
    report = run("run-batch", "--json", "--module", "outbox").json
    assert (report["claimed"], report["paused"]) == (0, 1)
    assert run("resume", "--queue", "mail").err == "The queue mail is resumed.\n"
    assert run("run-batch", "--json", "--module", "outbox").json["succeeded"] == 1
    assert run("pause", "--target", "test.effect", "--module", "outbox").err == "The target test.effect is paused.\n"
    assert run("pause").code == 2
    assert run("pause", "--target", "no.such").code == 2


def test_to_pause_a_queue_that_nothing_knows_is_done_and_said_with_the_nearest_name(
    run: Run, outbox_app: AsyncTask
) -> None:
    for options, done in (("--dry-run", "would be paused"), ("--reason=typo", "is paused")):
        said = run("pause", "--queue", "defalt", options)
        first, second = said.err.splitlines()
        assert (said.code, first) == (0, f"The queue defalt {done}.")
        assert second.startswith("Note: no queue is named 'defalt' (did you mean 'default'?): ")
    assert [one.name for one in outbox_app.queues()] == ["defalt"]
    assert run("pause", "--queue", "default").err == "The queue default is paused.\n"


def test_a_dry_run_of_pause_and_resume_says_what_would_change_and_changes_nothing(
    run: Run, outbox_app: AsyncTask
) -> None:
    assert run("pause", "--queue", "default", "--dry-run").err == "The queue default would be paused.\n"
    assert outbox_app.paused() == []
    assert outbox_app.pause(target=effect)
    effects = ("--target", "test.effect", "--module", "outbox", "--dry-run")
    assert run("pause", *effects).err == "The target test.effect was paused before.\n"
    assert run("resume", *effects).err == "The target test.effect would be resumed.\n"
    assert run("resume", "--queue", "mail", "--dry-run").err == "The queue mail was not paused.\n"
    assert len(outbox_app.paused()) == 1
    assert run("pause", "--target", "no.such", "--dry-run").code == 2
