"""The scopes of a model that is its own job, as statements that can be refined and combined."""

from typing import Any

from sqlalchemy import Select, select

from async_task.asyncable.columns import columns_of
from async_task.asyncable.verbs import conditions
from async_task.database.index_order import order_after_nulls


class AsyncableScopes:
    """Each scope is a `Select` of the rows for which it holds, by the database's clock.

    Review.requires_processing().where(Review.office == "Paris").limit(10)
    Review.processable().where(Review.with_error().whereclause)
    """

    @classmethod
    def unexpired(cls) -> Select[Any]:
        """Last submitted within the window."""
        return select(cls).where(conditions(cls).unexpired())

    @classmethod
    def canceled(cls) -> Select[Any]:
        """Canceled, whatever else."""
        return select(cls).where(conditions(cls).canceled())

    @classmethod
    def processable(cls) -> Select[Any]:
        """Submitted, not before its delay has passed, and neither processed nor canceled."""
        return select(cls).where(conditions(cls).processable())

    @classmethod
    def never_attempted(cls) -> Select[Any]:
        """Never attempted, although an interval has passed since it was submitted."""
        return select(cls).where(conditions(cls).never_attempted())

    @classmethod
    def previously_attempted_ready_for_retry(cls) -> Select[Any]:
        """Attempted more than an interval ago."""
        return select(cls).where(conditions(cls).previously_attempted_ready_for_retry())

    @classmethod
    def attemptable(cls) -> Select[Any]:
        """Ready for another try, or for the first, and not canceled."""
        return select(cls).where(conditions(cls).attemptable())

    @classmethod
    def requires_processing(cls) -> Select[Any]:
        """What a sweep gives a job: processable, attemptable and unexpired; the oldest submission first."""
        c = columns_of(cls)
        oldest_first = order_after_nulls(c["processed_at"], c["canceled_at"], c["last_submitted_at"])
        return select(cls).where(conditions(cls).requires_processing()).order_by(oldest_first)

    @classmethod
    def expired_without_processing(cls) -> Select[Any]:
        """Neither processed nor canceled, and its window is over."""
        return select(cls).where(conditions(cls).expired_without_processing())

    @classmethod
    def attempted_without_being_submitted(cls) -> Select[Any]:
        """Attempted, although it was never submitted."""
        return select(cls).where(conditions(cls).attempted_without_being_submitted())

    @classmethod
    def with_error(cls) -> Select[Any]:
        """With the error of its last try."""
        return select(cls).where(conditions(cls).with_error())

    @classmethod
    def potentially_stuck(cls) -> Select[Any]:
        """What a person may have to look at, the oldest submission first, and those without one last."""
        last = columns_of(cls)["last_submitted_at"]
        return select(cls).where(conditions(cls).potentially_stuck()).order_by(last.is_(None), last)

    @classmethod
    def processed_or_canceled(cls) -> Select[Any]:
        """What needs no work any more."""
        return select(cls).where(conditions(cls).processed_or_canceled())
