"""Faults: who is to blame for an error. An error of the infrastructure is not charged to the call. A call that exceeded
its time limit, or ended its own connection, is charged with an error that says so."""

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from async_task.database.answers import Raised
from async_task.database.driver_errors import is_statement_timeout, transient_error
from async_task.error_text import quotes_nothing
from async_task.errors import InvalidState
from async_task.execution.prepared_call import PreparedCall
from async_task.execution.transaction import CallTransaction
from async_task.targets.context import Discard, RetryAfter

MAX_LOSSES = 10
"""Tries in a row that may lose their connection in the same way, uncharged. A call that ends its connection at each try
must come to an end, and drivers report a connection that was closed here as one that was lost."""


class Fault(Raised):
    """An error of the infrastructure. `is_loss`: the connection was lost."""

    __slots__ = ("is_loss",)

    def __init__(self, error: BaseException, is_loss: bool) -> None:
        super().__init__(error)
        self.is_loss = is_loss


def classify(call: PreparedCall, transaction: CallTransaction, answer: object) -> object:
    """`answer`, unless it is an error that was not raised by the call's own doing: `Fault` if the infrastructure failed
    the target's writes; `Raised` with another error if the call exceeded its limit or ended its own connection."""
    if not isinstance(answer, Raised):
        return answer
    if _is_past_limit(transaction, answer.error):
        return Raised(_limit_error(call, answer.error))
    if not call.session_class:
        return answer
    if transaction.state.is_dropped() and isinstance(answer.error, SQLAlchemyError):
        return Raised(_dropped_error(answer.error))
    return Fault(answer.error, transaction.state.is_lost()) if _is_fault(transaction, answer.error) else answer


def _is_past_limit(transaction: CallTransaction, error: BaseException) -> bool:
    """Whether the server ended the transaction, or a statement in it, because the call exceeded its limit."""
    is_ended = transaction.state.is_lost() or (isinstance(error, DBAPIError) and is_statement_timeout(error.orig))
    return transaction.is_past_limit and isinstance(error, SQLAlchemyError) and is_ended


def _limit_error(call: PreparedCall, error: BaseException) -> TimeoutError:
    limit = f"{call.limit.total_seconds():g} s"
    advice = "timeout=, or mode='leased'" if call.is_locked else "timeout=, or use the session last"
    late = quotes_nothing(TimeoutError(f"the call held its transaction longer than its limit, {limit} ({advice})"))
    late.__cause__ = error
    return late


def _dropped_error(error: BaseException) -> InvalidState:
    dropped = InvalidState(
        "the target invalidated the connection of its session, closed it, canceled a statement on it, or left a stream "
        "or COPY, or a task of its own, on it before its end: raise, or roll back"
    )
    dropped.__cause__ = error
    return dropped


def repeated_loss_error(error: BaseException) -> ConnectionError:
    """The error of a call whose connection was lost more than MAX_LOSSES times in a row."""
    lost = quotes_nothing(
        ConnectionError(
            f"the call has lost its connection more than {MAX_LOSSES} times in a row, always in the same way"
        )
    )
    lost.__cause__ = error
    return lost


def _is_fault(transaction: CallTransaction, error: BaseException) -> bool:
    """Whether an error in the attempt's own transaction is the infrastructure's."""
    if transaction.state.is_lost() or transaction.was_rolled_back or transaction.was_unopened:
        return isinstance(error, SQLAlchemyError)
    if isinstance(error, (Discard, RetryAfter)):  # the target has caught the fault, and decided itself
        return False
    return transaction.state.has_met_fault() and transient_error(error) is not None


def fault_summary(error: BaseException, call: PreparedCall) -> str:
    """The database's error if there is one, else `error`, on one line and without secrets."""
    return call.describe(transient_error(error) or error).summary
