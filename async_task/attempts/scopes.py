"""Which attempts are in a state, as statements that a caller goes on with: `Attempt.failed().where(...)`."""

from typing import Any

from sqlalchemy import Select, or_, select

from async_task.attempts.columns import AttemptColumns
from async_task.database.clock import statement_now
from async_task.schema.states import Status, is_suspect
from async_task.schema.tables import table_of

# Select[Any]: its element is Self in SQLAlchemy 2.1 and tuple[Self] in 2.0, and both are supported.


class AttemptScopes(AttemptColumns):
    """The scopes of `BaseAttempt`."""

    @classmethod
    def pending(cls) -> Select[Any]:
        """Select the pending attempts."""
        return select(cls).where(cls.status == Status.PENDING)

    @classmethod
    def succeeded(cls) -> Select[Any]:
        """Select the attempts that succeeded."""
        return select(cls).where(cls.status == Status.SUCCEEDED)

    @classmethod
    def failed(cls) -> Select[Any]:
        """Select the attempts that failed for good."""
        return select(cls).where(cls.status == Status.FAILED)

    @classmethod
    def expired(cls) -> Select[Any]:
        """Select the attempts that expired."""
        return select(cls).where(cls.status == Status.EXPIRED)

    @classmethod
    def canceled(cls) -> Select[Any]:
        """Select the attempts that a person canceled."""
        return select(cls).where(cls.status == Status.CANCELED)

    @classmethod
    def due(cls) -> Select[Any]:
        """Select the attempts that may be started now, by the database's clock."""
        in_time = or_(cls.expires_at.is_(None), cls.expires_at > statement_now())
        return cls.pending().where(cls.claim_id.is_(None), cls.released, cls.due_at <= statement_now(), in_time)

    @classmethod
    def potentially_stuck(cls) -> Select[Any]:
        """Select what a person may have to look at, oldest first: failed or expired; or pending, and due, running,
        failing or parked."""
        given_up = cls.status.in_((Status.FAILED, Status.EXPIRED))
        at_work = or_(cls.due_at <= statement_now(), cls.claim_id.is_not(None))
        troubled = or_(at_work, is_suspect(table_of(cls)), cls.last_error.is_not(None))
        stuck = or_(given_up, (cls.status == Status.PENDING) & troubled)
        return select(cls).where(stuck).order_by(cls.created_at, cls.id)
