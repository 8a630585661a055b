"""`Asyncable`: the columns of a model that is its own job, its verbs and its predicates."""

import datetime as dt
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar, overload

from sqlalchemy import Select, Table, event, select
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, Mapper, declared_attr

from async_task.asyncable import verbs
from async_task.asyncable.chain import enqueue, give_up, name_of
from async_task.asyncable.columns import complete, made, values_of
from async_task.asyncable.messages import tell_of_success
from async_task.asyncable.registration import register
from async_task.asyncable.scopes import Scopes, of_values
from async_task.asyncable.selects import AsyncableScopes
from async_task.asyncable.settings import Processing
from async_task.asyncable.verbs import Delay, change, change_if, conditions, now_in, session_of
from async_task.attempts.attempt import BaseAttempt
from async_task.attempts.chain import key_of
from async_task.attempts.messages import MessageKind, send_message
from async_task.attempts.notes import JobNote, notes_relationship
from async_task.attempts.options import SyncSession
from async_task.error_text import sanitized
from async_task.errors import ConfigurationError, InvalidArguments


class _Processed:
    """`Review.processed()` selects the processed rows; `review.processed()` says that this one is processed."""

    @overload
    def __get__(self, row: None, model: type[Any]) -> Callable[[], Select[Any]]: ...
    @overload
    def __get__(self, row: "Asyncable", model: type[Any]) -> Callable[..., None]: ...
    def __get__(self, row: "Asyncable | None", model: type[Any]) -> Callable[..., Any]:
        return partial(_select_processed, model) if row is None else partial(_mark_processed, row)


def _select_processed(model: type[Any]) -> Select[Any]:
    """Select the processed rows."""
    return select(model).where(conditions(model).processed())


def _mark_processed(row: "Asyncable", session: SyncSession | None = None) -> None:
    """It is processed, once, and its error is cleared. The job says so by itself. InvalidState once it is processed or
    canceled."""
    own, model = session_of(row, session), type(row)
    now = {"processed_at": now_in(model, "processed_at"), "error": None}
    change(own, row, "processed", now, conditions(model).open())
    tell_of_success(own, model, key_of(row))


class Asyncable(AsyncableScopes):
    """The mixin for a model whose rows are their own jobs.

        class Review(Asyncable, Base):
            __tablename__ = "reviews"
            id: Mapped[int] = mapped_column(primary_key=True)

            def process(self) -> None:
                self.decision = board.establish(self.id)

    `submit_for_processing` enqueues the job in your transaction. A try is written into `attempted_at`, then calls
    `process`, and ends with `processed_at` or with `error`. What a try or a whole job loses, a sweep (`process_models`)
    gives another job, until the window is over. `processing`: see `Processing`. Instants are of the database's clock,
    in UTC. `__asyncable_columns__` names columns that are called otherwise, for example by a table that is there:
    `{"submitted_at": "establishment_submitted_at"}`.
    """

    processing: ClassVar[Processing] = Processing()
    __asyncable_columns__: ClassVar[Mapping[str, str]] = {}

    @declared_attr
    def submitted_at(cls) -> Mapped[dt.datetime | None]:
        """When it was first submitted."""
        return made(cls, "submitted_at")

    @declared_attr
    def last_submitted_at(cls) -> Mapped[dt.datetime | None]:
        """When it was last submitted or restarted; with a delay, when that has passed. Its window counts from here."""
        return made(cls, "last_submitted_at")

    @declared_attr
    def attempted_at(cls) -> Mapped[dt.datetime | None]:
        """When its last try began."""
        return made(cls, "attempted_at")

    @declared_attr
    def processed_at(cls) -> Mapped[dt.datetime | None]:
        """When it was processed."""
        return made(cls, "processed_at")

    @declared_attr
    def canceled_at(cls) -> Mapped[dt.datetime | None]:
        """When it was canceled."""
        return made(cls, "canceled_at")

    @declared_attr
    def error(cls) -> Mapped[str | None]:
        """What its last try raised; null after a success."""
        return made(cls, "error")

    @declared_attr
    def job_notes(cls) -> Mapped[list[JobNote]]:
        """The notes on this row, the newest first; see `add_note` and `notes_of`."""
        model: Any = cls
        notes: Mapped[list[JobNote]] = notes_relationship(model)
        return notes

    @classmethod
    def __attempts_model__(cls) -> type[BaseAttempt]:
        """The model of the attempts that process it."""
        return cls.processing.model

    # What a user overrides.

    # With these parameters type checkers let an override take a session or none.
    def process(self, *args: Any, **kwargs: Any) -> Any:
        """Do the work, as `def` or `async def`; it may take the session, `process(self, session)`. Called again after
        an error, and after a crash. An `Again` that it returns is not finished work."""
        raise NotImplementedError(f"{type(self).__name__} has no process()")

    def secrets(self) -> Iterable[str]:
        """Override this to return the texts that no recorded error may hold."""
        return ()

    @property
    def asyncable_user(self) -> Any:
        """Override this to return whose job it is: who gets messages about it (`AsyncTask(on_message=...)`). None:
        nobody."""
        return None

    @property
    def label(self) -> str:
        """How people are told of it."""
        return f"{type(self).__name__} {key_of(self)}"

    @property
    def path(self) -> str:
        """Where it is looked up."""
        return f"/jobs/{name_of(type(self))}/{key_of(self)}"

    # Verbs.

    def submit_for_processing(self, session: SyncSession | None = None, *, delay: Delay | None = None) -> None:
        """Submit it in your transaction, once: it is processed after the commit, and never if that rolls back.

            review.submit_for_processing(session, delay=timedelta(hours=21))
            await session.run_sync(review.submit_for_processing)  # with an AsyncSession

        `session`: left out, the one to which the row is attached. Flushes. `delay`: a duration, or the instant before
        which it is not processed. Raises InvalidState if it was submitted, processed or canceled before, NoTransaction
        without a session, InvalidArguments, and ConfigurationError if its class has no process().
        """
        check_process(type(self))
        wait = verbs.checked_delay(delay, self.processing.window)
        own, model = session_of(self, session), type(self)
        now = {
            "submitted_at": now_in(model, "submitted_at"),
            "last_submitted_at": now_in(model, "last_submitted_at", wait),
        }
        can = conditions(model)
        change(own, self, verbs.SUBMIT, now, can.open() & can.submitted_at.is_null())
        self._enqueue(own, "it was submitted", is_delayed=wait is not None)

    def restart(self, session: SyncSession | None = None, *, reason: str | None = None) -> None:
        """Process it again from the beginning, now: `submitted_at` is kept, all else is as after a first submission.

        Its job is enqueued in your transaction. If it is being processed at this moment, it is processed once more.
        `reason`: for the event of that, and of its attempt. Raises InvalidState if it was never submitted; else as
        `submit_for_processing`.
        """
        check_process(type(self))
        _check_reason(reason)
        own, model = session_of(self, session), type(self)
        nothing = dict.fromkeys(("processed_at", "attempted_at", "canceled_at", "error"))
        now = {"last_submitted_at": now_in(model, "last_submitted_at"), **nothing}
        change(own, self, "restart", now, conditions(model).submitted(), reason)
        self._enqueue(own, reason or "the row was restarted")

    def cancel(self, session: SyncSession | None = None, *, reason: str | None = None) -> bool:
        """Process it no more, and cancel its attempt. No effect once it is processed or canceled. Returns whether it
        had one. A try that goes on finishes, and leaves it canceled. Raises as `restart`."""
        _check_reason(reason)
        own, model = session_of(self, session), type(self)
        now = {"canceled_at": now_in(model, "canceled_at")}
        is_canceled = change_if(own, self, "cancel", now, conditions(model).open(), reason)
        if is_canceled:
            send_message(own, self, MessageKind.CANCELED)
            give_up(own, model, key_of(self), reason)
        return is_canceled

    def attempted(self, session: SyncSession | None = None) -> None:
        """A try begins now. The job says so by itself. InvalidState once it is processed or canceled."""
        own, model = session_of(self, session), type(self)
        change(own, self, "attempted", {"attempted_at": now_in(model, "attempted_at")}, conditions(model).open())

    processed = _Processed()
    """Of the class, the processed rows. Of a row: it is processed, once, which clears its error."""

    @overload
    def update_error(self, text: str, /) -> None: ...
    @overload
    def update_error(self, session: SyncSession, text: str, /) -> None: ...
    def update_error(self, *given: Any) -> None:
        """Record an error. The job does so by itself. Raises InvalidArguments for an empty text."""
        *session, text = given or (None,)
        if len(session) > 1 or not (isinstance(text, str) and text):
            raise InvalidArguments("update_error: takes a text that is not empty, and before it a session or none")
        own = session_of(self, *session or [None])
        change(own, self, "update_error", {"error": verbs.error_in(type(self), text)}, None)

    def clear_error(self, session: SyncSession | None = None) -> None:
        """Record that there is no error."""
        change(session_of(self, session), self, "clear_error", {"error": None}, None)

    def _enqueue(self, own: Any, reason: str, *, is_delayed: bool = False) -> None:
        due = verbs.due_of(own, self)
        expires_at, at = due + self.processing.window, due if is_delayed else None
        enqueue(own, type(self), key_of(self), at=at, expires_at=expires_at, reason=reason)

    # Predicates: of a row, by what was read of it; of the class, a condition for a query.

    @hybrid_property
    def is_processed(self) -> bool:
        return _said(self).processed()  # type: ignore[no-any-return]

    @hybrid_property
    def is_attempted(self) -> bool:
        return _said(self).attempted()  # type: ignore[no-any-return]

    @hybrid_property
    def is_submitted(self) -> bool:
        return _said(self).submitted()  # type: ignore[no-any-return]

    @hybrid_property
    def is_canceled(self) -> bool:
        return _said(self).canceled()  # type: ignore[no-any-return]

    @hybrid_property
    def is_submitted_and_ready(self) -> bool:
        """Submitted, and its delay has passed."""
        return _said(self).submitted_and_ready()  # type: ignore[no-any-return]

    @hybrid_property
    def is_submitted_not_processed(self) -> bool:
        return _said(self).submitted_not_processed()  # type: ignore[no-any-return]

    @hybrid_property
    def is_expired_without_processing(self) -> bool:
        """As the scope; of a row, by this process's clock."""
        return _said(self).expired_without_processing()  # type: ignore[no-any-return]

    @property
    def asyncable_status(self) -> str:
        """The first that holds: processed, canceled, attempted, submitted, not_yet_submitted."""
        return verbs.status_of(_said(self))

    @property
    def sanitized_error(self) -> str | None:
        """The first word of its error alone, because what follows may be personal data; None without an error."""
        text = values_of(self)["error"]
        return None if text is None else sanitized(text)


def check_process(model: type[Any]) -> None:
    """Raises ConfigurationError. Not when the class is made: a base of several classes may leave it to these."""
    if model.process is Asyncable.process:
        raise ConfigurationError(f"{model.__name__} lacks process(): an Asyncable has this method")


def _said(one: Any) -> Scopes[Any]:
    """What can be said of a row, or of the rows of a class."""
    if isinstance(one, type):
        return conditions(one)
    processing: Processing = one.processing
    return of_values(values_of(one), processing.interval, processing.window, dt.datetime.now(dt.UTC))


def _check_reason(reason: object) -> None:
    if reason is not None and not isinstance(reason, str):
        raise InvalidArguments(f"reason: takes a text, not {type(reason).__name__}")


@event.listens_for(Asyncable, "instrument_class", propagate=True)
def _register(mapper: Mapper[Any], model: type[Any]) -> None:
    complete(mapper, model)
    if isinstance(mapper.local_table, Table):
        register(model)
