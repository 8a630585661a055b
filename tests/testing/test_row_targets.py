"""Operations at a provider, and models that are their own jobs, in a test's own transaction."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import operations
import reviews
from async_task import Retried, Succeeded
from async_task.asyncable.registration import register as register_asyncable
from async_task.polling.target import register
from async_task.testing import advance, perform_all, written

Play = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("registered")


@pytest.mark.slow
@pytest.mark.parametrize("model", [operations.Batch, operations.AsyncBatch])
def test_an_operation_goes_from_start_to_handle(session: Session, provider: operations.Provider, model: Any) -> None:
    register(model)
    provider.will("check", "in_progress", "ended")
    batch = model()
    batch.submit(session)
    assert [type(one) for one in perform_all(session)] == [Retried]
    assert batch.provider_id == "at the provider"
    for _ in range(3):
        advance("1h", session=session)
        perform_all(session)
    assert (batch.status, batch.handler_dispatched_at is not None) == ("ended", True)
    assert provider.asked == ["start", "check", "check", "fetch", "handle"]
    assert [one.status for one in written(session)] == ["succeeded"]


def test_an_error_of_an_operation_is_raised_and_its_next_step_follows(
    session: Session, provider: operations.Provider
) -> None:
    register(operations.Batch)
    provider.will("start", operations.Refused("no"), None)
    batch = operations.Batch()
    batch.submit(session)
    with pytest.raises(Exception, match=r"^no$"):  # a copy, because the row has secrets
        perform_all(session)
    assert batch.status == "pending"
    advance("1d", session=session)
    perform_all(session)
    assert provider.count("start") == 2
    assert batch.status == "submitted"


@pytest.mark.in_turns
@pytest.mark.parametrize(
    "model", [reviews.Review, reviews.LeasedReview, reviews.CoroutineReview, reviews.SessionReview]
)
def test_a_model_that_is_its_own_job_is_processed(session: Session, board: reviews.Board, model: Any) -> None:
    register_asyncable(model)
    row = model()
    row.submit_for_processing(session)
    assert [type(one) for one in perform_all(session)] == [Succeeded]
    assert (row.decision, row.asyncable_status) == ("granted", "processed")


@pytest.mark.slow
@pytest.mark.parametrize("model", [reviews.Review, reviews.LeasedReview, reviews.SessionReview])
def test_an_error_of_such_a_row_is_recorded_and_its_writes_are_undone(
    session: Session, board: reviews.Board, model: Any
) -> None:
    register_asyncable(model)
    board.will_raise(ValueError("no such office"), None)
    row = model()
    row.submit_for_processing(session)
    with pytest.raises(Exception, match="no such office"):  # a copy, because the row has secrets
        perform_all(session)
    assert row.decision is None
    assert "no such office" in row.error
    assert row.attempted_at is not None
    advance("1d", session=session)
    perform_all(session)
    assert (row.decision, row.error) == ("granted", None)
    assert len(board.asked) == 2


@pytest.mark.slow
def test_such_rows_and_operations_on_an_async_session(
    play: Play, board: reviews.Board, provider: operations.Provider
) -> None:
    for model in (reviews.AsyncSessionReview, reviews.CoroutineReview, reviews.LeasedReview):
        register_asyncable(model)
    register(operations.AsyncBatch)
    provider.will("check", "ended")

    async def test(session: AsyncSession) -> None:
        board.will_raise(ValueError("no"), None)
        row, other, leased = reviews.AsyncSessionReview(), reviews.CoroutineReview(), reviews.LeasedReview()
        batch = operations.AsyncBatch()
        for one in (row, other, leased):
            await session.run_sync(one.submit_for_processing)
        await session.run_sync(batch.submit)
        await perform_all(session, raises=False)
        await advance("1d", session=session)
        await perform_all(session)
        await advance("1h", session=session)
        await perform_all(session)
        assert {row.decision, other.decision, leased.decision} == {"granted"}
        assert (batch.status, provider.count("handle")) == ("ended", 1)

    play(test)
