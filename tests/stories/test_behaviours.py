"""The promises about one attempt, in the order of docs/origins.md: kept, actions, counters, mended."""

import contextlib
import datetime as dt
import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, Table, func, select, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

import elsewhere
from async_task import (
    Again,
    AsyncTask,
    Attempt,
    AttemptBatchJob,
    AttemptJob,
    Busy,
    Expired,
    Failed,
    InvalidState,
    NotDue,
    NotPending,
    Outcome,
    Parked,
    Retried,
    Status,
    Succeeded,
    Superseded,
    UnknownMethod,
)
from async_task.queue import fetch
from async_task.queue.claim import Claim, ClaimRequest
from async_task.queue.recovery import recover_claim
from clockwork import forget_beats, let_pass, row_of
from conftest import by_one_door
from databases import Database
from outbox import (
    BOX,
    BoxEncryptor,
    Broken,
    Client,
    HookedAttempt,
    act,
    act_boxed,
    act_by_default_policy,
    act_leased,
    application,
    calls,
    effect,
    events_of,
    heard,
    hooks,
    will,
)

Write = Callable[..., Attempt]
Sessions = sessionmaker[Session]
TABLE: Table = Attempt.__table__  # type: ignore[assignment]
LEASE = dt.timedelta(seconds=1)
AT_REST = [Status.SUCCEEDED, Status.FAILED, Status.EXPIRED, Status.CANCELED]
GIVEN_UP = [Status.FAILED, Status.EXPIRED, Status.CANCELED]
HOUR = dt.timedelta(hours=1)


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def is_about(moment: dt.datetime, expected: dt.datetime) -> bool:
    return abs((moment - expected).total_seconds()) < 5


def bring_to(status: Status, app: AsyncTask, write: Write, sessions: Sessions) -> Attempt:
    """An attempt that reached this status as any attempt would."""
    attempt = write(Client, "ping")
    if status is Status.SUCCEEDED:
        app.perform(attempt.id)
    elif status is not Status.PENDING:
        verb = {Status.FAILED: "fail", Status.EXPIRED: "expire", Status.CANCELED: "cancel"}[status]
        with sessions.begin() as session:
            getattr(attempt, verb)(session)
            session.flush()
            session.expunge(attempt)
    calls.clear()
    return attempt


def take(engine: Engine, attempt_id: uuid.UUID, worker: str = "another-worker") -> Claim:
    """Claim an attempt as another worker does."""
    claim = fetch.claim_one(engine, TABLE, worker, LEASE, attempt_id, uuid.uuid4())
    assert isinstance(claim, Claim)
    return claim


def lose(app: AsyncTask, engine: Engine, attempt_id: uuid.UUID) -> None:
    """Let one try of this attempt be lost with its worker, and let a sweep recover it."""
    let_pass(engine, HOUR)
    take(engine, attempt_id)
    let_pass(engine, 10)
    forget_beats(engine)
    app.sweep()


def said_inside(app: AsyncTask, attempt: Attempt, ask: Callable[[], object]) -> Any:
    """What `ask()` returns or raises while the attempt is being performed."""
    said: list[Any] = []

    def ask_now() -> None:
        try:
            said.append(ask())
        except Exception as error:
            said.append(error)

    will(ask_now)
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    return said[0]


# Kept


@pytest.mark.slow
@pytest.mark.parametrize("commits", [True, False])
@by_one_door
def test_a_rollback_of_the_callers_transaction_leaves_no_row_and_no_call(
    app: AsyncTask, engine: Engine, sessions: Sessions, commits: bool
) -> None:
    with sessions() as session:
        session.begin()
        attempt_id = Attempt.create(target=Client, method_name="ping", session=session).id
        session.flush()
        with engine.connect() as another:
            assert another.scalar(select(func.count()).select_from(TABLE)) == 0
        session.commit() if commits else session.rollback()
    assert isinstance(app.perform(attempt_id), Succeeded if commits else NotPending)
    assert app.run_batch().claimed == 0
    assert len(calls) == int(commits)
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(TABLE)) == int(commits)


@pytest.mark.parametrize("status", AT_REST)
@by_one_door
def test_terminal_states_set_completed_at(
    app: AsyncTask, engine: Engine, write: Write, sessions: Sessions, status: Status
) -> None:
    row = row_of(engine, bring_to(status, app, write, sessions).id)
    assert row.status is status
    assert is_about(row.completed_at, now())


@pytest.mark.slow
@pytest.mark.parametrize("status", AT_REST)
@by_one_door
def test_there_is_no_way_back_except_an_explicit_retry(
    app: AsyncTask, engine: Engine, write: Write, sessions: Sessions, status: Status
) -> None:
    attempt = bring_to(status, app, write, sessions)
    let_pass(engine, dt.timedelta(days=30))
    before = row_of(engine, attempt.id)
    app.sweep()
    assert app.run_batch().claimed == 0
    assert row_of(engine, attempt.id) == before
    if status in GIVEN_UP:
        with sessions.begin() as session:
            attempt.retry_now(session)
        assert app.run_batch().succeeded == 1


@pytest.mark.slow
def test_an_attempt_not_yet_due_is_not_performed_and_nothing_about_it_changes(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempt = write(Client, "ping", scheduled_at=now() + HOUR)
    before = row_of(engine, attempt.id)
    assert app.perform(attempt.id) == NotDue(attempt.id, before.due_at)
    assert app.run_batch().claimed == 0
    assert row_of(engine, attempt.id) == before
    assert (before.num_attempts, calls) == (0, [])
    let_pass(engine, HOUR)
    assert app.perform(attempt.id) == Succeeded(attempt.id)


@pytest.mark.parametrize("target", [act, act_leased])
def test_the_try_is_counted_and_committed_before_the_call(
    app: AsyncTask, engine: Engine, write: Write, target: object
) -> None:
    attempt = write(target)
    row = said_inside(app, attempt, lambda: row_of(engine, attempt.id))
    assert (row.status, row.num_attempts, row.completed_at) == (Status.PENDING, 1, None)
    assert row.claim_id is not None
    assert is_about(row.attempted_at, now())


@pytest.mark.only_on("postgresql", "mysql")
def test_the_row_is_locked_while_the_call_runs(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(act)
    lock = select(TABLE.c.id).where(TABLE.c.id == attempt.id).with_for_update(nowait=True)

    def lock_it() -> None:
        with engine.begin() as connection:
            connection.execute(lock)

    assert isinstance(said_inside(app, attempt, lock_it), OperationalError)
    lock_it()


def test_a_worker_that_lost_its_claim_does_not_make_the_call(
    engine: Engine, door: str, async_engine_url: str, write: Write, database: Database
) -> None:
    class Robbed(AttemptJob):
        def run(self, lane: Any, claim: Claim) -> Outcome:
            with engine.begin() as connection:
                connection.execute(update(TABLE).where(TABLE.c.id == claim.id).values(claim_id=uuid.uuid4()))
            return super().run(lane, claim)

    app = application(engine, door, async_engine_url, attempt_job=Robbed)
    attempt = write(effect)
    assert app.perform(attempt.id) == Superseded(attempt.id)
    assert row_of(engine, attempt.id).status is Status.PENDING
    give_back(engine, attempt.id)


def give_back(engine: Engine, attempt_id: uuid.UUID) -> None:
    free = {"claim_id": None, "claimed_by": None, "lease_until": None}
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == attempt_id).values(free))


def test_the_status_is_committed_together_with_the_targets_own_rows(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempt = write(effect)
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    assert row_of(engine, attempt.id).status is Status.SUCCEEDED  # clockwork: an effect is there, and once


@pytest.mark.slow
def test_a_crash_during_the_call_leaves_the_row_pending_and_the_try_counted(
    app: AsyncTask, engine: Engine, write: Write, door: str, database: Database
) -> None:
    attempt = write(Client, "die")
    url = database.sync_url if door == "sync" else database.async_url
    with elsewhere.process(elsewhere.perform, url, 1.0, [attempt.id]) as process:
        assert process.exit_code() == 70
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.completed_at) == (Status.PENDING, 1, None)
    let_pass(engine, 10)
    forget_beats(engine)
    assert app.sweep().recovered == 1
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_losses, row.num_errors) == (Status.PENDING, 1, 1, 0)


def test_success_makes_num_attempts_1_and_sets_completed_at(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping")
    assert row_of(engine, attempt.id).num_attempts == 0
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_errors, row.last_error) == (Status.SUCCEEDED, 1, 0, None)
    assert is_about(row.completed_at, now())


def test_a_target_that_raises_leaves_the_row_pending_with_one_try_and_the_error_reaches_the_hook(
    engine: Engine, door: str, async_engine_url: str, sessions: Sessions
) -> None:
    heard.clear()
    hooks.clear()
    app = application(engine, door, async_engine_url, model=HookedAttempt)
    with sessions.begin() as session:
        attempt_id = HookedAttempt.create(target=Client, method_name="fail", session=session).id
    assert isinstance(app.perform(attempt_id), Retried)
    with sessions() as session:
        attempt = session.get_one(HookedAttempt, attempt_id)
        assert (attempt.status, attempt.num_attempts, attempt.completed_at) == (Status.PENDING, 1, None)
    ((heard_id, error),) = heard
    assert (heard_id, type(error)) == (str(attempt_id), Broken)


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "outcome"), [("fail", Failed), ("expire", Expired)])
def test_the_hook_may_fail_or_expire_the_attempt(
    engine: Engine, door: str, async_engine_url: str, sessions: Sessions, verb: str, outcome: type[Outcome]
) -> None:
    hooks[:] = [lambda attempt, error: getattr(attempt, verb)()]
    app = application(engine, door, async_engine_url, model=HookedAttempt)
    with sessions.begin() as session:
        attempt_id = HookedAttempt.create(target=Client, method_name="fail", session=session).id
    assert isinstance(app.perform(attempt_id), outcome)


@pytest.mark.parametrize(("verb", "status"), [("expire", Status.SUCCEEDED), ("fail", Status.EXPIRED)])
@by_one_door
def test_expire_and_fail_raise_invalid_state_unless_the_attempt_is_pending(
    app: AsyncTask, engine: Engine, write: Write, sessions: Sessions, verb: str, status: Status
) -> None:
    attempt = bring_to(status, app, write, sessions)
    with sessions.begin() as session, pytest.raises(InvalidState, match=f"is {status}, and must be pending"):
        getattr(attempt, verb)(session)


@by_one_door
def test_arguments_make_a_keyword_call(app: AsyncTask, write: Write) -> None:
    app.perform(write(Client, "fulfill", {"order_number": 7, "customer_token": "c-1"}).id)
    assert calls == [("c-1", 7)]


@pytest.mark.parametrize("nothing", [None, {}])
@by_one_door
def test_no_arguments_make_a_call_without_arguments(app: AsyncTask, write: Write, nothing: Any) -> None:
    app.perform(write(Client, "fail", nothing).id)
    assert calls == [("fail", "no such order")]  # the target's own default


@by_one_door
def test_the_row_names_its_encryptor_and_rows_under_an_old_encryptor_stay_readable(
    engine: Engine, door: str, async_engine_url: str, write: Write
) -> None:
    old, new = BoxEncryptor("test.old"), BoxEncryptor("test.new")
    app = application(engine, door, async_engine_url, encryptors=[old, new])
    attempts = {name: write(Client, "fail", {"message": name}, encryptor=name) for name in ("test.old", "test.new")}
    attempts["null"] = write(Client, "fail", {"message": "null"})
    for name, attempt in attempts.items():
        row = row_of(engine, attempt.id)
        assert row.encryptor == name
        assert (name in row.method_args) == (name == "null")
        assert attempt.method_args == {"message": name}
        app.perform(attempt.id)
    assert sorted(calls) == [("fail", "null"), ("fail", "test.new"), ("fail", "test.old")]


@by_one_door
def test_a_targets_encryptor_is_used_unless_the_call_names_its_own(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    will(calls.append)
    names = {}
    for encryptor in (None, "null", BoxEncryptor("test.of_the_call")):
        attempt = write(act_boxed, None, {"card": "4111"}, encryptor=encryptor)
        names[row_of(engine, attempt.id).encryptor] = app.perform(attempt.id)
    assert list(names) == [BOX.name, "null", "test.of_the_call"]
    assert calls == ["4111"] * 3


@by_one_door
def test_an_attempt_with_the_ciphertext_of_another_row_is_parked_uncharged(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    will(calls.append)
    rich, poor = (write(act_boxed, None, {"card": card}) for card in ("4111-rich", "4222-poor"))
    with engine.begin() as connection:
        moved = update(TABLE).where(TABLE.c.id == poor.id).values(method_args=rich.encoded_args)
        connection.execute(moved)
    outcome = app.perform(poor.id)
    assert isinstance(outcome, Parked)
    assert "DecryptionFailed" in outcome.reason
    assert "4111" not in outcome.reason
    row = row_of(engine, poor.id)
    assert (row.status, row.num_attempts, row.num_errors, row.num_crashes) == (Status.PENDING, 0, 0, 0)
    assert calls == []


def test_target_method_and_token_are_unique_together(write: Write) -> None:
    write(Client, "ping", idempotence_token="once")
    write(Client, "fail", idempotence_token="once")
    write(effect, idempotence_token="once")
    write(Client, "ping", idempotence_token="ONCE")
    with pytest.raises(IntegrityError):
        write(Client, "ping", idempotence_token="once")


def test_a_null_token_is_never_a_duplicate(engine: Engine, write: Write) -> None:
    for _ in range(3):
        write(Client, "ping")
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(TABLE)) == 3


@pytest.mark.slow
def test_the_batch_job_hands_each_due_attempt_to_a_single_attempt_job(
    engine: Engine, door: str, async_engine_url: str, write: Write, app: AsyncTask, sessions: Sessions
) -> None:
    handed: list[uuid.UUID] = []

    class Noted(AttemptJob):
        def run(self, lane: Any, claim: Claim) -> Outcome:
            handed.append(claim.id)
            return super().run(lane, claim)

    due = [write(Client, "ping").id for _ in range(3)]
    write(Client, "ping", scheduled_at=now() + HOUR)
    for status in AT_REST:
        bring_to(status, app, write, sessions)
    report = application(engine, door, async_engine_url, attempt_job=Noted).run_batch()
    assert (report.claimed, report.succeeded) == (3, 3)
    assert sorted(handed) == sorted(due)


def test_a_duplicate_delivery_of_a_single_attempt_job_does_nothing(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempt = write(Client, "ping")
    app.perform(attempt.id)
    before = row_of(engine, attempt.id)
    assert app.perform(str(attempt.id)) == NotPending(attempt.id, Status.SUCCEEDED)
    assert row_of(engine, attempt.id) == before
    assert len(calls) == 1


@pytest.mark.slow
def test_an_attempt_has_at_most_one_performer_at_a_time(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(act)
    will(lambda: calls.append("called"))
    start = threading.Barrier(4)
    outcomes: list[Outcome] = []

    def perform() -> None:
        start.wait()
        outcomes.append(app.perform(attempt.id))

    threads = [threading.Thread(target=perform) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == ["called"]
    assert outcomes.count(Succeeded(attempt.id)) == 1
    assert {type(outcome) for outcome in outcomes} <= {Succeeded, Busy, NotPending}


# Actions and states


def test_perform_makes_the_call_of_a_due_attempt(app: AsyncTask, write: Write) -> None:
    attempt = write(Client, "ping")
    assert app.perform(attempt.id) == Succeeded(attempt.id)


def test_perform_returns_not_due_before_the_attempt_is_due(app: AsyncTask, write: Write) -> None:
    attempt = write(Client, "ping", scheduled_at=now() + HOUR)
    assert isinstance(app.perform(attempt.id), NotDue)


@pytest.mark.slow
@pytest.mark.parametrize("target", [act, act_leased])
def test_perform_returns_busy_while_the_attempt_is_being_performed(
    app: AsyncTask, engine: Engine, door: str, async_engine_url: str, write: Write, target: object
) -> None:
    attempt = write(target)
    other = application(engine, door, async_engine_url)
    answer = said_inside(app, attempt, lambda: other.perform(attempt.id))
    row = row_of(engine, attempt.id)
    assert isinstance(answer, Busy)
    assert answer.by is not None
    assert answer.since == row.attempted_at
    assert row.num_attempts == 1


@pytest.mark.slow
@pytest.mark.parametrize("status", AT_REST)
@by_one_door
def test_perform_returns_not_pending_for_a_terminal_attempt(
    app: AsyncTask, engine: Engine, write: Write, sessions: Sessions, status: Status
) -> None:
    attempt = bring_to(status, app, write, sessions)
    before = row_of(engine, attempt.id)
    assert app.perform(attempt.id) == NotPending(attempt.id, status)
    assert row_of(engine, attempt.id) == before


ENDS = {"expire": Status.EXPIRED, "fail": Status.FAILED, "cancel": Status.CANCELED}
VERBS: dict[str, Callable[[Attempt, Session], None]] = {
    "expire": lambda attempt, session: attempt.expire(session),
    "fail": lambda attempt, session: attempt.fail(session),
    "cancel": lambda attempt, session: attempt.cancel(session),
    "retry_now": lambda attempt, session: attempt.retry_now(session),
    "reschedule": lambda attempt, session: attempt.reschedule(session, at=now() + HOUR),
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", ENDS)
@by_one_door
def test_expire_fail_and_cancel_end_a_pending_attempt(
    app: AsyncTask, engine: Engine, write: Write, sessions: Sessions, verb: str
) -> None:
    attempt = write(Client, "ping")
    with sessions.begin() as session:
        VERBS[verb](attempt, session)
    row = row_of(engine, attempt.id)
    assert row.status is ENDS[verb]
    assert is_about(row.completed_at, now())
    assert (app.run_batch().claimed, row.num_attempts, row.num_errors) == (0, 0, 0)


@by_one_door
def test_retry_now_makes_a_pending_attempt_due_now(
    app: AsyncTask, engine: Engine, write: Write, sessions: Sessions
) -> None:
    attempt = write(Client, "ping", scheduled_at=now() + HOUR)
    with sessions.begin() as session:
        attempt.retry_now(session)
    assert is_about(row_of(engine, attempt.id).due_at, now())
    assert app.perform(attempt.id) == Succeeded(attempt.id)


@by_one_door
def test_reschedule_makes_a_pending_attempt_due_at_that_instant(
    app: AsyncTask, engine: Engine, write: Write, sessions: Sessions
) -> None:
    attempt, then = write(Client, "ping"), now().replace(microsecond=0) + HOUR
    with sessions.begin() as session:
        attempt.reschedule(session, at=then)
    assert app.perform(attempt.id) == NotDue(attempt.id, then)
    let_pass(engine, HOUR)
    assert app.perform(attempt.id) == Succeeded(attempt.id)


@pytest.mark.in_turns
@pytest.mark.parametrize("target", [act, act_leased])
@pytest.mark.parametrize("verb", VERBS)
@by_one_door
def test_no_action_changes_an_attempt_that_is_being_performed(
    app: AsyncTask, engine: Engine, write: Write, sessions: Sessions, verb: str, target: object
) -> None:
    attempt = write(target)

    def say_it() -> Any:
        with sessions.begin() as session:
            VERBS[verb](session.get_one(Attempt, attempt.id), session)

    answer = said_inside(app, attempt, say_it)
    row = row_of(engine, attempt.id)
    assert isinstance(answer, InvalidState)
    assert f"is being performed by {socket_name()}" in str(answer)
    assert f"since {row.attempted_at:%Y-%m-%d %H:%M:%S} UTC" in str(answer)
    assert (row.status, row.num_attempts) == (Status.SUCCEEDED, 1)
    assert events_of(engine, attempt.id) == []


def socket_name() -> str:
    import socket

    return f"{socket.gethostname()[:64]}:{os.getpid()}:"


@pytest.mark.in_turns
@pytest.mark.parametrize(
    ("verb", "status"),
    [(verb, status) for verb in VERBS for status in AT_REST if verb != "retry_now" or status is Status.SUCCEEDED],
)
@by_one_door
def test_every_other_action_on_a_terminal_attempt_raises_invalid_state_and_changes_nothing(
    app: AsyncTask, engine: Engine, write: Write, sessions: Sessions, verb: str, status: Status
) -> None:
    attempt = bring_to(status, app, write, sessions)
    before, events = row_of(engine, attempt.id), len(events_of(engine, attempt.id))
    with sessions.begin() as session, pytest.raises(InvalidState, match=f"{verb}: attempt .* is {status}"):
        VERBS[verb](attempt, session)
    assert row_of(engine, attempt.id) == before
    assert len(events_of(engine, attempt.id)) == events


@pytest.mark.slow
@pytest.mark.parametrize("status", GIVEN_UP)
@by_one_door
def test_retry_now_resets_the_counters_and_the_events_keep_the_history(
    app: AsyncTask, engine: Engine, write: Write, sessions: Sessions, status: Status
) -> None:
    attempt = write(Client, "fail")
    app.perform(attempt.id)
    lose(app, engine, attempt.id)
    with sessions.begin() as session:
        getattr(attempt, {Status.FAILED: "fail", Status.EXPIRED: "expire", Status.CANCELED: "cancel"}[status])(session)
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_errors, row.num_losses) == (status, 2, 1, 1)
    with sessions.begin() as session:
        session.get_one(Attempt, attempt.id).retry_now()
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_errors, row.num_losses) == (Status.PENDING, 2, 0, 0)
    assert row.completed_at is None
    assert is_about(row.due_at, now())
    assert [event.kind for event in events_of(engine, attempt.id)][:2] == ["error", "loss"]
    assert isinstance(app.perform(attempt.id), Retried)


# Counters


@pytest.mark.slow
def test_num_attempts_counts_tries(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(Client, "poll")
    for number in (1, 2, 3):
        app.perform(attempt.id)
        assert row_of(engine, attempt.id).num_attempts == number
        let_pass(engine, HOUR)


def test_a_claim_released_before_its_call_takes_its_try_back(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping")
    with engine.begin() as connection:
        connection.execute(update(TABLE).values(target="gone"))
    assert isinstance(app.perform(attempt.id), Parked)
    assert row_of(engine, attempt.id).num_attempts == 0


@pytest.mark.slow
def test_num_errors_counts_what_the_target_raised(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(Client, "fail")
    for number in (1, 2, 3):
        app.perform(attempt.id)
        row = row_of(engine, attempt.id)
        assert (row.num_attempts, row.num_errors, row.num_crashes) == (number, number, 0)
        let_pass(engine, HOUR)


@pytest.mark.slow
@pytest.mark.parametrize("do", [lambda: None, lambda: Again(after=1), lambda: 1 / 0])
@by_one_door
def test_num_losses_counts_the_losses_since_a_try_last_reported_back(
    app: AsyncTask, engine: Engine, write: Write, do: Callable[[], object]
) -> None:
    attempt = write(act)
    for number in (1, 2):
        lose(app, engine, attempt.id)
        row = row_of(engine, attempt.id)
        assert (row.status, row.num_attempts, row.num_losses, row.num_errors) == (Status.PENDING, number, number, 0)
    will(do)
    app.perform(attempt.id)
    row = row_of(engine, attempt.id)
    assert (row.num_attempts, row.num_losses) == (3, 0)


def test_three_crashes_in_a_row_end_the_attempt_failed(engine: Engine, write: Write) -> None:
    attempt = write(act)
    for _ in range(3):
        recover_claim(engine, TABLE, take(engine, attempt.id), "its process was killed by SIGSEGV")
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_crashes, row.num_errors) == (Status.FAILED, 3, 3, 0)
    assert row.last_error.startswith("crashed: 3 starts in a row")
    assert row.completed_at is not None


def test_again_counts_as_neither_error_nor_crash(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(Client, "poll")
    assert app.perform(attempt.id) == Retried(attempt.id, dt.timedelta(seconds=30))
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_errors, row.num_crashes, row.last_error) == (Status.PENDING, 0, 0, None)
    assert events_of(engine, attempt.id) == []


def test_parking_counts_as_neither_error_nor_crash(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(Client, "fail")
    app.perform(attempt.id)
    let_pass(engine, HOUR)
    with engine.begin() as connection:
        connection.execute(update(TABLE).values(method_name="gone"))
    assert isinstance(app.perform(attempt.id), Parked)
    row = row_of(engine, attempt.id)
    assert (row.num_attempts, row.num_errors, row.num_crashes) == (1, 1, 0)


def test_due_at_is_moved_by_a_retry(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(Client, "fail")
    app.perform(attempt.id)
    assert is_about(row_of(engine, attempt.id).due_at, now() + dt.timedelta(seconds=60))


def test_due_at_is_moved_by_a_poll(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(Client, "poll", {"seconds": 300})
    app.perform(attempt.id)
    assert is_about(row_of(engine, attempt.id).due_at, now() + dt.timedelta(seconds=300))


def test_due_at_is_moved_by_parking(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping")
    with engine.begin() as connection:
        connection.execute(update(TABLE).values(target="gone"))
    outcome = app.perform(attempt.id)
    assert isinstance(outcome, Parked)
    assert is_about(row_of(engine, attempt.id).due_at, now() + outcome.after)


@pytest.mark.slow
def test_due_at_is_never_moved_by_a_claim_and_a_recovered_attempt_keeps_its_place(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempt = write(act)
    due = row_of(engine, attempt.id).due_at
    assert said_inside(app, attempt, lambda: row_of(engine, attempt.id).due_at) == due
    other = write(Client, "ping")
    before = row_of(engine, other.id)
    lose(app, engine, other.id)
    row = row_of(engine, other.id)
    assert row.due_at - row.created_at == before.due_at - before.created_at


# Mended


@pytest.mark.slow
def test_the_examples_of_the_readme_work_as_printed(app: AsyncTask, sessions: Sessions) -> None:
    with sessions.begin():
        Attempt.call(Client.fulfill, "c-81", order_number=7355608)
        Attempt.create(
            target=Client,
            method_name="fulfill",
            method_args={"customer_token": "c-82", "order_number": 7355609},
        )
    assert app.run_batch().succeeded == 2
    assert sorted(calls) == [("c-81", 7355608), ("c-82", 7355609)]


def test_perform_on_a_finished_attempt_returns_not_pending_and_calls_no_hook(
    engine: Engine, door: str, async_engine_url: str, sessions: Sessions
) -> None:
    heard.clear()
    app = application(engine, door, async_engine_url, model=HookedAttempt)
    with sessions.begin() as session:
        attempt_id = HookedAttempt.create(target=Client, method_name="ping", session=session).id
    assert app.perform(attempt_id) == Succeeded(attempt_id)
    assert app.perform(attempt_id) == NotPending(attempt_id, Status.SUCCEEDED)
    assert heard == []


def test_by_default_an_error_is_retried_within_15_s_then_later_and_fails_after_4_days(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    def break_it() -> None:
        raise Broken

    will(break_it)
    attempt = write(act_by_default_policy)
    outcome = app.perform(attempt.id)
    assert isinstance(outcome, Retried)
    assert outcome.after <= dt.timedelta(seconds=15)
    let_pass(engine, dt.timedelta(days=4))
    assert isinstance(app.perform(attempt.id), Failed)
    assert row_of(engine, attempt.id).num_errors == 2


@pytest.mark.slow
def test_an_attempt_is_claimed_once_until_it_is_due_again(app: AsyncTask, engine: Engine, write: Write) -> None:
    write(Client, "fail")
    assert [app.run_batch().claimed for _ in range(3)] == [1, 0, 0]
    let_pass(engine, 61)
    assert [app.run_batch().claimed for _ in range(3)] == [1, 0, 0]


@pytest.mark.slow
def test_a_batch_does_not_claim_what_another_batch_performs(
    app: AsyncTask, engine: Engine, door: str, async_engine_url: str, write: Write
) -> None:
    other = application(engine, door, async_engine_url)
    assert said_inside(app, write(act), lambda: other.run_batch().claimed) == 0


def test_each_error_is_stored_in_last_error_and_in_one_event_without_arguments(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempt = write(Client, "fail", {"message": "no"})
    for _ in range(2):
        app.perform(attempt.id)
        let_pass(engine, HOUR)
    assert row_of(engine, attempt.id).last_error == "Broken: no"
    events = events_of(engine, attempt.id)
    assert [(one.kind, one.num_attempt, one.message) for one in events] == [
        ("error", 1, "Broken: no"),
        ("error", 2, "Broken: no"),
    ]
    assert all("raise Broken(message)" in one.detail for one in events)
    assert all("method_args" not in one.detail for one in events)


@pytest.mark.in_turns
@pytest.mark.parametrize(
    ("target", "method", "arguments"),
    [
        ("os:system", "__call__", '{"command": "exit"}'),
        ("os", "system", '{"command": "exit"}'),
        ("test.client", "__init__", "{}"),
        ("test.client", "_private", "{}"),
        ("test.client", "ping", "!!python/object/apply:os.system [exit]"),
        ("test.client", "ping", '{"!": "no such tag", "v": 1}'),
    ],
)
@by_one_door
def test_a_row_cannot_name_an_import_a_private_method_or_an_object(
    app: AsyncTask, engine: Engine, write: Write, target: str, method: str, arguments: str
) -> None:
    attempt = write(Client, "ping")
    values = {"target": target, "method_name": method, "method_args": arguments}
    with engine.begin() as connection:
        connection.execute(update(TABLE).values(values))
    outcome = app.perform(attempt.id)
    assert isinstance(outcome, Parked) or (isinstance(outcome, Retried) and "InvalidArguments" in outcome.error)
    assert calls == []


def test_a_method_name_that_begins_with_an_underscore_is_refused(engine: Engine, write: Write) -> None:
    with pytest.raises(UnknownMethod, match="beginning with _"):
        write(Client, "__init__")


def test_an_attempt_that_is_due_now_is_claimed_now(app: AsyncTask, engine: Engine, write: Write) -> None:
    due = now() + dt.timedelta(minutes=1)
    attempt = write(Client, "ping", scheduled_at=due)
    early = ClaimRequest("w", LEASE, "default", 1, uuid.uuid4(), began=due - dt.timedelta(microseconds=1))
    assert fetch.claim_due(engine, TABLE, early) == []
    (claim,) = fetch.claim_due(engine, TABLE, replace(early, began=due))
    assert claim.id == attempt.id
    give_back(engine, attempt.id)


def test_the_database_decides_what_is_due_and_not_a_stale_object(
    app: AsyncTask, engine: Engine, write: Write, sessions: Sessions
) -> None:
    attempt = write(Client, "ping")
    with sessions.begin() as session:
        session.get_one(Attempt, attempt.id).reschedule(at=now() + HOUR)
    assert attempt.is_due
    assert isinstance(app.perform(attempt.id), NotDue)


@pytest.mark.slow
def test_the_row_is_the_lock_so_that_no_attempt_blocks_another(app: AsyncTask, engine: Engine, write: Write) -> None:
    first, others = write(act), [write(Client, "ping").id for _ in range(5)]
    outcomes = said_inside(app, first, lambda: [app.perform(one) for one in others])
    assert outcomes == [Succeeded(one) for one in others]


def test_the_error_is_written_after_the_targets_own_writes_are_rolled_back(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempt = write(effect, None, {"what": "raise"})
    app.perform(attempt.id)
    assert row_of(engine, attempt.id).last_error == "Broken: after the write"
    assert len(events_of(engine, attempt.id, "error")) == 1
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(effects_table())) == 0


def effects_table() -> Table:
    from outbox import effects

    return effects


@pytest.mark.slow
def test_model_and_jobs_may_have_any_name(engine: Engine, door: str, async_engine_url: str, sessions: Sessions) -> None:
    class NightlyBatch(AttemptBatchJob):
        pass

    class OneCall(AttemptJob):
        pass

    app = application(engine, door, async_engine_url, model=HookedAttempt, attempt_job=OneCall, batch_job=NightlyBatch)
    with sessions.begin() as session:
        attempt = HookedAttempt.create(target=Client, method_name="ping", session=session)
        attempt.note = "a column of our own"
        attempt_id = attempt.id
    assert app.run_batch().succeeded == 1
    with contextlib.closing(app), sessions() as session:
        attempt = session.get_one(HookedAttempt, attempt_id)
        assert (attempt.status, attempt.note) == (Status.SUCCEEDED, "a column of our own")
