"""Faults: whose a failure is. The infrastructure's is not charged to the call; that of a call which outlasted its
limit, or ended its own connection, is told as such."""

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from async_task.database.driver_errors import is_statement_timeout, transient_error
from async_task.database.lanes import Raised
from async_task.error_text import describe
from async_task.errors import InvalidState
from async_task.execution.call import PreparedCall
from async_task.execution.transaction import CallTransaction

LOSSES = 10
"""Times in a row that a call may lose its connection in the same way, and be called again uncharged."""


class Fault(Raised):
    """An error of the infrastructure, which is not the call's. `is_loss`: the connection was lost."""

    __slots__ = ("is_loss",)

    def __init__(self, error: BaseException, is_loss: bool) -> None:
        super().__init__(error)
        self.is_loss = is_loss


def judged(call: PreparedCall, transaction: CallTransaction, answer: object) -> object:
    """The answer; in the place of an error that the server raised because the call took too long, that; and `Fault`
    where the infrastructure failed the target's writes."""
    if not isinstance(answer, Raised):
        return answer
    if _is_too_long(transaction, answer.error):
        return Raised(_too_long(call, answer.error))
    if not call.session_class:
        return answer
    if transaction.has_dropped_connection() and isinstance(answer.error, SQLAlchemyError):
        return Raised(_dropped(answer.error))
    return Fault(answer.error, transaction.has_lost_connection()) if _is_a_fault(transaction, answer.error) else answer


def _is_too_long(transaction: CallTransaction, error: BaseException) -> bool:
    """Whether the server ended the transaction, or a statement in it, because the call outlasted its limit."""
    is_cut_off = transaction.has_lost_connection() or (
        isinstance(error, DBAPIError) and is_statement_timeout(error.orig)
    )
    return transaction.is_past_limit and isinstance(error, SQLAlchemyError) and is_cut_off


def _too_long(call: PreparedCall, error: BaseException) -> TimeoutError:
    limit = f"{call.limit.total_seconds():g} s"
    late = TimeoutError(f"the call held its transaction longer than its limit, {limit} (timeout=, or mode='leased')")
    late.__cause__ = error
    return late


def _dropped(error: BaseException) -> InvalidState:
    own = InvalidState(
        "the target invalidated the connection of its session, or canceled a statement on it: raise, or roll back"
    )
    own.__cause__ = error
    return own


def lost_again(error: BaseException) -> ConnectionError:
    """What is recorded of a call whose connection was lost more than LOSSES times in a row."""
    lost = ConnectionError(
        f"the call has lost its connection more than {LOSSES} times in a row, always in the same way"
    )
    lost.__cause__ = error
    return lost


def _is_a_fault(transaction: CallTransaction, error: BaseException) -> bool:
    """Whether an error in the attempt's own transaction is the infrastructure's, and not the call's."""
    if transaction.has_lost_connection() or transaction.was_rolled_back:
        return isinstance(error, SQLAlchemyError)
    return transaction.has_met_fault() and transient_error(error) is not None


def said_of(error: BaseException, call: PreparedCall) -> str:
    """What the database said of it, where it did."""
    return describe(transient_error(error) or error, call.secrets).summary
