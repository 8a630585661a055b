"""`outbox.job` and `outbox.explain_job`: one row that is its own job, with its state, its attempt and its reasons."""

import datetime as dt
from typing import Any

import pytest
from sqlalchemy import Engine, delete
from sqlalchemy.orm import Session

from async_task import Attempt, ConfigurationError, InvalidArguments, UnknownAttempt, UnknownTarget
from async_task.asyncable.registration import register
from claims import claimed
from conftest import by_one_door
from mess import worker_runs
from reviews import DAY, HOUR, Board, Desk, Letter, Pair, Paper, Review

INSTANTS = ("submitted_at", "last_submitted_at", "attempted_at", "processed_at", "canceled_at")


def explained(desk: Desk, made: Any) -> list[tuple[str, str]]:
    """The kinds of its reasons, and the commands that help."""
    return [(one.kind, one.remedy) for one in desk.app.explain_job("test.review", made).reasons]


@pytest.mark.slow
def test_a_job_tells_its_columns_its_user_and_the_attempt_that_processes_it(
    desk: Desk, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Review, "asyncable_user", property(lambda self: f"user {self.id}"))
    board.will_raise(RuntimeError("Ada's pension"), None)
    made = desk.submitted()
    (attempt,) = desk.attempts()
    new = desk.app.job("test.review", str(made))
    assert (new.model, new.job_type, new.key, new.user) == ("test.review", "reviews", str(made), f"user {made}")
    assert (new.state, new.error, new.attempted_at, new.why_not("restart")) == ("queued", None, None, None)
    desk.go_on()
    failed = desk.app.job(Review, made)
    assert (failed.state, failed.error) == ("failing", "RuntimeError")
    assert failed.attempt is not None
    assert (failed.attempt.id, failed.attempt.num_errors) == (attempt.id, 1)
    assert "attempted just now" in str(failed.why_not("restart"))
    assert failed.why_not("cancel") is None
    assert "has no such verb, but submit_for_processing, restart, cancel" in str(failed.why_not("fly"))
    desk.pass_by(3 * HOUR)
    desk.go_on()
    done, row = desk.app.job(Review, made), desk.row(made)
    assert (done.state, done.error) == ("processed", None)
    assert {name: getattr(done, name) for name in INSTANTS} == {name: getattr(row, name) for name in INSTANTS}
    assert done.attempt is not None
    assert done.attempt.status == "succeeded"
    desk.do(made, "restart")
    again = desk.app.job(Review, made)
    assert again.attempt is not None
    assert (again.state, again.attempt.status) == ("queued", "pending")
    assert again.attempt.id != attempt.id


@pytest.mark.slow
@by_one_door
def test_a_row_is_explained_by_itself_and_then_by_its_attempt(desk: Desk, board: Board, engine: Engine) -> None:
    worker_runs(engine)
    made = desk.submitted()
    restart = f"async-task restart test.review {made} --reason mended"
    assert [kind for kind, _ in explained(desk, made)] == ["next"]
    attempt = desk.attempts()[0]
    claimed(engine, attempt.id, lease=dt.timedelta(hours=1))
    assert [kind for kind, _ in explained(desk, made)] == ["performing"]
    assert desk.app.job(Review, made).state == "running"
    with engine.begin() as connection:
        connection.execute(delete(Attempt))
    (lost,) = desk.app.explain_job(Review, made).reasons
    last = desk.row(made).last_submitted_at
    assert (lost.kind, lost.remedy, lost.until) == ("no_attempt", restart, last + dt.timedelta(hours=3))
    desk.pass_by(3 * HOUR)
    assert explained(desk, made) == [("no_attempt", "async-task process-models")]
    desk.app.process_models()
    board.will_raise(RuntimeError("x"))
    desk.go_on()
    reason = desk.app.explain_job(Review, made).reasons[0]
    assert (reason.kind, "after its last error" in reason.words) == ("not_due", True)
    with Session(engine) as session, session.begin():
        session.get_one(Attempt, desk.attempts()[0].id).cancel(session)
    (ended,) = desk.app.explain_job(Review, made).reasons
    assert ended.kind == "no_attempt"
    assert ended.words.startswith("its attempt has ended as canceled")
    desk.pass_by(4 * DAY)
    assert explained(desk, made) == [("window_over", restart)]
    assert desk.app.job(Review, made).state == "expired"
    desk.do(made, "cancel")
    assert explained(desk, made) == [("canceled", restart)]


@pytest.mark.slow
@by_one_door
def test_what_was_never_submitted_waits_for_its_delay_or_is_processed_says_so(
    desk: Desk, board: Board, engine: Engine
) -> None:
    worker_runs(engine)
    later = desk.submitted(delay=dt.timedelta(days=1))
    (waits,) = desk.app.explain_job(Review, later).reasons
    assert (waits.kind, waits.until) == ("delayed", desk.row(later).last_submitted_at)
    assert desk.app.job(Review, later).state == "waiting"
    desk.app.pause("default", reason="the board is away")
    assert [kind for kind, _ in explained(desk, later)] == ["delayed", "paused"]
    desk.app.resume("default")
    never = desk.by_hand(error="Broken: order 7")
    restart = f"async-task restart test.review {never} --reason mended"
    assert explained(desk, never) == [("not_submitted", restart)]
    assert "is not_yet_submitted" in str(desk.app.job(Review, never).why_not("restart"))
    desk.do(never, "cancel")
    assert explained(desk, never) == [("canceled", "")]
    done = desk.submitted()
    desk.go_on()
    assert explained(desk, done) == [("processed", "")]


@by_one_door
def test_a_wrong_model_or_key_raises_and_a_long_key_is_found_by_its_own_text(desk: Desk, engine: Engine) -> None:
    for model in (Pair, Paper, Letter):
        register(model)
    letter = desk.submitted(Letter)
    with pytest.raises(UnknownAttempt, match="there is no Review 999"):
        desk.app.job(Review, 999)
    with pytest.raises(UnknownAttempt, match=f"there is no Paper {letter}"):
        desk.app.explain_job(Paper, letter)
    assert desk.app.job(Letter, letter).model == "test.letter"
    with pytest.raises(UnknownTarget, match=r"did you mean 'test.review'"):
        desk.app.job("test.reviw", 7)
    with pytest.raises(InvalidArguments, match="'x' is no key of Review"):
        desk.app.explain_job(Review, "x")
    with pytest.raises(ConfigurationError, match="an Asyncable or a Pollable"):
        desk.app.job(Attempt, 7)
    office = "Office, of " + 80 * "x"
    with Session(engine) as session, session.begin():
        Pair(office=office, number=1).submit_for_processing(session)
    found = desk.app.job(Pair, (office, 1))
    assert desk.app.job("test.review_pair", found.key).submitted_at == found.submitted_at
