"""The user of an operation is told when it fails for a day, and when it has results after that."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from async_task import Attempt, Discard, acting
from async_task.attempts.messages import set_message_hook
from async_task.schema.tables import JobEvent, table_of
from clockwork import let_pass
from conftest import by_one_door
from operations import HOUR, Away, Batch, Provider, Refused, World

Heard = list[tuple[Any, str, str]]


@pytest.fixture
def heard(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
    """What the user of each operation, "ada", is told. The user of each attempt is "bob"."""
    told: Heard = []
    monkeypatch.setattr(Batch, "message_user", lambda self: "ada")
    monkeypatch.setattr(Attempt, "message_user", lambda self: "bob")
    set_message_hook(table_of(Attempt), lambda user, kind, text: told.append((user, kind.value, text)))
    yield told
    set_message_hook(table_of(Attempt), None)


def after(world: World, hours: float) -> None:
    """What is done `hours` later; also events are older then."""
    let_pass(world.engine, hours * HOUR, also=(Batch, JobEvent))
    world.go_on()


def kinds(heard: Heard) -> list[str]:
    assert {user for user, _, _ in heard} <= {"ada"}
    return [kind for _, kind, _ in heard]


@pytest.mark.slow
def test_it_is_failing_once_a_day_after_it_was_submitted_and_recovers_with_its_results(
    world: World, provider: Provider, heard: Heard
) -> None:
    """The provider accepts it after 20 hours, which is no other submission."""
    provider.will("start", Refused("no"), None)
    provider.will("check", Refused("sk-7355608"))
    made = world.submitted()
    for hours, told in ((0, []), (20, []), (3.5, []), (1, ["failing"]), (1, ["failing"]), (19, ["failing"])):
        after(world, hours)
        assert kinds(heard) == told
    provider.will("check", "in_progress", "ended")
    after(world, 0.5)
    assert world.progress(made) == ("in_progress", False, False)
    assert kinds(heard) == ["failing"]
    after(world, 0.5)
    assert world.progress(made) == ("ended", True, True)
    assert heard == [
        ("ada", "failing", f"Batch {made} has not succeeded for 24 hours, and is failing."),
        ("ada", "recovered", f"Batch {made} was failing, and has succeeded now."),
    ]
    with Session(world.engine) as session:
        events = session.scalars(select(JobEvent).where(JobEvent.kind == "message").order_by(JobEvent.id)).all()
    assert [(one.job_type, one.job_id, one.message) for one in events] == [
        ("batches", str(made), "failing"), ("batches", str(made), "recovered"),
    ]  # fmt: skip


@pytest.mark.slow
@by_one_door
@pytest.mark.parametrize("answers", ["in_progress", Away("busy")])
def test_one_that_is_given_up_is_failing_and_has_not_recovered(
    world: World, provider: Provider, heard: Heard, answers: Any
) -> None:
    provider.will("check", answers)
    made = world.submitted()
    for hours, told in ((0, []), (25, []), (2, ["failing"]), (24, ["failing"])):
        after(world, hours)
        assert kinds(heard) == told
    assert world.progress(made) == ("failed", True, True)
    assert [one.status for one in world.attempts()] == ["succeeded"]


@pytest.mark.slow
@by_one_door
def test_an_end_without_results_is_no_recovery_and_a_handler_that_succeeds_at_last_is_one(
    world: World, provider: Provider, heard: Heard
) -> None:
    provider.will("check", Refused("no"))
    world.submitted()
    after(world, 0)
    after(world, 25)
    assert kinds(heard) == ["failing"]
    provider.will("check", "canceled")
    after(world, 0.5)
    assert kinds(heard) == ["failing"]
    provider.will("check", "ended")
    provider.will("handle", Discard("not yet"), None)
    made = world.submitted()
    after(world, 0)
    after(world, 25)
    assert kinds(heard) == ["failing", "failing"]
    world.app.sweep()
    after(world, 0)
    assert world.progress(made) == ("ended", True, True)
    assert kinds(heard) == ["failing", "failing", "recovered"]


@pytest.mark.slow
@by_one_door
def test_a_cancel_of_its_attempt_tells_nobody_and_a_success_without_an_error_before_neither(
    world: World, provider: Provider, heard: Heard
) -> None:
    made = world.submitted()
    with acting("anna"), Session(world.engine) as session, session.begin():
        session.get_one(Attempt, world.attempts()[0].id).cancel(session)
    after(world, 1)
    world.app.sweep()
    provider.will("check", "in_progress", "ended")
    for hours in (0, 1, 24):
        after(world, hours)
    assert world.progress(made) == ("ended", True, True)
    assert heard == []
