"""The target that processes the rows of one class. A try is one call of `process`:

1. That it is attempted is committed by itself, so that no failure undoes it. What is not to be processed now ends here.
2. `process` is called: in the transaction of the attempt's outcome ("locked"), or while none is open ("leased").
3. That it is processed is written in that transaction. What it raises is written together with the outcome too
   (`record_error`), after its own writes were undone.
"""

import datetime as dt
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection, select
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from async_task.asyncable.chain import METHOD
from async_task.asyncable.columns import attributes_of
from async_task.asyncable.messages import tell_of_error, tell_of_success
from async_task.asyncable.scopes import Known, Scopes
from async_task.asyncable.verbs import conditions, error_in, hit, now_in, read
from async_task.attempts.ambient import handed, nothing_handed
from async_task.attempts.chain import with_key
from async_task.attempts.messages import FAILING_AFTER
from async_task.database.answers import Raised
from async_task.database.clock import Instant
from async_task.database.lanes import Lane, lane_of
from async_task.error_text import describe, secrets_in, without_values
from async_task.errors import ConfigurationError
from async_task.targets.answers import checked_answer
from async_task.targets.context import Again, Discard, ErrorRecorder, Restarted
from async_task.targets.row_target import RowTarget

if TYPE_CHECKING:
    from async_task.asyncable.asyncable import Asyncable


def takes_session(model: "type[Asyncable]") -> bool:
    """Whether `process` takes a session. Raises ConfigurationError if it takes anything else."""
    _, *parameters = inspect.signature(model.process).parameters.values()
    taken = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    if len(taken) > 1:
        raise ConfigurationError(
            f"{model.__name__}.process() takes {', '.join(taken)}: it is called without arguments, or with a session"
        )
    return bool(taken)


class NothingToDo(Discard):
    """The row is not to be processed any more: no error of its own."""


class RowProcessor(RowTarget, ErrorRecorder):
    """What the targets of both kinds of sessions share."""

    tells_users = True

    def record_error(
        self, connection: Connection, lane: Lane, arguments: Mapping[str, Any], error: BaseException, summary: str
    ) -> Restarted | None:
        model, key = self.model, arguments["key"]
        if isinstance(error, NothingToDo):
            return None
        if hit(connection, model, key, {"error": error_in(model, summary)}, _goes_on(model)):
            tell_of_error(connection, lane, model, key)
            return None
        return _restarted(connection, model, key)


class ProcessTarget(RowProcessor):
    """What is registered for a class."""

    def process(self, session: Session, key: Any) -> Again | None:
        """Process the row with this primary key, if it still is to be processed."""
        started = begin(session, self.model, key)
        if not isinstance(started, Try):
            return started
        return started.finish(session, started.call(session))


assert ProcessTarget.process.__name__ == METHOD


def begin(session: Session, model: "type[Asyncable]", key: Any) -> "Try | Again | None":
    """The try that begins now; or the answer of the attempt if there is nothing to do. Raises NothingToDo."""
    with Session(lane_of(session).engine) as own, own.begin():
        attempted = {"attempted_at": now_in(model, "attempted_at")}
        if not hit(own, model, key, attempted, conditions(model).workable()):
            return _instead(read(own, model, key, is_locked=True), model, key)
    return _loaded(session, model, key)


def _instead(found: Scopes[Known] | None, model: "type[Asyncable]", key: Any) -> Again | None:
    """The answer for a row that is not to be processed now."""
    if found is None:
        raise NothingToDo(f"there is no {model.__name__} {key} any more")
    if found.expired_without_processing():
        raise NothingToDo(
            f"{model.__name__} {key} is expired: it was not processed within {model.processing.window_in_words}"
        )
    last = found.last_submitted_at
    if found.open() and last.is_after(dt.timedelta(0)):
        return Again(after=last.value - last.now)
    return None


def _loaded(session: Session, model: "type[Asyncable]", key: Any) -> "Try":
    """The try, with its row: attached to the session, or detached."""
    wanted = with_key(model, select(model), key)
    if model.processing.mode == "locked":
        row = session.scalars(wanted).first()
    else:
        with Session(lane_of(session).engine, expire_on_commit=False) as reading, reading.begin():
            row = reading.scalars(wanted).first()
    if row is None:
        raise NothingToDo(f"there is no {model.__name__} {key} any more")
    as_read = {name: getattr(row, name) for name in attributes_of(model).values()}
    return Try(model, key, row, as_read, secrets_in({"secrets": list(row.secrets())}, None))


class Try(NamedTuple):
    """A try that was written down as attempted. `as_read`: the six columns of its row, by attribute. `secrets`: texts
    that no recorded error may hold."""

    model: "type[Asyncable]"
    key: Any
    row: Any
    as_read: Mapping[str, Any]
    secrets: frozenset[str]

    def call(self, session: Session) -> Any:
        """What `process` returns. Raises what it raises, without its secrets."""
        answer = (
            self._called_locked(session) if self.model.processing.mode == "locked" else self._called_leased(session)
        )
        if isinstance(answer, Raised):
            raise self.without_secrets(answer.error)
        return answer

    def finish(self, session: Session, answer: Any) -> Again | None:
        """Write that the row is processed, in the transaction of the outcome. Returns the answer of the attempt. Raises
        TypeError for an answer of which nothing has run."""
        answer = checked_answer(answer, "process()")
        if isinstance(answer, Raised):
            raise answer.error
        if self.model.processing.mode == "leased":
            self._keep_changes(session)
        session.flush()
        model = self.model
        if isinstance(answer, Again):
            return _restarted(session, model, self.key) or answer
        done = {"processed_at": now_in(model, "processed_at"), "error": None}
        if hit(session, model, self.key, done, _goes_on(model)):
            if self._may_have_failed_long:
                tell_of_success(session, model, self.key)
            return None
        return _restarted(session, model, self.key)

    @property
    def _may_have_failed_long(self) -> bool:
        """Whether it began so late that a message may have said that the row is failing. By what was read: no statement
        is spent on others."""
        names = attributes_of(self.model)
        began, submitted = (self.as_read[names[one]] for one in ("attempted_at", "last_submitted_at"))
        return began is None or submitted is None or Instant.aware(began) - Instant.aware(submitted) >= FAILING_AFTER

    def without_secrets(self, error: BaseException) -> BaseException:
        if not self.secrets or not isinstance(error, Exception) or isinstance(error, Discard):
            return error
        return without_values(error, describe(error, self.secrets))

    def _called_locked(self, session: Session) -> Any:
        given = (session,) if takes_session(self.model) else ()
        try:
            answer = self.row.process(*given)
        except Exception as error:
            return Raised(error)
        return lane_of(session).run_coroutine(_handed(session, answer)) if inspect.iscoroutine(answer) else answer

    def _called_leased(self, session: Session) -> Any:
        lane = lane_of(session)
        with nothing_handed():
            answer = lane.call(self.row.process)
            return lane.run_coroutine(answer) if inspect.iscoroutine(answer) else answer

    def _keep_changes(self, session: Session) -> None:
        """What `process` has changed of the row is written, but for the six columns."""
        for name, value in self.as_read.items():
            set_committed_value(self.row, name, value)
        session.add(self.row)


async def _handed(session: Session, answer: Any) -> Any:
    """In the task of the coroutine, calls that are written down without `session=` go into this session."""
    with handed(session, has_begun=True):
        return await answer


def _goes_on(model: "type[Asyncable]") -> Any:
    """Whether the row is still as its try has left it: neither processed, canceled nor restarted meanwhile."""
    can = conditions(model)
    return can.open() & can.attempted()


def _restarted(session: Any, model: "type[Asyncable]", key: Any) -> Restarted | None:
    """The answer of the attempt if the row was restarted during its try. `session`: or a connection."""
    found = read(session, model, key, is_locked=True)
    if found is None or not found.open() or not found.submitted() or found.attempted():
        return None
    return Restarted(found.last_submitted_at.value + model.processing.window)
