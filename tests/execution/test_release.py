"""Release: how long an attempt is parked, by what was missing."""

import datetime as dt
import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, create_engine, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt, target
from async_task.database.lanes import open_lane
from async_task.execution.performer import perform_claim, tracked_elsewhere
from async_task.execution.prepared_call import ExecutionContext
from async_task.execution.release import park_unlocked
from async_task.outcomes import Parked
from claims import TABLE, claimed
from clockwork import row_of
from conftest import by_one_door
from databases import somebody_waits
from elsewhere import await_
from outbox import Client, calls

Write = Callable[..., Attempt]


def _unreachable() -> DBAPIError:
    try:
        create_engine("postgresql+psycopg://nobody@127.0.0.1:9/none").connect()
    except DBAPIError as error:
        return error
    raise AssertionError("something listens on the discard port")


def _refused(engine: Engine) -> DBAPIError:
    with engine.connect() as connection, pytest.raises(DBAPIError) as raised:
        connection.exec_driver_sql("SELECT nothing FROM nowhere")
    return raised.value


@by_one_door
@pytest.mark.parametrize("kind", ["no connection", "full pool", "refused statement"])
def test_a_row_that_could_not_be_locked_waits_shortly_after_a_fault_that_passes(
    app: AsyncTask, engine: Engine, write: Write, kind: str
) -> None:
    problems = {
        "no connection": _unreachable,
        "full pool": lambda: PoolTimeout("QueuePool limit reached"),
        "refused statement": lambda: _refused(engine),
    }
    attempt = write(Client, "ping")
    claim = claimed(engine, attempt.id)
    with open_lane(app._source) as lane:
        context = ExecutionContext(app._source, Attempt, TABLE, lane)
        outcome = lane.run(lambda: park_unlocked(context, claim, problems[kind]()))
    assert isinstance(outcome, Parked)
    shortest, longest = (20, 40) if kind == "refused statement" else (1, 3)
    assert dt.timedelta(seconds=shortest) <= outcome.after <= dt.timedelta(seconds=longest)
    row = row_of(engine, attempt.id)
    assert (row.claim_id, row.num_attempts, row.num_errors) == (None, 0, 0)


@target("release.serializable", isolation="SERIALIZABLE")
def serializable(session: Session) -> None:
    calls.append("called")


@by_one_door
@pytest.mark.only_on("postgresql")
def test_a_serialization_failure_while_the_row_is_being_locked_parks_the_attempt_shortly_and_uncharged(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempt = write(serializable)
    claim = claimed(engine, attempt.id, lease=dt.timedelta(minutes=1))
    outcomes: list[object] = []

    def perform() -> None:
        with open_lane(app._source) as lane:
            context = ExecutionContext(app._source, Attempt, TABLE, lane)
            outcomes.append(perform_claim(context, claim, tracked_elsewhere))

    thread = threading.Thread(target=perform)
    with engine.begin() as connection:
        connection.execute(update(TABLE).values(updated_at=TABLE.c.updated_at))
        thread.start()
        await_(lambda: somebody_waits(engine), "it waits for us")
    thread.join()
    [outcome] = outcomes
    assert isinstance(outcome, Parked)
    assert "could not serialize" in outcome.reason
    assert dt.timedelta(seconds=1) <= outcome.after <= dt.timedelta(seconds=3)
    row = row_of(engine, attempt.id)
    assert (row.num_attempts, row.num_errors, calls) == (0, 0, [])
