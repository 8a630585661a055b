"""`outbox.job` and `outbox.explain_job` of operations at a provider."""

import datetime as dt

import pytest
from sqlalchemy import Engine, delete

from async_task import Attempt, UnknownAttempt
from async_task.polling.target import register
from conftest import by_one_door
from mess import worker_runs
from operations import HOUR, Batch, Child, Parent, Provider, Refused, World


def kinds(world: World, made: int) -> list[str]:
    return [one.kind for one in world.app.explain_job(Batch, made).reasons]


@pytest.mark.slow
def test_an_operation_tells_its_state_and_why_it_does_not_go_on(
    world: World, provider: Provider, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batch, "message_user", lambda self: "ada")
    worker_runs(engine)
    fresh = world.by_hand()
    assert (world.app.job("test.batch", fresh).state, kinds(world, fresh)) == ("pending", ["not_submitted"])
    made = world.submitted()
    new = world.app.job(Batch, made)
    assert (new.job_type, new.key, new.state, new.user) == ("batches", str(made), "pending", "ada")
    assert (new.submitted_at, new.error, new.attempted_at) == (world.row(made).submitted_at, None, None)
    assert new.why_not("fail") is None
    assert "was submitted before" in str(new.why_not("submit"))
    provider.will("check", Refused("key of Ada"), "ended")
    world.go_on()
    assert kinds(world, made)[0] == "not_due"
    world.pass_by(60)
    world.go_on()
    failing = world.app.job(Batch, made)
    assert (failing.state, failing.error) == ("submitted", "Refused")
    assert failing.attempt is not None
    assert failing.attempted_at == failing.attempt.attempted_at
    world.pass_by(27 * HOUR)
    assert kinds(world, made) == ["window_over", "not_served"]
    provider.will("check", "ended")
    world.go_on()
    done = world.app.job(Batch, made)
    assert (done.state, done.error, kinds(world, made)) == ("ended", None, ["processed"])
    assert done.processed_at == world.row(made).handler_dispatched_at
    assert "is ended" in str(done.why_not("fail"))


@pytest.mark.slow
@by_one_door
def test_an_operation_without_an_attempt_says_when_a_sweep_resumes_it(
    world: World, provider: Provider, engine: Engine
) -> None:
    made = world.running()
    with engine.begin() as connection:
        connection.execute(delete(Attempt))
    (lost,) = world.app.explain_job(Batch, made).reasons
    assert (lost.kind, lost.remedy) == ("no_attempt", "async-task sweep")
    assert lost.until == world.row(made).next_poll_at + dt.timedelta(minutes=5)
    world.pass_by(HOUR)
    (late,) = world.app.explain_job(Batch, made).reasons
    assert (late.kind, late.until) == ("no_attempt", None)
    world.app.sweep()
    assert "no_attempt" not in kinds(world, made)
    provider.will("check", "failed")
    world.go_on()
    failed = world.app.job(Batch, made)
    assert (failed.state, failed.error) == ("failed", "the provider says that it has failed")


@by_one_door
def test_a_row_of_a_subclass_is_no_row_of_its_base(world: World) -> None:
    register(Parent)
    register(Child)
    world.model = Child
    made = world.submitted()
    assert world.app.job(Child, made).state == "pending"
    with pytest.raises(UnknownAttempt, match=f"there is no Parent {made}"):
        world.app.job(Parent, made)
