"""A COMMIT that the server executes although the connection is lost before its answer arrives."""

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text

from async_task import AsyncTask, Succeeded, Superseded
from databases import Database
from elsewhere import await_
from outbox import act, act_in_session, act_shared, will
from workers import at_rest, counted, make, working

pytestmark = pytest.mark.only_on("postgresql")
SLOW = """BEGIN IF NEW.status = 'succeeded' AND NEW.order_key = 'slow' AND TG_WHEN = 'AFTER' THEN
    PERFORM pg_advisory_xact_lock(4711); END IF; RETURN NEW; END"""
ATTEMPTS = "async_task_attempts"


@pytest.fixture
def commits_wait(engine: Engine) -> Iterator[None]:
    """The COMMIT that ends an attempt of the key "slow" waits for an advisory lock."""
    with engine.begin() as connection:
        connection.execute(text(f"CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $${SLOW}$$"))
        when = f"AFTER UPDATE ON {ATTEMPTS} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
        connection.execute(text(f"CREATE CONSTRAINT TRIGGER slow {when} EXECUTE FUNCTION slow()"))
    yield
    with engine.begin() as connection:
        connection.execute(text(f"DROP TRIGGER slow ON {ATTEMPTS}"))
        connection.execute(text("DROP FUNCTION slow"))


@pytest.fixture
def own(database: Database) -> Iterator[tuple[Engine, dict[int, Any]]]:
    """An engine, and its connections by the id of their server process."""
    # The server must not notice that its client is gone: it would undo what waits, after half a second.
    unwatched = {"options": "-c client_connection_check_interval=60000"}
    made, opened = create_engine(database.sync_url, connect_args=unwatched), dict[int, Any]()
    event.listen(made, "connect", lambda driver, record: opened.update({driver.info.backend_pid: driver}))
    yield made, opened
    made.dispose()


def shut_down(driver: Any) -> None:
    end = socket.socket(fileno=os.dup(driver.fileno()))
    end.shutdown(socket.SHUT_RDWR)
    end.close()


def waiting(engine: Engine, kind: str) -> Callable[[], list[int]]:
    """The server processes that wait for such a lock."""

    def find() -> list[int]:
        with engine.connect() as connection:
            blocked = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = :kind"
            return list(connection.scalars(text(blocked), {"kind": kind}))

    return find


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "tally"),
    [
        ({"target": act}, {Succeeded: 2}),
        ({"target": act_in_session}, {Succeeded: 2}),
        # Its outcome is not remembered: the call would run again if it was not committed.
        ({"target": act_shared, "method_args": {"number": 1}}, {Superseded: 1, Succeeded: 1}),
    ],
    ids=["without session", "with session", "in a shared transaction"],
)
def test_the_outcome_of_an_unanswered_commit_is_reported_and_the_next_of_its_key_runs(
    engine: Engine, own: tuple[Engine, dict[int, Any]], commits_wait: None, call: dict[str, Any], tally: dict[Any, int]
) -> None:
    mine, opened = own
    will(lambda *given: None)
    make(engine, number=1, order_key="slow", **call)
    make(engine, act, 1, order_key="slow")
    with engine.connect() as holder:
        holder.execute(text("SELECT pg_advisory_lock(4711)"))
        with working(AsyncTask(mine, lease=5), concurrency=1, settle_within=0) as worker:
            (pid,) = await_(waiting(engine, "advisory"), "its COMMIT waits")
            shut_down(opened[pid])
            await_(waiting(engine, "transactionid"), "the outcome is written again")
            holder.execute(text("SELECT pg_advisory_unlock(4711)"))
            await_(lambda: at_rest(engine), "all are at rest", 20)
    assert counted(engine) == {"succeeded": 2}
    assert worker.tally == tally
