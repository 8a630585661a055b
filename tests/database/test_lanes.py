"""A lane's own connection, on which it claims, and on which calls are performed alone: nothing of one is left there for
the next."""

from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import Session

import outbox
from async_task import AsyncTask, AsyncTaskError
from async_task.database.dialects import disconnect
from clockwork import row_of
from databases import Database
from elsewhere import await_
from outbox import act_in_session, act_in_session_leased, act_shared, effects, events_of
from shared_calls import claim_many, numbered, written
from workers import at_rest, counted, make, working


@pytest.fixture(autouse=True)
def _many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    claim_many(lambda *given: monkeypatch.setattr(*given, raising=False))


def test_options_that_a_target_gives_its_connection_are_those_of_its_call_alone(app: AsyncTask, engine: Engine) -> None:
    found: list[Any] = []

    def change(session: Session) -> None:
        bind: Any = session.get_bind()
        found.append(bind.get_execution_options().get("schema_translate_map"))
        session.connection(execution_options={"schema_translate_map": {"nowhere": "elsewhere"}})

    outbox.acts[:] = [change]
    make(engine, act_in_session, 3)
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "all are called")
    assert (counted(engine), found) == ({"succeeded": 3}, [None] * 3)


@pytest.mark.parametrize("happening", ["checkin", "checkout", "reset"])
def test_who_listens_to_the_pool_can_clear_what_a_call_has_set(
    database: Database, engine: Engine, happening: str
) -> None:
    own, found = create_engine(database.sync_url), list[Any]()
    event.listen(own, happening, lambda connection, record, *_: record.info.pop("tenant", None))

    def set_tenant(session: Session) -> None:
        info = session.connection().info
        found.append(info.get("tenant"))
        info["tenant"] = "blue"

    outbox.acts[:] = [set_tenant]
    make(engine, act_in_session, 3)
    with working(AsyncTask(own, lease=1), concurrency=1):
        await_(lambda: at_rest(engine), "all are called")
    own.dispose()
    assert (counted(engine), found) == ({"succeeded": 3}, [None] * 3)


@pytest.mark.parametrize("target", [act_in_session, act_shared])
def test_a_session_that_outlives_its_call_writes_into_no_other(app: AsyncTask, engine: Engine, target: Any) -> None:
    sessions: list[Session] = []

    def write_with_the_first(session: Session, number: int = 0) -> None:
        sessions.append(session)
        for _ in range(2):
            if session is not sessions[0]:
                with pytest.raises(AsyncTaskError, match="has ended"):
                    sessions[0].execute(effects.insert().values(what="100"))
                sessions[0].rollback()

    outbox.acts[:] = [write_with_the_first]
    if target is act_shared:
        numbered(engine, 3)
    else:
        make(engine, target, 3)
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "all are called")
    assert counted(engine) == {"succeeded": 3}
    assert 100 not in written(engine)


@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.parametrize("target", [act_in_session, act_in_session_leased, act_shared])
def test_a_connection_that_was_lost_between_two_calls_holds_up_no_call(
    app: AsyncTask, engine: Engine, target: Any
) -> None:
    used: list[Any] = []

    def lose_it(session: Session, number: int = 0) -> None:
        used.append(session)
        if len(used) == 1:
            used.append(session.connection())
        elif len(used) == 3:  # leased: it has not asked for the connection, which waits
            disconnect(used[1])
        else:
            session.execute(text("SELECT 1"))

    outbox.acts[:] = [lose_it]
    make(engine, act_in_session, priority=0)
    make(engine, act_in_session_leased, priority=1)
    if target is act_shared:
        (last,) = numbered(engine, 1, priority=2)
    else:
        (last,) = make(engine, target, priority=2)
    with working(app, concurrency=1):
        await_(lambda: row_of(engine, last).num_attempts or events_of(engine, last), "it is performed, or parked")
        await_(lambda: at_rest(engine), "all are called")
    assert (counted(engine), events_of(engine, last, "parked")) == ({"succeeded": 3}, [])


@pytest.mark.only_on("postgresql")
def test_a_leased_call_whose_row_the_database_does_not_lock_is_not_at_fault(app: AsyncTask, engine: Engine) -> None:
    def write(session: Session) -> None:
        session.execute(text("SET SESSION default_transaction_read_only = on"))

    outbox.acts[:] = [write]
    make(engine, act_in_session, priority=0)
    (leased,) = make(engine, act_in_session_leased, priority=1)
    with working(app, concurrency=1):
        await_(lambda: events_of(engine, leased), "something befalls it")
    assert [one.kind for one in events_of(engine, leased)] == ["parked"]
    assert row_of(engine, leased).num_errors == 0
