"""`ensure` once in each window (`within`), or once while one is pending (`until_done`)."""

import contextlib
import datetime as dt
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, StaticPool, create_engine, delete, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt, InvalidArguments, Status, Succeeded, target
from async_task.attempts.numbered import Numbered
from async_task.attempts.tokens import (
    LONGEST_GIVEN,
    SEPARATOR,
    argument_token,
    given_token,
    numbered_token,
    window_token,
)
from async_task.encryption.encryptors import register_encryptor
from clockwork import row_of
from conftest import by_one_door
from databases import Database
from outbox import Gate, Gated, gates
from writing import Client, Reversing, Sessions, book, count, run_async, statements_of

LENGTH = "2000000h"
"""228 years: the second window since 1970 begins in 2198, so that no test crosses its end."""
CALL: dict[str, Any] = {"target": book, "method_args": {"number": 1}}
OPEN: dict[str, Any] = {**CALL, "until_done": True}
ONCE: dict[str, Any] = {**CALL, "within": LENGTH}
TOKEN = {"idempotence_token": "T"}


def ensured(sessions: Sessions, **call: Any) -> uuid.UUID:
    with sessions.begin() as session:
        return Attempt.ensure(session, **call).id


def end(sessions: Sessions, attempt_id: uuid.UUID, how: str = "cancel") -> None:
    with sessions.begin() as session:
        getattr(session.get(Attempt, attempt_id), how)(session)


# In a window


@pytest.mark.parametrize("token", [TOKEN, {}])
def test_a_call_is_written_once_in_a_window(sessions: Sessions, engine: Engine, token: dict[str, Any]) -> None:
    first = ensured(sessions, **ONCE, **token)
    assert ensured(sessions, **ONCE, **token) == first
    end(sessions, first)
    assert ensured(sessions, **ONCE, **token) == first  # also after it has ended
    assert count(engine) == 1


def test_the_next_window_has_its_own(sessions: Sessions, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ensured(sessions, **ONCE, **TOKEN)
    later = dt.datetime(2200, 1, 1, tzinfo=dt.UTC)
    monkeypatch.setattr(
        "async_task.attempts.uniqueness.window_token", lambda token, length, now: window_token(token, length, later)
    )
    second = ensured(sessions, **ONCE, **TOKEN)
    assert second != first
    assert ensured(sessions, **ONCE, **TOKEN) == second


def test_windows_follow_one_another_from_1970() -> None:
    hour, noon = dt.timedelta(hours=1), dt.datetime(2026, 3, 29, 12, tzinfo=dt.UTC)
    tick = dt.timedelta(microseconds=1)
    tokens = [window_token("T", hour, noon + after) for after in (-tick, 0 * tick, hour - tick, hour)]
    assert tokens[1] == tokens[2] == f"T{SEPARATOR}window of 3600.000000 s from 2026-03-29T12:00:00+00:00"
    assert len(set(tokens)) == 3
    assert window_token("T", hour / 2, noon) != tokens[1]
    day = window_token("T", dt.timedelta(days=1), noon)
    assert day.endswith("from 2026-03-29T00:00:00+00:00")
    longest = window_token("T" * LONGEST_GIVEN, dt.timedelta(days=365_000), noon + tick)
    assert len(longest) <= 255
    assert len(window_token(argument_token("{}"), dt.timedelta(days=365_000), noon + tick)) <= 255


def test_the_window_is_that_of_the_databases_clock(sessions: Sessions, engine: Engine) -> None:
    with sessions.begin() as session:
        made = Attempt.ensure(session, **CALL, within="1h", **TOKEN)
        session.refresh(made)
        begin = made.created_at.replace(minute=0, second=0, microsecond=0)
        before = begin - dt.timedelta(hours=1)  # the hour may have ended between the two
        expected = [f"T{SEPARATOR}window of 3600.000000 s from {one.isoformat()}" for one in (begin, before)]
        assert made.idempotence_token in expected


def test_other_tokens_arguments_methods_and_lengths_have_windows_of_their_own(
    sessions: Sessions, engine: Engine
) -> None:
    calls: list[dict[str, Any]] = [
        {**ONCE, **TOKEN}, {**ONCE, "idempotence_token": "t"}, ONCE, {**ONCE, "method_args": {"number": 2}},
        {"target": Client, "method_name": "hurry", "within": LENGTH}, {**ONCE, **TOKEN, "within": "3000000h"},
        {**CALL, **TOKEN}, OPEN,
    ]  # fmt: skip
    for _ in range(2):
        ids = {ensured(sessions, **one) for one in calls}
        assert len(ids) == count(engine) == len(calls)


# While one is pending


@pytest.mark.in_turns
@pytest.mark.parametrize("token", [TOKEN, {}])
@pytest.mark.parametrize("how", ["cancel", "fail", "expire", "succeeded"])
def test_a_call_is_written_once_while_it_is_pending(
    sessions: Sessions, engine: Engine, how: str, token: dict[str, Any]
) -> None:
    ids = []
    for number in range(1, 4):
        ids.append(ensured(sessions, **OPEN, **token))
        assert ensured(sessions, **OPEN, **token) == ids[-1]
        assert count(engine) == number
        if how == "succeeded":
            _succeed(engine, ids[-1])
        else:
            end(sessions, ids[-1], how)
    assert len(set(ids)) == 3


def _succeed(engine: Engine, attempt_id: uuid.UUID) -> None:
    ended = {"status": Status.SUCCEEDED, "completed_at": dt.datetime.now(dt.UTC), "num_attempts": 1}
    with engine.begin() as connection:
        connection.execute(update(Attempt).where(Attempt.id == attempt_id).values(**ended))


@pytest.mark.parametrize("is_claimed", [False, True])
def test_one_that_will_expire_without_being_started_does_not_count(
    sessions: Sessions, engine: Engine, is_claimed: bool
) -> None:
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    first = ensured(sessions, **OPEN, **TOKEN, expires_at=later)
    claimed = {"claim_id": uuid.uuid4(), "claimed_by": "w", "lease_until": later, "num_attempts": 1}
    with engine.begin() as connection:
        past = {"expires_at": dt.datetime.now(dt.UTC) - dt.timedelta(seconds=5)}
        connection.execute(update(Attempt).where(Attempt.id == first).values(**past, **(claimed if is_claimed else {})))
    second = ensured(sessions, **OPEN, **TOKEN, expires_at=later)
    assert (second == first) is is_claimed
    assert ensured(sessions, **OPEN, **TOKEN, expires_at=later) == second


def test_in_one_transaction_too(sessions: Sessions, engine: Engine) -> None:
    with sessions.begin() as session:
        first = Attempt.ensure(session, **OPEN, **TOKEN)
        assert Attempt.ensure(session, **OPEN, **TOKEN) is first
        first.cancel(session)
        second = Attempt.ensure(session, **OPEN, **TOKEN)
        assert second is not first
        tokens = [one.idempotence_token for one in (first, second)]
        assert tokens == [numbered_token("T", 1), numbered_token("T", 2)]
    assert count(engine) == 2


def test_a_session_that_holds_an_old_state_is_not_misled(sessions: Sessions, engine: Engine) -> None:
    with sessions(expire_on_commit=False) as session:
        with session.begin():
            first = Attempt.ensure(session, **OPEN, **TOKEN)
            assert first.status is Status.PENDING
        end(sessions, first.id)
        with session.begin():
            second = Attempt.ensure(session, **OPEN, **TOKEN)
            assert second.id != first.id
            assert first.status is Status.CANCELED


def test_after_a_rollback_the_next_one_is_written(sessions: Sessions, engine: Engine) -> None:
    end(sessions, ensured(sessions, **OPEN, **TOKEN))
    with sessions() as session:
        Attempt.ensure(session, **OPEN, **TOKEN)
        session.rollback()
    assert count(engine) == 1
    ensured(sessions, **OPEN, **TOKEN)
    assert count(engine) == 2


@pytest.mark.slow
def test_there_may_be_many_one_after_the_other(sessions: Sessions, engine: Engine) -> None:
    """Also where the collation of the database sorts other tokens in between."""
    for number in range(1, 13):
        last = ensured(sessions, **OPEN, **TOKEN)
        assert row_of(engine, last).idempotence_token == numbered_token("T", number)
        end(sessions, last)
        for other in (f"T{number:012}", f"t{number}", f"T {number}", f"T-{number}"):
            ensured(sessions, **CALL, idempotence_token=other)
    with sessions.begin() as session:
        for other in ("T000000000005", "T9", "t", "T!"):
            Attempt.ensure(session, **OPEN, idempotence_token=other)
        Attempt.ensure(session, **ONCE, **TOKEN)
    assert row_of(engine, ensured(sessions, **OPEN, **TOKEN)).idempotence_token == numbered_token("T", 13)


@by_one_door
def test_one_that_is_performed_counts_and_nobody_waits_for_it(
    app: AsyncTask, sessions: Sessions, engine: Engine
) -> None:
    gates["G"] = gate = Gate()
    call = {"target": Gated, "method_name": "locked", "method_args": {"gate": "G"}, "until_done": True}
    first = ensured(sessions, **call)
    with ThreadPoolExecutor(2) as pool:
        performed = pool.submit(app.perform, first)
        try:
            gate.await_call()
            assert pool.submit(ensured, sessions, **call).result(10) == first
        finally:
            gate.opened.set()
        performed.result(30)
    assert ensured(sessions, **call) != first


@by_one_door
def test_one_of_which_only_the_token_is_remembered_has_ended(
    app: AsyncTask, sessions: Sessions, engine: Engine
) -> None:
    first = ensured(sessions, **OPEN, **TOKEN)
    once = ensured(sessions, **ONCE, **TOKEN)
    for one in (first, once):
        end(sessions, one)
    assert app.prune(older_than=0).emptied == 2
    second = ensured(sessions, **OPEN, **TOKEN)
    assert second != first
    assert ensured(sessions, **ONCE, **TOKEN) == once  # as an ensure without a window does
    app.prune(older_than=0, keep_tokens=0)
    assert [one.id for one in app.attempts.list(token="T").attempts] == [second]
    end(sessions, second)
    assert ensured(sessions, **OPEN, **TOKEN) != second
    assert row_of(engine, second).idempotence_token == numbered_token("T", 2)


@by_one_door
def test_when_all_are_pruned_it_begins_again(app: AsyncTask, sessions: Sessions, engine: Engine) -> None:
    for _ in range(3):
        end(sessions, ensured(sessions, **OPEN, **TOKEN))
    assert app.prune(older_than=0, keep_tokens=0).deleted == 3
    assert row_of(engine, ensured(sessions, **OPEN, **TOKEN)).idempotence_token == numbered_token("T", 1)


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")  # on SQLite one transaction writes at a time
@by_one_door
def test_the_last_one_is_not_pruned_while_the_next_is_being_written(
    app: AsyncTask, sessions: Sessions, engine: Engine
) -> None:
    """Else a third transaction, which finds none, would write one more."""
    end(sessions, ensured(sessions, **OPEN, **TOKEN))
    with ThreadPoolExecutor(2) as pool:
        with sessions.begin() as session:
            second = Attempt.ensure(session, **OPEN, **TOKEN).id
            pruned = pool.submit(app.prune, older_than=0, keep_tokens=0)
            third = pool.submit(ensured, sessions, **OPEN, **TOKEN)
            with pytest.raises(TimeoutError):
                third.result(0.5)
        assert third.result(30) == second
        pruned.result(30)


@pytest.mark.only_on("postgresql")  # on MySQL it is locked before
def test_one_that_is_pruned_meanwhile_is_no_longer_followed(
    sessions: Sessions, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ensured(sessions, **OPEN, **TOKEN)
    end(sessions, first)
    keep = Numbered._keep

    def prune_and_keep(*given: Any) -> bool:
        with engine.begin() as connection:
            connection.execute(delete(Attempt).where(Attempt.id == first))
        return keep(*given)

    monkeypatch.setattr(Numbered, "_keep", prune_and_keep)
    read_committed = sessions.kw["bind"].execution_options(isolation_level="READ COMMITTED")
    with Session(read_committed) as session, session.begin():
        assert Attempt.ensure(session, **OPEN, **TOKEN).idempotence_token == numbered_token("T", 1)


@target("writing.renamed", aliases=["writing.before"])
def renamed(number: int) -> None: ...


def test_what_was_written_before_its_target_was_renamed_counts(sessions: Sessions, engine: Engine) -> None:
    call = {"target": renamed, "method_args": {"number": 1}, "until_done": True, **TOKEN}
    first = ensured(sessions, **call)
    with engine.begin() as connection:
        connection.execute(update(Attempt).where(Attempt.id == first).values(target="writing.before"))
    assert ensured(sessions, **call) == first
    end(sessions, first)
    second = ensured(sessions, **call)
    assert second != first
    assert ensured(sessions, **call) == second
    end(sessions, second)
    assert ensured(sessions, **call) not in (first, second)


@pytest.mark.only_on("mysql")
@pytest.mark.parametrize("how", [{}, {"until_done": True}])
def test_also_if_it_was_committed_after_this_transaction_began_to_read(
    sessions: Sessions, engine: Engine, how: dict[str, Any]
) -> None:
    """As MySQL and MariaDB read at REPEATABLE READ, their default."""
    call = {"target": renamed, "method_args": {"number": 1}, **TOKEN, **how}
    with sessions() as session, session.begin():
        assert session.scalars(select(Attempt)).all() == []
        before = ensured(sessions, **call)
        with engine.begin() as connection:
            connection.execute(update(Attempt).values(target="writing.before"))
        assert Attempt.ensure(session, **call).id == before
    assert count(engine) == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", [ONCE, OPEN])
@pytest.mark.parametrize("ended_before", [0, 2])
def test_sessions_that_race_write_one(
    sessions: Sessions, engine: Engine, how: dict[str, Any], ended_before: int
) -> None:
    for _ in range(ended_before):
        end(sessions, ensured(sessions, **OPEN, **TOKEN))
    for round_ in range(5):
        start = threading.Barrier(4)

        def race(number: int, start: threading.Barrier = start) -> uuid.UUID:
            with sessions.begin() as session:
                start.wait(10)
                made = Attempt.ensure(session, **how, **TOKEN)
                Attempt.options(session=session).call(Client.hurry)  # each transaction goes on
                return made.id

        with ThreadPoolExecutor(4) as pool:
            ids = set(pool.map(race, range(4)))
        assert len(ids) == 1, f"round {round_}"
        if how is OPEN:
            end(sessions, ids.pop())
    with sessions() as session:
        written = session.scalars(select(Attempt).where(Attempt.target == "writing.book")).all()
    assert len(written) == ended_before + (5 if how is OPEN else 1)


POOLS: dict[str, dict[str, Any]] = {
    "with room": {},
    "of one": {"pool_size": 1, "max_overflow": 0, "pool_timeout": 60},
    "none": {"poolclass": NullPool},
    "static": {"poolclass": StaticPool},
}
LEVELS = ["READ COMMITTED", "REPEATABLE READ"]


@pytest.fixture
def opened(database: Database, engine: Engine) -> Iterator[Callable[..., Session]]:
    """`opened(level, pool)`: a session on an engine of its own, whose transaction has begun to read."""
    with contextlib.ExitStack() as until:

        def opened(level: str, pool: str = "with room") -> Session:
            own = create_engine(database.sync_url, isolation_level=level, **POOLS[pool])
            until.callback(own.dispose)
            session = until.enter_context(Session(own))
            session.scalars(select(Attempt)).all()
            return session

        yield opened


@pytest.mark.only_on("mysql")  # PostgreSQL refuses a row that has changed at REPEATABLE READ; on SQLite one writes
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("level", LEVELS)
def test_until_done_sees_what_has_ended_and_begun_since_its_transaction_began_to_read(
    sessions: Sessions, engine: Engine, opened: Callable[..., Session], level: str, pool: str
) -> None:
    first = ensured(sessions, **OPEN, **TOKEN)
    session = opened(level, pool)
    end(sessions, first)
    with ThreadPoolExecutor(1) as other:  # it does not wait for its own connection
        second = other.submit(lambda: Attempt.ensure(session, **OPEN, **TOKEN).id).result(20)
    assert second != first
    session.commit()
    end(sessions, second)
    session = opened(level, pool)
    third = ensured(sessions, **OPEN, **TOKEN)
    assert Attempt.ensure(session, **OPEN, **TOKEN).id == third


@pytest.mark.only_on("postgresql")
def test_until_done_sees_at_read_committed_what_has_ended(
    sessions: Sessions, engine: Engine, opened: Callable[..., Session]
) -> None:
    first = ensured(sessions, **OPEN, **TOKEN)
    session = opened("READ COMMITTED")
    end(sessions, first)
    assert Attempt.ensure(session, **OPEN, **TOKEN).id != first


@pytest.mark.only_on("postgresql")
def test_until_done_waits_for_no_call_above_read_committed_either(
    sessions: Sessions, engine: Engine, opened: Callable[..., Session]
) -> None:
    """Without a second connection it asks for the lock, which whoever performs the call has."""
    first = ensured(sessions, **OPEN, **TOKEN)
    session = opened("REPEATABLE READ", "of one")
    with engine.begin() as performing:
        performing.execute(select(Attempt.id).where(Attempt.id == first).with_for_update(key_share=True))
        assert Attempt.ensure(session, **OPEN, **TOKEN).id == first


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("pool", ["with room", "of one"])
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_until_done_returns_none_that_has_ended_since_its_transaction_began_to_read(
    sessions: Sessions, engine: Engine, opened: Callable[..., Session], level: str, pool: str
) -> None:
    """The call would be lost: what has changed since then needs another one."""
    first = ensured(sessions, **OPEN, **TOKEN)
    session = opened(level, pool)
    assert Attempt.ensure(session, **OPEN, **TOKEN).id == first
    session.rollback()
    session.scalars(select(Attempt)).all()
    end(sessions, first)
    with pytest.raises(OperationalError) as refused:
        Attempt.ensure(session, **OPEN, **TOKEN)
    assert getattr(refused.value.orig, "sqlstate", None) == "40001"
    session.rollback()
    assert Attempt.ensure(session, **OPEN, **TOKEN).id != first


@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.parametrize(
    ("level", "pool"), [("READ COMMITTED", "of one"), ("REPEATABLE READ", "with room"), ("REPEATABLE READ", "none")]
)
@by_one_door
def test_one_that_is_found_may_be_performed_and_canceled_before_the_transaction_ends(
    app: AsyncTask, sessions: Sessions, engine: Engine, opened: Callable[..., Session], level: str, pool: str
) -> None:
    called = {"target": Client, "method_name": "hurry", "until_done": True}
    ids = [ensured(sessions, **called), ensured(sessions, **OPEN)]
    session = opened(level, pool)
    assert [Attempt.ensure(session, **called).id, Attempt.ensure(session, **OPEN).id] == ids
    assert isinstance(app.perform(ids[0]), Succeeded)
    end(sessions, ids[1])
    assert session.in_transaction()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.only_on("postgresql", "mysql")
def test_what_its_own_transaction_has_not_committed_yet_counts(
    sessions: Sessions, engine: Engine, opened: Callable[..., Session], level: str
) -> None:
    first = ensured(sessions, **OPEN, **TOKEN)
    end(sessions, first)
    session = opened(level)
    retried = session.get(Attempt, first)
    assert retried is not None
    retried.retry_now(session)
    assert Attempt.ensure(session, **OPEN, **TOKEN) is retried
    own = Attempt.ensure(session, **OPEN, idempotence_token="own")
    assert Attempt.ensure(session, **OPEN, idempotence_token="own") is own


@pytest.mark.only_on("mysql")
def test_one_that_is_found_on_an_async_session_may_be_canceled(
    sessions: Sessions, engine: Engine, async_engine_url: str
) -> None:
    first = ensured(sessions, **OPEN)

    async def body(session: AsyncSession) -> uuid.UUID:
        await session.scalars(select(Attempt))
        found: uuid.UUID = (await session.run_sync(Attempt.ensure, **OPEN)).id
        end(sessions, first)  # which a lock would refuse
        return found

    assert run_async(async_engine_url, body) == first


@pytest.mark.only_on("postgresql", "mysql")
def test_other_tokens_do_not_wait(sessions: Sessions, engine: Engine) -> None:
    for name in "ABC":
        end(sessions, ensured(sessions, **OPEN, idempotence_token=name))
    with sessions.begin() as session, ThreadPoolExecutor(1) as pool:
        Attempt.ensure(session, **OPEN, idempotence_token="B")
        for name in "AC":
            pool.submit(ensured, sessions, **OPEN, idempotence_token=name).result(10)
    assert count(engine) == 6


def test_they_run_on_an_async_session(engine: Engine, async_engine_url: str) -> None:
    async def body(session: AsyncSession) -> set[Any]:
        found = [await session.run_sync(Attempt.ensure, **call) for call in (OPEN, OPEN, ONCE, ONCE)]
        await session.run_sync(found[0].cancel)
        found.append(await session.run_sync(Attempt.ensure, **OPEN))
        await session.commit()
        return {one.id for one in found}

    assert len(run_async(async_engine_url, body)) == count(engine) == 3


# Tokens


def test_equal_arguments_are_one_call_in_whatever_order(sessions: Sessions, engine: Engine) -> None:
    call = {"target": Client, "method_name": "fulfill", "within": LENGTH}
    first = ensured(sessions, **call, method_args={"token": "t", "number": 1})
    assert ensured(sessions, **call, method_args={"number": 1, "token": "t"}) == first
    assert ensured(sessions, **call, method_args={"number": 2, "token": "t"}) != first


def test_encrypted_arguments_make_no_token(sessions: Sessions, engine: Engine) -> None:
    register_encryptor(Reversing())
    with sessions.begin() as session, statements_of(engine) as seen:
        for how in (OPEN, ONCE):
            with pytest.raises(InvalidArguments, match=r"needs idempotence_token= here: the arguments are encrypted"):
                Attempt.ensure(session, **how, encryptor="reversing")
        assert seen == []
        Attempt.ensure(session, **OPEN, **TOKEN, encryptor="reversing")
    assert count(engine) == 1


@by_one_door
def test_people_see_and_find_the_token_that_was_given(app: AsyncTask, sessions: Sessions, engine: Engine) -> None:
    ids = [ensured(sessions, **ONCE, **TOKEN), ensured(sessions, **OPEN, **TOKEN)]
    end(sessions, ids[-1])
    ids.append(ensured(sessions, **OPEN, **TOKEN))
    others = [ensured(sessions, **ONCE), ensured(sessions, **OPEN, idempotence_token="t")]
    others.append(ensured(sessions, **OPEN, idempotence_token="TT"))
    listed = app.attempts.list(token="T", order="oldest").attempts
    assert [one.id for one in listed] == sorted(ids)
    assert {one.idempotence_token for one in listed} == {"T"}
    assert {app.attempts.get(one).idempotence_token for one in ids} == {"T"}
    assert [app.attempts.get(one).idempotence_token for one in others] == [None, "t", "TT"]


def test_a_given_token_is_told_from_what_was_added() -> None:
    assert [given_token(one) for one in (None, "T", f"T{SEPARATOR}x", argument_token("{}"))] == [None, "T", "T", None]


@pytest.mark.in_turns
@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"within": "1h", "until_done": True}, "ensure: give within or until_done, not both"),
        ({"within": 0}, "within: a window is longer than 0 s"),
        ({"within": -1}, "within cannot be negative"),
        ({"within": "hourly"}, "within is a length of time like"),
        ({"until_done": 1}, "until_done: takes True or False, not int"),
        ({"until_done": True, "idempotence_token": "T" * 181}, "at most 180 characters, not 181"),
        ({"within": 1, "idempotence_token": "T" * 181}, "at most 180 characters, not 181"),
        ({"within": 1, "idempotence_token": f"T{SEPARATOR}"}, "takes a printable text"),
        ({}, r"needs idempotence_token=.*with within= or until_done= equal arguments are enough"),
        ({"until_done": False}, "needs idempotence_token="),
        ({"within": None}, "needs idempotence_token="),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    sessions: Sessions, engine: Engine, given: dict[str, Any], why: str
) -> None:
    with sessions.begin() as session, statements_of(engine) as seen:
        with pytest.raises(InvalidArguments, match=why):
            Attempt.ensure(session, **CALL | given)
        assert seen == []


Other = Callable[[Session], Any]


@pytest.mark.in_turns
@pytest.mark.parametrize(
    "verb",
    [
        lambda session: Attempt.create_many(session, [ONCE]),
        lambda session: Attempt.create_many(session, [OPEN]),
        lambda session: Attempt.options(session=session, **{"within": 1}).call(book, 1),
    ],
)
def test_only_ensure_takes_them(sessions: Sessions, engine: Engine, verb: Other) -> None:
    with sessions.begin() as session, pytest.raises((InvalidArguments, TypeError), match=r"within|until_done"):
        verb(session)
    assert count(engine) == 0
