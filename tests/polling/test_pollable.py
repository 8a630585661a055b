"""Operations at a provider, on every database: what is kept of the system that this is inherited from, and what is
mended."""

import asyncio
import datetime as dt
import os
import pathlib
import subprocess
import sys
import uuid
from typing import Any

import pytest
from sqlalchemy import Engine, Integer, select, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import databases
from async_task import (
    Again,
    Asyncable,
    Attempt,
    ConfigurationError,
    Discard,
    InvalidState,
    NoTransaction,
    Pollable,
    Polling,
    Status,
    Superseded,
)
from conftest import by_one_door
from databases import Database
from operations import HOUR, AsyncBatch, Away, Batch, Provider, Refused, World
from outbox import Client, events_of

# Kept


@pytest.mark.slow
def test_an_operation_is_started_polled_fetched_and_handled(world: World, provider: Provider) -> None:
    made = world.submitted()
    assert provider.asked == []
    provider.will("check", "in_progress", "ended")
    provider.will("fetch", "forty-two")
    world.go_on()
    assert (provider.asked, world.row(made).status) == (["start"], "submitted")
    world.pass_by(60)
    world.go_on()
    assert (provider.asked[1:], world.row(made).status) == (["check"], "in_progress")
    world.pass_by(120)
    world.go_on()
    assert provider.asked[2:] == ["check", "fetch", "handle"]
    row = world.row(made)
    assert (row.status, row.provider_id, row.results) == ("ended", "at the provider", "forty-two")
    assert None not in (row.ended_at, row.results_fetched_at, row.handler_dispatched_at)
    assert (row.failed_at, row.failure_reason, row.next_poll_at) == (None, None, None)
    assert [one.status for one in world.attempts()] == [Status.SUCCEEDED]


@pytest.mark.slow
@pytest.mark.parametrize("savepoint", [True, False])
def test_a_new_operation_can_be_submitted_again_after_a_rollback(world: World, engine: Engine, savepoint: bool) -> None:
    with Session(engine) as session:
        session.execute(select(1))
        around = session.begin_nested() if savepoint else session
        batch = Batch()
        batch.submit(session)
        around.rollback()
        assert batch.submitted_at is None
        batch.submit(session)
        session.commit()
        assert world.row(batch.id).submitted_at is not None
    assert len(world.attempts()) == 1


def test_a_savepoint_that_is_rolled_back_takes_a_failure_back_in_the_object_too(world: World, engine: Engine) -> None:
    made = world.submitted()
    with Session(engine, expire_on_commit=False) as session, session.begin():
        batch = session.get_one(Batch, made)
        savepoint = session.begin_nested()
        batch.fail(reason="in vain")
        assert batch.status == "failed"
        savepoint.rollback()
        assert (batch.status, batch.failure_reason) == ("pending", None)


@pytest.mark.usefixtures("registered")
def test_an_operation_whose_class_lacks_a_method_is_refused_when_it_is_submitted() -> None:
    class Own(DeclarativeBase): ...

    class Half(Pollable, Own):
        __tablename__ = "half"
        polling = Polling(name="test.half")
        id: Mapped[int] = mapped_column(primary_key=True)

        def start(self, idempotency_key: str) -> None: ...
        def check(self) -> str:
            return "ended"

    with pytest.raises(ConfigurationError, match=r"Half lacks fetch\(\), handle\(\): "):
        Half().submit()


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("model", [Pollable, Asyncable])
def test_a_method_that_is_a_generator_is_refused_when_the_class_is_made(model: type[Any]) -> None:
    class Own(DeclarativeBase): ...

    def work(self: Any) -> Any:
        yield

    name = "handle" if model is Pollable else "process"
    key = {"id": mapped_column(Integer, primary_key=True), "__tablename__": "lazy"}
    with pytest.raises(ConfigurationError, match=rf"Lazy.{name}\(\) is a generator: calling it runs nothing"):
        type("Lazy", (model, Own), {**key, name: work, "__module__": __name__})


@by_one_door
@pytest.mark.slow
@pytest.mark.parametrize("step", ["start", "check", "fetch", "handle"])
def test_an_answer_of_which_nothing_has_run_is_an_error_of_its_step(
    world: World, provider: Provider, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    made = world.submitted()
    provider.will("check", "ended")
    monkeypatch.setattr(Batch, step, lambda *_: (one for one in "x"))
    world.go_on()
    world.pass_by(60)
    world.go_on()
    (attempt,) = world.attempts()
    assert f"TypeError: {step}() returned a generator, which was never run" in str(attempt.last_error)
    before = {"start": "pending", "check": "submitted", "fetch": "ended", "handle": "ended"}
    assert world.progress(made) == (before[step], step == "handle", False)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["start", "fetch", "handle"])
def test_a_method_that_is_not_finished_is_called_again_and_no_error_is_counted(
    world: World, provider: Provider, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def work(self: Any, *_: object) -> Again | None:
        self.results = f"{self.results or ''}x"
        provider.ask(step)
        return Again(after=90) if provider.count(step) == 1 else None

    monkeypatch.setattr(Batch, step, work)
    provider.will("check", "ended")
    made = world.submitted()
    world.go_on()
    world.pass_by(60)
    world.go_on()
    assert (provider.count(step), world.row(made).results, world.wait(made) > 0) == (1, "x", True)
    for _ in range(2):
        world.pass_by(90)
        world.go_on()
    assert (provider.count(step), world.row(made).results) == (2, "xx" if step != "start" else None)
    assert world.progress(made) == ("ended", True, True)
    assert [(one.status, one.num_errors) for one in world.attempts()] == [(Status.SUCCEEDED, 0)]


@by_one_door
def test_a_reason_that_is_no_text_is_written_as_text(
    world: World, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(self: Any) -> str:
        self.failure_reason = 5
        return "failed"

    monkeypatch.setattr(Batch, "check", check)
    made = world.running()
    world.pass_by(60)
    world.go_on()
    assert (world.progress(made), world.row(made).failure_reason) == (("failed", True, True), "5")


@pytest.mark.slow
def test_coroutines_do_the_same(async_world: World, provider: Provider) -> None:
    made = async_world.running()
    provider.will("check", "ended")
    provider.will("fetch", "forty-two")
    async_world.pass_by(60)
    async_world.go_on()
    assert provider.asked == ["start", "check", "fetch", "handle"]
    assert async_world.row(made).results == "forty-two"
    assert async_world.progress(made) == ("ended", True, True)


@pytest.mark.slow
def test_polls_are_60_s_2_5_10_and_30_min_apart_and_the_last_wait_repeats(world: World, provider: Provider) -> None:
    made, waits = world.running(), []
    for _ in range(7):
        waits.append(world.wait(made))
        world.pass_by(waits[-1])
        world.go_on()
    assert waits == [60, 120, 300, 600, 1800, 1800, 1800]
    assert provider.count("check") == 7


def test_submit_is_single_shot_and_a_second_one_asks_no_provider(
    world: World, provider: Provider, engine: Engine
) -> None:
    made = world.submitted()
    for _ in range(2):
        with Session(engine) as session, pytest.raises(InvalidState, match=f"submit: Batch {made} is in another state"):
            session.get_one(Batch, made).submit()
        world.go_on()
    assert provider.asked == ["start"]
    assert len(world.attempts()) == 1


def test_submit_needs_a_session(world: World) -> None:
    with pytest.raises(NoTransaction, match="attached to no session"):
        Batch().submit()


def test_nothing_is_submitted_if_the_transaction_of_the_caller_rolls_back(world: World, engine: Engine) -> None:
    with Session(engine) as session:
        Batch().submit(session)
        session.rollback()
    assert world.attempts() == []


@pytest.mark.slow
def test_a_poll_of_a_finished_row_asks_the_provider_nothing_and_only_completes_what_is_missing(
    world: World, provider: Provider
) -> None:
    made = world.running()
    world.change(made, status="ended", results_fetched_at=world.app.now())
    world.pass_by(60)
    world.go_on()
    assert provider.asked == ["start", "handle"]
    assert world.progress(made) == ("ended", True, True)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["canceled", "expired", "failed"])
def test_a_terminal_state_without_results_is_stamped_without_a_fetch_and_handled(
    world: World, provider: Provider, state: str
) -> None:
    made = world.running()
    provider.will("check", state)
    world.pass_by(60)
    world.go_on()
    assert provider.asked == ["start", "check", "handle"]
    assert world.progress(made) == (state, True, True)
    row = world.row(made)
    assert row.ended_at is not None
    assert (row.failed_at is not None) == (row.failure_reason is not None) == (state == "failed")


@pytest.mark.slow
@pytest.mark.parametrize(("what", "stamps"), [("fetch", (False, False)), ("handle", (True, False))])
def test_what_raises_leaves_its_stamp_null_and_the_next_pass_tries_again(
    world: World, provider: Provider, what: str, stamps: tuple[bool, bool]
) -> None:
    made = world.running()
    provider.will("check", "ended")
    provider.will(what, Refused("not now"), None)
    world.pass_by(60)
    world.go_on()
    assert world.progress(made) == ("ended", *stamps)
    world.pass_by(60)
    world.go_on()
    assert world.progress(made) == ("ended", True, True)
    assert (provider.count("check"), provider.count(what)) == (1, 2)
    assert provider.count("handle") == (2 if what == "handle" else 1)


@pytest.mark.in_turns
@pytest.mark.parametrize("what", ["start", "check", "fetch", "handle"])
def test_a_transient_error_reschedules_quietly(
    world: World, provider: Provider, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = world.submitted()
    provider.will(what, Away("503"), {"check": "ended"}.get(what))
    provider.will("check", *([Away("503")] if what == "check" else []), "ended")
    world.go_on()
    world.pass_by(60)
    world.go_on()
    (attempt,) = world.attempts()
    assert (attempt.status, attempt.num_errors, attempt.last_error) == (Status.PENDING, 0, None)
    assert world.wait(made) in (60, 120)
    assert [one for one in caplog.records if one.levelname != "INFO"] == []
    world.pass_by(120)
    world.go_on()
    assert world.progress(made) == ("ended", True, True)


@pytest.mark.slow
def test_another_error_is_recorded_without_secrets_and_the_row_stays_recoverable(
    world: World, provider: Provider, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    made = world.running()
    provider.will("check", Refused("the key sk-7355608 is refused"), "ended")
    world.pass_by(60)
    world.go_on()
    (attempt,) = world.attempts()
    assert (attempt.status, attempt.num_errors) == (Status.PENDING, 1)
    assert str(attempt.last_error) == "Refused: the key [hidden] is refused"
    recorded = [str(one.message) for one in events_of(engine, attempt.id)]
    assert any("Refused" in one for one in recorded)
    assert "7355608" not in "".join([*recorded, caplog.text])
    assert world.row(made).status == "submitted"
    world.pass_by(60)
    world.go_on()
    assert world.progress(made) == ("ended", True, True)


def test_what_a_method_changes_of_its_row_is_not_kept_if_it_raises(world: World, provider: Provider) -> None:
    provider.will("start", Refused("no"))
    made = world.submitted()
    world.go_on()
    assert (world.row(made).note, world.row(made).status) == (None, "pending")


# Mended


@pytest.mark.slow
def test_the_intent_is_committed_first_and_start_gets_an_idempotency_key(world: World, provider: Provider) -> None:
    made, seen = world.submitted(), []
    provider.meanwhile = lambda: seen.append((world.row(made).status, world.row(made).submitted_at is not None))
    provider.will("start", Refused("the answer is lost"), None)
    world.go_on()
    world.pass_by(60)
    world.go_on()
    assert seen == [("pending", True)] * 2
    assert world.row(made).note == str(world.attempts()[0].id)


DYING = """
import os, sys
import operations
from async_task import AsyncTask, current_attempt
from async_task.polling.target import register

def die() -> None:
    print(current_attempt().id, flush=True)
    os._exit(9)

register(operations.Batch)
operations.provider.meanwhile = die
AsyncTask(sys.argv[1]).run_batch()
"""


@pytest.mark.slow
def test_a_crash_after_the_yes_of_the_provider_makes_the_same_request_again(world: World, database: Database) -> None:
    made = world.submitted()
    tests = str(pathlib.Path(__file__).parents[1])
    command = [sys.executable, "-c", DYING, database.sync_url]
    env = {**os.environ, "PYTHONPATH": tests}
    died = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (died.returncode, world.row(made).status) == (9, "pending")
    assert world.app.sweep().recovered == 1
    world.go_on()
    assert (world.row(made).status, world.row(made).note) == ("submitted", died.stdout.strip())


@pytest.mark.slow
def test_next_poll_at_is_stamped_in_the_same_transaction_as_submitted(world: World) -> None:
    made = world.running()
    row = world.row(made)
    assert dt.timedelta(seconds=59) < row.next_poll_at - row.submitted_at < dt.timedelta(seconds=61)


@pytest.mark.in_turns
@pytest.mark.parametrize("what", ["start", "check", "fetch", "handle", "stop"])
def test_no_transaction_is_open_during_a_call(world: World, provider: Provider, database: Database, what: str) -> None:
    """Another connection, which waits for no lock, changes all rows meanwhile."""
    impatient = databases.impatient_engine(database)

    def change_all() -> None:
        if provider.asked[-1] == what:
            with impatient.begin() as connection:
                connection.execute(update(Batch).values(results=Batch.results))
                connection.execute(update(Attempt).values(priority=Attempt.priority))

    made = world.running() if what != "start" else world.submitted()
    provider.meanwhile = change_all
    provider.will("check", "in_progress" if what == "stop" else "ended")
    world.pass_by(27 * HOUR if what == "stop" else 60)
    world.go_on()
    if what == "start":
        world.pass_by(60)
        world.go_on()
    impatient.dispose()
    assert (provider.count(what), world.row(made).handler_dispatched_at is not None) == (1, True)
    assert world.attempts()[0].num_errors == 0


@pytest.mark.slow
def test_the_first_wait_is_not_used_twice(world: World, provider: Provider) -> None:
    made = world.running()
    assert world.wait(made) == 60
    world.pass_by(60)
    world.go_on()
    assert world.wait(made) == 120


@pytest.mark.slow
def test_the_schedule_begins_when_the_provider_has_accepted_the_operation(world: World, provider: Provider) -> None:
    provider.will("start", Away("503"), None)
    made = world.submitted()
    world.go_on()
    world.pass_by(HOUR)
    world.go_on()
    waits = [world.wait(made)]
    world.pass_by(60)
    world.go_on()
    assert [*waits, world.wait(made)] == [60, 120]


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["in_progress", "failed", Away("503")], ids=str)
def test_a_state_that_was_written_meanwhile_is_not_overwritten(
    world: World, provider: Provider, answer: object
) -> None:
    made = world.running()
    provider.will("check", answer)
    provider.meanwhile = lambda: provider.asked[-1] == "check" and world.change(made, status="ended")
    world.pass_by(60)
    world.go_on()
    assert world.row(made).status == "ended"
    world.pass_by(1)
    world.go_on()
    assert world.progress(made) == ("ended", True, True)
    assert world.row(made).failed_at is None
    assert world.attempts()[0].num_errors == 0


@pytest.mark.slow
def test_a_worker_that_has_lost_its_claim_writes_nothing(world: World, provider: Provider, engine: Engine) -> None:
    made = world.running()
    provider.will("check", "ended")
    taken = {"claim_id": uuid.uuid4(), "claimed_by": "another worker"}

    def take_the_claim() -> None:
        with engine.begin() as connection:
            connection.execute(update(Attempt).values(taken))

    provider.meanwhile = take_the_claim
    world.pass_by(60)
    (attempt,) = world.attempts()
    assert isinstance(world.app.perform(attempt.id), Superseded)
    assert world.progress(made) == ("submitted", False, False)


@pytest.mark.slow
def test_a_step_that_was_lost_with_its_worker_is_done_again(world: World, engine: Engine) -> None:
    """In a child process, as after any loss."""
    made = world.submitted()
    with engine.begin() as connection:
        connection.execute(update(Attempt).values(num_attempts=1, num_losses=1))
    world.go_on()
    assert world.row(made).status == "submitted"
    assert world.row(made).note == str(world.attempts()[0].id)


@pytest.mark.slow
def test_fail_does_not_overwrite_a_concurrent_ended(world: World, engine: Engine) -> None:
    made = world.running()
    with Session(engine) as session:
        batch = session.get_one(Batch, made)
        session.rollback()
        world.change(made, status="ended")
        with pytest.raises(InvalidState, match=f"fail: Batch {made} is in another state"):
            batch.fail(session, reason="no longer wanted")
    assert world.row(made).status == "ended"


@pytest.mark.slow
def test_fail_gives_an_operation_up_and_its_handler_is_called(world: World, provider: Provider, engine: Engine) -> None:
    made = world.running()
    with Session(engine) as session, session.begin():
        session.get_one(Batch, made).fail(reason="no longer wanted " * 20)
    world.go_on()
    assert provider.asked == ["start", "handle"]
    assert world.progress(made) == ("failed", True, True)
    assert len(world.row(made).failure_reason) == 255


@pytest.mark.slow
def test_an_operation_that_is_discarded_has_failed(world: World, provider: Provider) -> None:
    provider.will("start", Discard("the provider does not know this model"))
    made = world.submitted()
    world.go_on()
    assert world.row(made).failure_reason == "Discard: the provider does not know this model"
    assert world.progress(made) == ("failed", True, True)


@pytest.mark.slow
def test_calls_that_a_handler_writes_without_a_transaction_are_refused(world: World, provider: Provider) -> None:
    """They would commit with a step that is only put off."""
    made = world.running()
    provider.will("check", "ended")
    provider.meanwhile = lambda: provider.asked[-1] == "handle" and Attempt.call(Client.ping)
    world.pass_by(60)
    world.go_on()
    (attempt,) = world.attempts()
    assert "NoTransaction" in str(attempt.last_error)
    assert world.row(made).handler_dispatched_at is None


@pytest.mark.parametrize("door", ["async"], indirect=True)
def test_an_async_session_submits(async_world: World, async_engine_url: str, provider: Provider) -> None:
    async def submit() -> int:
        engine = create_async_engine(async_engine_url)
        async with AsyncSession(engine) as session, session.begin():
            batch = AsyncBatch()
            await session.run_sync(batch.submit)
            made = batch.id
            assert batch.submitted_at is not None
        await engine.dispose()
        return made

    made = asyncio.run(submit())
    async_world.go_on()
    assert (provider.asked, async_world.row(made).status) == (["start"], "submitted")


@pytest.mark.slow
def test_a_worker_and_a_batch_perform_the_steps(world: World, provider: Provider) -> None:
    made = world.submitted()
    provider.will("check", "ended")
    world.app.run_batch()
    world.pass_by(60)
    for _ in range(3):
        world.app.run_batch()
    assert provider.asked == ["start", "check", "fetch", "handle"]
    assert world.progress(made) == ("ended", True, True)
