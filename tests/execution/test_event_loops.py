"""Calls that let a task of theirs leave the event loop, or stop it: the error is theirs, and all others go on."""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine

from async_task import AsyncTask, Attempt, Retried, Status, Succeeded
from clockwork import row_of
from outbox import act, act_in_session, act_later, act_later_locked, will

Write = Callable[..., Attempt]


async def leave() -> None:
    sys.exit(3)


async def start_one_that_leaves() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(leave())


async def stop() -> str:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0)
    return "goes on"


@pytest.mark.slow
@pytest.mark.parametrize("target", [act, act_in_session, act_later, act_later_locked])
def test_a_task_that_leaves_the_loop_is_an_error_of_its_call(
    app: AsyncTask, engine: Engine, write: Write, target: Any
) -> None:
    will(lambda *given: start_one_that_leaves())
    attempt = write(target)
    outcome = app.perform(attempt.id)
    assert isinstance(outcome, Retried)
    assert row_of(engine, attempt.id).last_error.startswith("SystemExit: 3")
    will(lambda *given: stop())
    other = write(target)
    assert app.perform(other.id) == Succeeded(other.id)


@pytest.mark.slow
@pytest.mark.parametrize("target", [act, act_later])
def test_the_loop_of_a_batch_goes_on_for_the_other_calls(
    app: AsyncTask, engine: Engine, write: Write, target: Any
) -> None:
    answers: list[Callable[[], object]] = [stop, start_one_that_leaves]
    will(lambda: answers.pop()() if answers else None)
    ids = [write(target).id for _ in range(6)]
    app.run_batch(concurrency=1)
    rows = [row_of(engine, one) for one in ids]
    assert [row.num_attempts for row in rows] == [1] * 6
    assert [row.last_error for row in rows if row.status is not Status.SUCCEEDED] == ["SystemExit: 3"]
