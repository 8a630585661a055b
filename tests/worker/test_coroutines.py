"""The thread that settles coroutines lasts, whatever it meets."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine

from async_task import AsyncTask, Attempt, Status
from async_task.worker import coroutines
from clockwork import row_of
from conftest import LEASE
from outbox import act_later, application, will


class OwnError(BaseException):
    """No Exception."""


@pytest.mark.slow
def test_what_is_raised_while_a_group_is_settled_ends_neither_the_thread_nor_the_batch(
    engine: Engine, door: str, async_engine_url: str, write: Callable[..., Attempt], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    own: AsyncTask = application(engine, door, async_engine_url, lease=LEASE)
    will(lambda: None)
    ids = [write(act_later).id for _ in range(4)]
    settled: list[int] = []
    write_group = coroutines.write_group

    def write_once_raised(context: Any, group: Any) -> bool:
        settled.append(len(group))
        if len(settled) == 1:
            raise OwnError
        return write_group(context, group)

    monkeypatch.setattr(coroutines, "write_group", write_once_raised)
    for _ in range(2):  # what was lost is released, and is for a later batch
        own.run_batch(concurrency=1)
    assert len(settled) > 1
    assert {row_of(engine, one).status for one in ids} == {Status.SUCCEEDED}
    lost = [one for one in caplog.records if "is not settled: OwnError" in one.getMessage()]
    assert len(lost) == settled[0]
    own.close()
