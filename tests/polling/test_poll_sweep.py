"""The sweep of polls, on every database: it resumes what was lost, then gives up what is too old, and loops nowhere."""

import asyncio
import datetime as dt
import threading
import uuid
from typing import Any

import pytest
from sqlalchemy import Engine, delete
from sqlalchemy.orm import Session

from async_task import Attempt, Polling, Status, SweepReport
from async_task.attempts.chain import token_of
from async_task.polling import sweep as sweep_module
from async_task.polling.sweep import PollSweeper
from async_task.polling.target import register
from clockwork import let_pass
from conftest import by_one_door
from elsewhere import await_
from operations import HOUR, Away, Batch, Child, Item, Order, Pair, Parent, Provider, Refused, World
from workers import working

MINUTE = 60.0
STATES_AT_THE_END = ["ended", "canceled", "expired", "failed"]


def lose_attempts(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(delete(Attempt))


def end_attempts(engine: Engine, status: Status) -> None:
    with Session(engine) as session, session.begin():
        for attempt in session.query(Attempt).where(Attempt.status == Status.PENDING):
            {"failed": attempt.fail, "canceled": attempt.cancel, "expired": attempt.expire}[status.value]()


@pytest.mark.slow
@pytest.mark.parametrize("is_lost", [False, True], ids=["the attempt waits", "the attempt is lost"])
def test_a_stall_of_60_minutes_with_a_resume_every_5_leaves_one_chain(
    world: World, provider: Provider, engine: Engine, *, is_lost: bool
) -> None:
    """Nothing is performed for an hour, while the sweep of resumes runs. `pytest -rP` shows the figures."""
    made = world.running()
    if is_lost:
        lose_attempts(engine)
    resumed = 0
    for _ in range(12):
        world.pass_by(5 * MINUTE)
        resumed += world.app.sweep().resumed
    assert len(world.attempts()) == 1
    world.go_on()
    assert provider.count("check") == 1
    print(
        f"60 minutes, 12 sweeps: resumed {resumed}, chains {len(world.attempts())}, "
        f"requests when it goes on {provider.count('check')}"
    )
    for _ in range(3):
        world.pass_by(world.wait(made))
        world.go_on()
        world.app.sweep()
    assert (provider.count("check"), len(world.attempts())) == (4, 1)


@pytest.mark.slow
@by_one_door
@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELED, Status.EXPIRED])
def test_a_poll_whose_attempt_has_ended_is_resumed_with_that_attempt(
    world: World, provider: Provider, engine: Engine, status: Status
) -> None:
    world.running()
    end_attempts(engine, status)
    world.pass_by(5 * MINUTE)
    assert world.app.sweep() == SweepReport(resumed=0)
    world.pass_by(MINUTE)
    assert world.app.sweep() == SweepReport(resumed=1)
    assert world.app.sweep() == SweepReport(resumed=0)
    world.go_on()
    assert (provider.count("check"), len(world.attempts())) == (1, 1)


@pytest.mark.slow
def test_resuming_does_not_reset_the_position_in_the_schedule(world: World, engine: Engine) -> None:
    made = world.running()
    for wait in (60, 120, 300):
        world.pass_by(wait)
        world.go_on()
    assert world.wait(made) == 600
    lose_attempts(engine)
    world.pass_by(20 * MINUTE)
    world.app.sweep()
    world.go_on()
    assert world.wait(made) == 1800


@pytest.mark.slow
def test_many_sweeps_at_once_leave_one_chain(world: World, engine: Engine) -> None:
    world.running()
    lose_attempts(engine)
    world.pass_by(10 * MINUTE)
    at_once = threading.Barrier(4)

    def sweep() -> None:
        at_once.wait()
        sweep_module.resume(engine, Batch)

    threads = [threading.Thread(target=sweep) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert [one.status for one in world.attempts()] == [Status.PENDING]


@pytest.mark.slow
@by_one_door
@pytest.mark.parametrize("moment", ["_read", "_without_attempt"])
def test_a_poll_that_comes_to_its_end_while_a_sweep_looks_at_it_is_not_followed_by_another(
    world: World, provider: Provider, engine: Engine, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The sweep has read a row that is not handled yet, or that its attempt is canceled; then all is done."""
    made = world.running()
    world.change(made, status="ended", next_poll_at=None)
    if moment == "_without_attempt":
        end_attempts(engine, Status.CANCELED)
    real: Any = getattr(sweep_module, moment)

    def end_it_meanwhile(*given: Any) -> Any:
        found = real(*given)
        monkeypatch.setattr(sweep_module, moment, real)
        sweep_module.resume(engine, Batch)
        world.pass_by(MINUTE)
        world.go_on()
        return found

    monkeypatch.setattr(sweep_module, moment, end_it_meanwhile)
    assert sweep_module.resume(engine, Batch) == 0
    assert world.progress(made) == ("ended", True, True)
    assert len(world.attempts()) == 1


@pytest.mark.slow
def test_a_start_that_was_lost_is_resumed(world: World, provider: Provider, engine: Engine) -> None:
    made = world.submitted()
    lose_attempts(engine)
    world.pass_by(6 * MINUTE)
    world.app.sweep()
    world.go_on()
    assert (provider.asked, world.row(made).status) == (["start"], "submitted")


@pytest.mark.slow
@by_one_door
@pytest.mark.parametrize("state", STATES_AT_THE_END)
def test_terminal_rows_with_a_missing_stamp_are_swept_too(
    world: World, provider: Provider, engine: Engine, state: str
) -> None:
    made = world.running()
    world.change(made, status=state, next_poll_at=None)
    lose_attempts(engine)
    world.app.sweep()
    world.go_on()
    assert provider.asked == ["start", *(["fetch"] if state == "ended" else []), "handle"]
    assert world.progress(made) == (state, True, True)
    assert world.app.sweep().resumed == 0


@pytest.mark.slow
def test_a_handler_is_called_again_if_somebody_clears_its_stamp(
    world: World, provider: Provider, engine: Engine
) -> None:
    """The first attempt has succeeded, and cannot be opened again: another one follows it, once."""
    made = world.running()
    provider.will("check", "ended")
    world.pass_by(MINUTE)
    world.go_on()
    for number in (2, 3):
        world.change(made, handler_dispatched_at=None)
        assert [world.app.sweep().resumed for _ in range(2)] == [1, 0]
        world.go_on()
        assert (provider.count("handle"), len(world.attempts())) == (number, number)
    assert provider.count("fetch") == 1


@pytest.mark.slow
def test_a_submitted_row_without_next_poll_at_is_recovered(world: World, provider: Provider, engine: Engine) -> None:
    made = world.running()
    world.change(made, next_poll_at=None)
    lose_attempts(engine)
    world.app.sweep()
    world.go_on()
    assert provider.asked == ["start", "check"]
    assert world.row(made).next_poll_at is not None


@pytest.mark.slow
def test_one_bad_row_is_logged_with_its_id_and_blocks_no_other(
    world: World, engine: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = world.running(), world.running()
    lose_attempts(engine)
    world.pass_by(10 * MINUTE)
    real: Any = sweep_module.continue_chain

    def continue_chain(session: Session, model: type[Any], key: Any, **options: Any) -> bool:
        if key == bad:
            raise Refused("no")
        return bool(real(session, model, key, **options))

    monkeypatch.setattr(sweep_module, "continue_chain", continue_chain)
    assert world.app.sweep().resumed == 1
    said = [one.getMessage() for one in caplog.records]
    assert any(f"Batch {bad} (submitted, next poll at 2" in one and "could not be resumed" in one for one in said)
    assert any(f"Batch {good} (submitted, next poll at 2" in one and one.endswith("resumed") for one in said)


# The age


@pytest.mark.slow
def test_past_its_maximal_age_an_operation_is_stopped_failed_and_handled(world: World, provider: Provider) -> None:
    made = world.running()
    world.pass_by(26 * HOUR + MINUTE)
    world.go_on()
    assert provider.asked == ["start", "check", "stop", "handle"]
    assert world.progress(made) == ("failed", True, True)
    assert world.row(made).failure_reason == "it had not ended after its maximal age of 1 day, 2:00:00"
    assert world.row(made).failed_at is not None


@pytest.mark.slow
@by_one_door
@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError, KeyboardInterrupt])
def test_an_operation_whose_last_check_and_stop_raise_anything_is_given_up(
    world: World, provider: Provider, error: type[BaseException]
) -> None:
    made = world.running()
    provider.will("check", error("gone"))
    provider.will("stop", error("gone"))
    world.pass_by(27 * HOUR)
    world.app.run_batch()  # on a thread of its own: in the main thread KeyboardInterrupt may be Ctrl-C
    assert world.row(made).failure_reason.endswith(f"; its last check raised {error.__name__}: gone")
    world.app.run_batch()
    assert world.progress(made) == ("failed", True, True)


@pytest.mark.slow
@by_one_door
@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.parametrize("answer", ["in_progress", "ended"])
def test_an_operation_whose_row_is_refused_at_its_last_check_is_given_up(
    world: World, provider: Provider, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    made = world.running()

    def check(self: Any) -> str:
        self.note = 101 * "x"  # which SQLite takes
        return str(provider.ask("check"))

    monkeypatch.setattr(Batch, "check", check)
    provider.will("check", answer)
    world.pass_by(HOUR)
    world.go_on()
    assert world.progress(made) == ("submitted", False, False)
    world.pass_by(26 * HOUR)
    world.go_on()
    assert world.progress(made) == ("failed", True, True)
    assert world.row(made).failure_reason.startswith("it had not ended after its maximal age of 1 day, 2:00:00")
    assert [one.status for one in world.attempts()] == [Status.SUCCEEDED]


@pytest.mark.slow
@by_one_door
def test_an_operation_whose_secrets_cannot_be_read_is_given_up(
    world: World, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def secrets(self: Any) -> list[str]:
        raise OSError("the vault says sk-7355608")

    made = world.running()
    monkeypatch.setattr(Batch, "secrets", secrets)
    world.pass_by(27 * HOUR)
    world.app.run_batch()
    assert world.row(made).failure_reason.endswith("1 day, 2:00:00; its secrets() raised OSError")


@pytest.mark.slow
def test_results_that_are_there_are_fetched_before_the_age_throws_them_away(world: World, provider: Provider) -> None:
    made = world.running()
    provider.will("check", "ended")
    world.pass_by(40 * HOUR)
    world.app.sweep()
    world.go_on()
    assert provider.asked == ["start", "check", "fetch", "handle"]
    assert world.progress(made) == ("ended", True, True)


@pytest.mark.slow
@by_one_door
@pytest.mark.parametrize("error", [Away("503"), Refused("the key sk-7355608 is refused")])
@pytest.mark.parametrize("what", ["start", "check"])
def test_a_provider_that_only_ever_fails_is_not_polled_for_ever(
    world: World, provider: Provider, what: str, error: Exception
) -> None:
    provider.will(what, error)
    made = world.submitted()
    for _ in range(6):
        world.go_on()
        world.pass_by(5 * HOUR)
    world.go_on()
    asked = provider.count(what)
    assert world.progress(made) == ("failed", True, True)
    kept_from = {"start": "started", "check": "ended"}[what]
    assert world.row(made).failure_reason.startswith(f"it had not {kept_from} after its maximal age of 1 day, 2:00:00")
    assert "7355608" not in world.row(made).failure_reason
    world.pass_by(5 * HOUR)
    world.app.sweep()
    world.go_on()
    assert provider.count(what) == asked


@pytest.mark.slow
def test_an_error_of_stop_is_logged_and_changes_nothing(
    world: World, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    made = world.running()
    provider.will("stop", Refused("the key sk-7355608 is refused"))
    world.pass_by(27 * HOUR)
    world.go_on()
    assert world.progress(made) == ("failed", True, True)
    assert "stop() raised Refused: the key [hidden] is refused" in caplog.text


@pytest.mark.slow
def test_a_sweep_hurries_the_attempt_of_an_operation_that_is_too_old(
    world: World, provider: Provider, engine: Engine
) -> None:
    made = world.running()
    world.pass_by(27 * HOUR)
    with Session(engine) as session, session.begin():
        attempt = session.query(Attempt).one()
        attempt.reschedule(at=world.app.now() + dt.timedelta(days=365))
    assert world.go_on() == []
    world.app.sweep()
    world.go_on()
    assert world.progress(made) == ("failed", True, True)


@pytest.mark.slow
def test_each_class_sets_its_own_times(
    world: World, provider: Provider, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Polling(name="test.batch", schedule=(dt.timedelta(seconds=30), 90), max_age=HOUR, grace=0)
    monkeypatch.setattr(Batch, "polling", own)
    made = world.running()
    waits = [world.wait(made)]
    for _ in range(2):
        world.pass_by(waits[-1])
        world.go_on()
        waits.append(world.wait(made))
    assert waits == [30, 90, 90]
    lose_attempts(engine)
    world.pass_by(90)
    assert world.app.sweep().resumed == 1
    world.pass_by(HOUR)
    world.go_on()
    assert world.progress(made) == ("failed", True, True)


# Keys and classes


@pytest.mark.slow
def test_a_primary_key_of_several_columns_names_one_chain(world: World, provider: Provider, engine: Engine) -> None:
    register(Pair)
    tenants = ["a/1", "a", "x" * 100]
    with Session(engine) as session, session.begin():
        for tenant in tenants:
            Pair(tenant=tenant, number=uuid.UUID(int=1)).submit(session)
    for _ in range(2):
        world.go_on()
        lose_attempts(engine)
        let_pass(engine, HOUR, also=(Pair,))
        assert world.app.sweep().resumed == len(world.attempts()) == 3
    assert provider.asked == ["start Pair"] * 3 + ["check"] * 3


@pytest.mark.parametrize("key", ["", "a\nb", "x" * 500, ("a", "b" * 500), uuid.UUID(int=1), 17])
def test_a_token_fits_into_its_column_also_with_that_of_a_follower(key: object) -> None:
    token = f"{token_of(key)}+{uuid.UUID(int=2**128 - 1)}"
    assert token.isprintable()
    assert len(token) <= 255


@pytest.mark.slow
@by_one_door
def test_an_operation_that_is_read_with_its_items_is_resumed(world: World, provider: Provider, engine: Engine) -> None:
    register(Order)
    mine = World(world.app, engine, Order)
    with Session(engine) as session, session.begin():
        Order(items=[Item(), Item()]).submit(session)
    mine.go_on()
    mine.pass_by(26 * HOUR + MINUTE)
    lose_attempts(engine)
    assert (sweep_module.resume(engine, Order), len(mine.attempts())) == (1, 1)
    mine.go_on()
    assert provider.asked == ["start Order", "check", "handle"]


@pytest.mark.slow
def test_the_rows_of_a_subclass_are_polled_by_its_own_target_alone(
    world: World, provider: Provider, engine: Engine
) -> None:
    register(Parent)
    register(Child)
    with Session(engine) as session, session.begin():
        Parent().submit(session)
        Child().submit(session)
    lose_attempts(engine)
    let_pass(engine, 10 * MINUTE, also=(Parent,))
    assert world.app.sweep().resumed == 2
    world.go_on()
    assert sorted(provider.asked) == ["start Child", "start Parent"]


# Rows that somebody has written by hand


@pytest.mark.in_turns
@by_one_door
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"status": "gone fishing"}, "its status was 'gone fishing', which is no state of an operation"),
        ({"status": ""}, "its status was '', which is no state of an operation"),
        ({"status": "submitted", "submitted_at": dt.datetime(9000, 1, 1, tzinfo=dt.UTC)}, "in the future"),
    ],
)
def test_nonsense_ends_visibly_and_never_in_a_loop(
    world: World, provider: Provider, values: dict[str, Any], reason: str
) -> None:
    made = world.by_hand(**values)
    world.app.sweep()
    world.go_on()
    assert reason in world.row(made).failure_reason
    assert world.progress(made) == ("failed", True, True)
    assert provider.asked == ["handle"]
    world.pass_by(HOUR)
    assert world.app.sweep() == SweepReport()
    assert len(world.attempts()) == 1


@pytest.mark.slow
def test_the_age_of_an_operation_of_which_nobody_knows_since_when_it_goes_on_counts_from_now(
    world: World, provider: Provider
) -> None:
    made = world.by_hand(status="in_progress")
    provider.will("check", Refused("never"))
    world.app.sweep()
    world.go_on()
    assert world.row(made).submitted_at is not None
    world.pass_by(27 * HOUR)
    world.go_on()
    assert world.progress(made) == ("failed", True, True)


@pytest.mark.slow
def test_an_answer_of_check_that_is_no_state_is_an_error_and_ends_with_the_age(
    world: World, provider: Provider
) -> None:
    provider.will("check", "finished", 17, "pending", None)
    made = world.running()
    for wait in (60, 60, 120):
        world.pass_by(wait)
        world.go_on()
    (attempt,) = world.attempts()
    assert attempt.num_errors == 3
    assert "check() returned 'pending', and returns one of canceled, ended," in str(attempt.last_error)
    world.pass_by(27 * HOUR)
    world.go_on()
    assert world.progress(made) == ("failed", True, True)


@pytest.mark.parametrize("values", [{}, {"next_poll_at": dt.datetime(2001, 1, 1, tzinfo=dt.UTC)}])
def test_a_row_that_was_not_submitted_is_left_alone(world: World, values: dict[str, Any]) -> None:
    world.by_hand(**values)
    assert world.app.sweep() == SweepReport()
    assert world.attempts() == []


@pytest.mark.slow
def test_the_poll_of_a_row_that_was_deleted_ends(world: World, engine: Engine) -> None:
    made = world.running()
    with engine.begin() as connection:
        connection.execute(delete(Batch).where(Batch.id == made))
    world.pass_by(HOUR)
    world.go_on()
    (attempt,) = world.attempts()
    assert attempt.status == Status.FAILED
    assert f"there is no Batch {made} any more" in str(attempt.last_error)
    world.app.sweep()
    assert len(world.attempts()) == 1


# Who sweeps


@pytest.mark.slow
def test_run_batch_sweeps_polls_before_it_begins(world: World, provider: Provider, engine: Engine) -> None:
    world.running()
    lose_attempts(engine)
    world.pass_by(10 * MINUTE)
    world.app.run_batch()
    assert provider.count("check") == 1


@pytest.mark.slow
def test_a_worker_sweeps_polls(world: World, provider: Provider, engine: Engine) -> None:
    world.running()
    lose_attempts(engine)
    world.pass_by(10 * MINUTE)
    with working(world.app):
        await_(lambda: provider.count("check") == 1, "the poll is resumed")


@pytest.mark.slow
@by_one_door
def test_a_worker_sweeps_polls_again_after_seconds_if_their_class_says_so(
    world: World, provider: Provider, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batch, "polling", Polling(name="test.batch", grace=0, resume_every=0.1))
    made = world.running()
    with working(world.app):
        for number in (1, 2):
            with engine.begin() as connection:
                connection.execute(delete(Attempt))
            world.change(made, next_poll_at=None)
            await_(lambda number=number: provider.count("check") == number, "the poll is resumed", patience=8)
            await_(lambda: world.row(made).next_poll_at is not None, "what it has learned is written")


def test_a_worker_sweeps_each_class_as_often_as_it_says(
    world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = [1_000.0]
    monkeypatch.setattr(sweep_module.time, "monotonic", lambda: time[0])
    done: list[str] = []
    monkeypatch.setattr(sweep_module, "resume", lambda *_: len(done.append("resume") or []))
    monkeypatch.setattr(sweep_module, "expire", lambda *_: len(done.append("expire") or []))
    sweeper = PollSweeper(Attempt)
    for seconds in (0, 299, 1, 3299, 1):
        time[0] += seconds
        sweeper.sweep(engine)
        done.append("|")
    assert "".join(one[0] for one in done) == "re||r|r|e|"
