"""Sessions that route reads and writes to different engines: attempts are read and written where writes go."""

import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Delete, Engine, Insert, Update, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from async_task import AsyncTask, Attempt, ConfigurationError, Status, acting, notes_of, target
from async_task import events_of as events_in
from clockwork import row_of
from databases import Database
from outbox import Client, Effect, Rows, events_of

pytestmark = pytest.mark.only_on("postgresql")
Write = Callable[..., Attempt]


@pytest.fixture
def routed(engine: Engine, database: Database) -> Iterator[sessionmaker[Any]]:
    """Sessions that read from a replica, which can write nothing, as SQLAlchemy's documentation shows it."""
    replica = create_engine(database.sync_url, connect_args={"options": "-c default_transaction_read_only=on"})

    class Routing(Session):
        def get_bind(self, mapper: Any = None, *, clause: Any = None, **options: Any) -> Engine:
            writes = self._flushing or isinstance(clause, (Insert, Update, Delete))  # type: ignore[attr-defined]
            return engine if writes else replica

    yield sessionmaker(engine, class_=Routing)
    replica.dispose()


def test_attempts_are_created_in_every_way(routed: sessionmaker[Any], engine: Engine) -> None:
    with routed.begin() as session:
        Attempt.options(session=session).call(Client.ping)
        Attempt.create_many(session, [{"target": Client, "method_name": "ping"}] * 3)
        options: Any = {"target": Client, "method_name": "ping", "idempotence_token": "once"}
        first = Attempt.ensure(session, **options)
        assert Attempt.ensure(session, **options) is first
    assert AsyncTask(routed).run_batch().succeeded == 5


@pytest.mark.parametrize("verb", ["cancel", "fail", "expire", "retry_now", "reschedule"])
def test_people_change_attempts(routed: sessionmaker[Any], engine: Engine, write: Write, verb: str) -> None:
    attempt_id = write(Client, "ping", order_key="a key").id
    with routed.begin() as session:
        attempt = session.get_one(Attempt, attempt_id)
        getattr(attempt, verb)(session, **({"at": dt.datetime.now(dt.UTC)} if verb == "reschedule" else {}))
        status = attempt.status
        assert "get_bind" not in vars(session)
    assert row_of(engine, attempt_id).status is status
    assert (status is Status.PENDING) is (verb in ("retry_now", "reschedule"))
    assert [one.kind for one in events_of(engine, attempt_id)] == [verb]


@pytest.mark.parametrize("by", [DeclarativeBase, Attempt, Attempt.__table__])
@pytest.mark.parametrize("verb", ["cancel", "fail", "expire", "retry_now", "reschedule"])
def test_a_session_may_have_an_engine_for_each_class_or_table(engine: Engine, by: Any, verb: str) -> None:
    by = next(one for one in Attempt.__mro__ if DeclarativeBase in one.__bases__) if by is DeclarativeBase else by
    elsewhere = create_engine("sqlite://")
    bound: Any = sessionmaker(binds={by: engine, Effect: elsewhere})
    with bound.begin() as session:
        attempt = Attempt.create(session, target=Client, method_name="ping", order_key="a key")
        session.flush()
        getattr(attempt, verb)(**({"at": dt.datetime.now(dt.UTC)} if verb == "reschedule" else {}))
        with acting("anna"):
            attempt.add_note(text="so")
        assert len(notes_of(session, attempt)) == 1
        assert {one.kind for one in events_in(session, attempt)} == {verb, "note"}
    elsewhere.dispose()


@target("routed.writes")
def writes(session: Session) -> None:
    session.add(Effect(attempt_id="routed", number=1, what="written"))
    session.flush()
    assert session.scalar(select(Effect.what).where(Effect.attempt_id == "routed")) == "written"


def test_a_target_reads_what_it_wrote_in_its_own_transaction(routed: sessionmaker[Any], write: Write) -> None:
    write(writes)
    assert AsyncTask(routed).run_batch().succeeded == 1


def test_binds_to_another_engine_are_refused(engine: Engine, database: Database) -> None:
    other = create_engine(database.sync_url)
    AsyncTask(sessionmaker(engine, binds={Rows: engine}))
    with pytest.raises(ConfigurationError, match="binds Rows to another engine than the attempts"):
        AsyncTask(sessionmaker(engine, binds={Rows: other}))
    other.dispose()
