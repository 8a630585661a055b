"""The watchdog releases what waits behind a long call, on a connection that mostly has nothing to do."""

import datetime as dt
import types
import uuid
from typing import Any

import pytest
from sqlalchemy import Engine

from async_task import Attempt
from async_task.database.engines import Source
from async_task.queue import fetch
from async_task.queue.claim import ClaimRequest
from async_task.worker.runtime import Runtime
from async_task.worker.watchdog import Watchdog
from clockwork import row_of
from databases import Database, _kill_all
from outbox import act
from workers import make

LEASE = dt.timedelta(seconds=60)


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_a_connection_that_was_lost_while_there_was_nothing_to_do_leaves_no_claim_to_its_lease(
    database: Database, engine: Engine
) -> None:
    source = Source(database.sync_url)
    workload: Any = types.SimpleNamespace(runtime=Runtime(source, Attempt, LEASE))
    watchdog = Watchdog(workload)
    ids = make(engine, act, 3)
    for _ in range(2):
        request = ClaimRequest("somebody", LEASE, "default", 3, uuid.uuid4())
        claims = fetch.claim_due(engine, Attempt.__table__, request)
        assert len(claims) == 3
        watchdog.release(claims)
        assert {(row.claim_id, row.num_attempts) for row in (row_of(engine, one) for one in ids)} == {(None, 0)}
        _kill_all(engine)
    watchdog._drop_lane()
    source.close()
