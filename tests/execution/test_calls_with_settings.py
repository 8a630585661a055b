"""A call with a retry policy and a time limit of its own: they go before those of its target."""

import asyncio
import datetime as dt
import json
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from async_task import (
    AsyncTask,
    Attempt,
    Failed,
    InvalidArguments,
    InvalidState,
    Parked,
    Retried,
    Retry,
    Succeeded,
    policy,
    target,
)
from clockwork import let_pass, row_of
from conftest import by_one_door
from elsewhere import await_
from outbox import Broken, act, act_later, act_leased, act_shared, effects, will
from writing import Sessions, count, statements_of

Write = Callable[..., Attempt]


def broken(*_: Any) -> None:
    raise Broken("no")


@pytest.mark.slow
def test_its_retry_goes_before_the_policy(app: AsyncTask, engine: Engine, write: Write) -> None:
    will(broken)
    own = write(act, retry=Retry.schedule(7))
    outcome = app.perform(own.id)
    assert isinstance(outcome, Retried)
    assert outcome.after == dt.timedelta(seconds=7)  # the target's: 60 s
    let_pass(engine, 10)
    assert isinstance(app.perform(own.id), Failed)
    other = app.perform(write(act).id)
    assert isinstance(other, Retried)
    assert other.after == dt.timedelta(seconds=60)


@by_one_door
def test_max_attempts_goes_before_that_of_its_retry(app: AsyncTask, engine: Engine, write: Write) -> None:
    will(broken)
    assert isinstance(app.perform(write(act, retry=Retry.never(), max_attempts=5).id), Failed)  # no further try
    assert isinstance(app.perform(write(act, retry=Retry.every(1, max_attempts=5), max_attempts=1).id), Failed)
    assert isinstance(app.perform(write(act, retry=Retry.every(1, max_attempts=1), max_attempts=2).id), Retried)


@target("settings.year", timeout=dt.timedelta(days=365))
def in_a_year(session: Session) -> None: ...


@pytest.mark.slow
def test_a_limit_longer_than_any_of_the_server_is_none(app: AsyncTask, write: Write) -> None:
    assert isinstance(app.perform(write(in_a_year).id), Succeeded)


@pytest.mark.slow
def test_its_time_limit_ends_a_coroutine(app: AsyncTask, write: Write) -> None:
    will(lambda: asyncio.sleep(30))
    outcome = app.perform(write(act_later, timeout=0.05).id)
    assert isinstance(outcome, Retried)
    assert outcome.error is not None
    assert "longer than its limit, 0.05 s" in outcome.error


@target("settings.brief", retry=Retry.every(60), timeout=0.05)
async def brief() -> None:
    await asyncio.sleep(0.3)


@pytest.mark.slow
@by_one_door
def test_it_may_be_longer_than_that_of_the_target(app: AsyncTask, write: Write) -> None:
    assert isinstance(app.perform(write(brief).id), Retried)
    assert isinstance(app.perform(write(brief, timeout=20).id), Succeeded)


@target("settings.apart", retry=Retry.every(60), isolate=True, timeout=30)
def apart() -> None:
    time.sleep(20)


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")  # this process has the SQLite database open, so that nothing is forked
@by_one_door
def test_a_child_process_is_ended_at_its_time_limit(app: AsyncTask, write: Write) -> None:
    began = time.monotonic()
    outcome = app.perform(write(apart, timeout=0.3).id)
    assert isinstance(outcome, Retried)
    assert "longer than its limit, 0.3 s" in str(outcome.error)
    assert time.monotonic() - began < 15


@by_one_door
def test_a_worker_and_a_batch_read_it_with_the_claim(app: AsyncTask, engine: Engine, sessions: Sessions) -> None:
    will(broken)
    with sessions.begin() as session:
        ids = Attempt.create_many(session, [{"target": act, "retry": Retry.every(5)}, {"target": act}] * 3)
    assert app.run_batch().retried == 6
    waits = [row_of(engine, one).due_at - row_of(engine, one).updated_at for one in ids]
    assert [round(one.total_seconds()) for one in waits] == [5, 60] * 3


@pytest.mark.only_on("postgresql")
@by_one_door
def test_calls_share_a_transaction_only_with_the_same_time_limit(app: AsyncTask, sessions: Sessions) -> None:
    together = defaultdict[int, list[int]](list)
    will(lambda session, number: together[session.scalar(select(func.pg_current_xact_id()))].append(number % 2))
    rows = [
        {"target": act_shared, "method_args": {"number": number}, "timeout": [None, 20][number % 2]}
        for number in range(40)
    ]

    def some_shared() -> bool:
        with sessions.begin() as session:
            Attempt.create_many(session, rows)
        assert app.run_batch().succeeded == 40
        return max(map(len, together.values())) > 1

    await_(some_shared, "calls shared a transaction")  # on a busy machine each may take too long to share one
    assert {len(set(limits)) for limits in together.values()} == {1}


@by_one_door
def test_a_person_who_retries_gets_the_same_rules(app: AsyncTask, engine: Engine, write: Write) -> None:
    will(broken)
    attempt = write(act, retry=Retry.never())
    app.perform(attempt.id)
    app.write(lambda session: session.get(Attempt, attempt.id).retry_now(session=session))
    assert isinstance(app.perform(attempt.id), Failed)


def test_a_call_without_settings_is_written_to_tables_that_have_no_column_for_them(engine: Engine) -> None:
    with Session(engine, expire_on_commit=False) as session, session.begin(), statements_of(engine) as seen:
        plain = [Attempt.create(session, target=act), Attempt.options(session=session).call(act)]
        session.flush()
        assert not any("call_settings" in statement for statement in seen)
        assert [one.call_settings for one in plain] == [None, None]
        limited = Attempt.create(session, target=act, timeout=5)
    assert row_of(engine, limited.id).call_settings == '{"timeout": 5.0}'


@pytest.mark.slow
def test_what_a_newer_version_has_written_is_parked_uncharged(app: AsyncTask, engine: Engine, write: Write) -> None:
    will(lambda: None)
    attempt = write(act, timeout=5)
    _set(engine, attempt, json.dumps({"timeout": 5, "mood": "good"}))
    outcome = app.perform(attempt.id)
    assert isinstance(outcome, Parked)
    assert "call_settings" in outcome.reason
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_errors, row.claim_id) == ("pending", 0, 0, None)
    _set(engine, attempt, None)
    let_pass(engine, 60)
    assert isinstance(app.perform(attempt.id), Succeeded)


def _set(engine: Engine, attempt: Attempt, text: str | None) -> None:
    with engine.begin() as connection:
        connection.execute(update(Attempt).where(Attempt.id == attempt.id).values(call_settings=text))


@by_one_door
def test_a_time_limit_that_nothing_can_enforce_any_more_is_parked(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(act_leased)
    _set(engine, attempt, '{"timeout": 5.0}')
    outcome = app.perform(attempt.id)
    assert isinstance(outcome, Parked)
    assert "nothing can end a plain def in mode='leased'" in outcome.reason


@pytest.mark.in_turns
@pytest.mark.parametrize("given", [{"timeout": 5}, {"retry": Retry(lambda errors: 1)}, {"retry": "often"}])
def test_what_cannot_hold_is_refused_when_it_is_written(sessions: Sessions, engine: Engine, given: Any) -> None:
    call = {"target": act_leased, **given}
    with sessions.begin() as session:
        for write in (
            lambda: Attempt.create(session, **call),
            lambda: Attempt.options(session=session, **given).call(act_leased),
            lambda: Attempt.ensure(session, **call, idempotence_token="T"),
            lambda: Attempt.create_many(session, [call]),
        ):
            with pytest.raises(InvalidArguments):
                write()
    assert count(engine) == 0


def test_they_are_written_once(sessions: Sessions) -> None:
    with sessions.begin() as session:
        attempt = Attempt.create(session, target=act, timeout=5)
        session.flush()
        with pytest.raises(InvalidState, match="call_settings is written once"):
            attempt.call_settings = None


@by_one_door
def test_they_are_told_in_words(app: AsyncTask, write: Write) -> None:
    attempt = write(act, retry=Retry.every(90), timeout=5)
    told = {"retry": "every 90 s", "timeout": "5 s"}
    assert app.attempts.get(attempt.id).own_rules == told
    assert [one.own_rules for one in app.attempts.list().attempts] == [told]
    assert app.attempts.get(write(act).id).own_rules == {}


# retry_on and discard_on


class Gone(Broken): ...


@target("settings.kinds", retry=Retry.every(60), retry_on=(Broken, OSError), discard_on=[Gone, PermissionError])
class Kinds:
    @staticmethod
    def fail(how: str) -> None:
        raise {"broken": Broken, "gone": Gone, "key": KeyError, "file": FileExistsError}[how]("of 17")

    @staticmethod
    def write_and_fail(session: Session) -> None:
        session.execute(effects.insert().values(attempt_id="x", number=1, what="undone"))
        raise KeyError("of 17")

    @staticmethod
    def take(number: int) -> None: ...

    @staticmethod
    @policy(timeout=0.05)
    async def stay() -> None:
        await asyncio.sleep(20)


@pytest.mark.slow
def test_only_errors_of_its_types_are_retried(app: AsyncTask, engine: Engine, write: Write) -> None:
    found = {how: app.perform(write(Kinds, "fail", {"how": how}).id) for how in ("broken", "file", "gone", "key")}
    assert [type(one) for one in found.values()] == [Retried, Retried, Failed, Failed]
    gone, key = found["gone"], found["key"]
    assert isinstance(gone, Failed)
    assert isinstance(key, Failed)
    assert gone.reason == "Gone: of 17"
    assert key.reason == "its type is not in retry_on: KeyError: 'of 17'"
    row = row_of(engine, key.attempt_id)
    assert (row.status, row.num_attempts, row.num_errors) == ("failed", 1, 1)
    assert row.last_error.startswith("its type is not in retry_on: KeyError: 'of 17'")


@by_one_door
def test_an_error_that_ends_it_undoes_what_it_wrote(app: AsyncTask, engine: Engine, write: Write) -> None:
    assert isinstance(app.perform(write(Kinds, "write_and_fail").id), Failed)
    with engine.connect() as connection:
        assert connection.execute(effects.select()).all() == []


@pytest.mark.slow
def test_a_time_limit_is_retried_although_retry_on_does_not_name_it(app: AsyncTask, write: Write) -> None:
    assert isinstance(app.perform(write(Kinds, "stay").id), Retried)


@by_one_door
def test_arguments_that_no_longer_fit_are_retried_too(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(Kinds, "take", {"number": 1})
    with engine.begin() as connection:
        connection.execute(update(Attempt).where(Attempt.id == attempt.id).values(method_args='{"nummer": 1}'))
    assert isinstance(app.perform(attempt.id), Retried)
