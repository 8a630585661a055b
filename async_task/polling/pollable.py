"""`Pollable`: the columns of an operation at a provider, and the methods that change its state.

Each change is one conditional UPDATE, on the state that was read before. A poll makes it in the transaction of its
attempt's outcome, which the claim of the attempt fences too.
"""

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from sqlalchemy import ColumnElement, Index, Table, event, inspect, update
from sqlalchemy.orm import Mapped, Mapper, Session, declared_attr, mapped_column

from async_task.attempts.attempt import BaseAttempt
from async_task.attempts.chain import key_of
from async_task.attempts.create import given
from async_task.attempts.notes import JobNote, notes_relationship
from async_task.attempts.options import SyncSession
from async_task.database.changed_objects import refresh_changed
from async_task.database.clock import clock_now
from async_task.database.sessions import attached_session
from async_task.error_text import storable
from async_task.errors import ConfigurationError, InvalidArguments, InvalidState, NoTransaction
from async_task.polling.chain import continue_chain
from async_task.polling.settings import Polling
from async_task.polling.states import STATE, TERMINAL, PollState
from async_task.polling.target import register
from async_task.schema.columns import Instant, Name
from async_task.targets.answers import refuse_generator

LONGEST_REASON = 255
METHODS = ("start", "check", "fetch", "handle")
"""What the user's class has to have. Those of the mixin are only called for a row that `submit` has not written."""


class Pollable:
    """The mixin for a model whose rows are operations that go on at a provider.

        class CompletionBatch(Pollable, Base):
            __tablename__ = "completion_batches"
            id: Mapped[int] = mapped_column(primary_key=True)
            provider_id: Mapped[str | None]

            def start(self, idempotency_key: str) -> None:
                self.provider_id = client.create_batch(self.id, idempotency_key=idempotency_key)

            def check(self) -> str: ...
            def fetch(self) -> None: ...
            def handle(self) -> None: ...

    `submit` writes the intent down in your transaction. From then on one attempt calls `start`, `check`, `fetch` and
    `handle`, each as `def` or `async def`, while no transaction is open. The row is detached: what you change of it is
    written together with the new state, and not if the method raises. `polling`: see `Polling`. Instants are in UTC,
    and of the database's clock.
    """

    polling: ClassVar[Polling] = Polling()

    status: Mapped[str] = mapped_column(Name(16), default=PollState.PENDING.value)
    """A `PollState`."""
    submitted_at: Mapped[dt.datetime | None] = mapped_column(Instant())
    """When it was submitted: at first by `submit`, then when the provider had accepted it."""
    next_poll_at: Mapped[dt.datetime | None] = mapped_column(Instant())
    """When the provider is to be asked next; null once it has ended."""
    results_fetched_at: Mapped[dt.datetime | None] = mapped_column(Instant(), index=True)
    """When `fetch` returned; for a state without results, when that state was written."""
    handler_dispatched_at: Mapped[dt.datetime | None] = mapped_column(Instant(), index=True)
    """When `handle` returned."""
    ended_at: Mapped[dt.datetime | None] = mapped_column(Instant())
    """When the provider said that it had ended, whatever the state."""
    failed_at: Mapped[dt.datetime | None] = mapped_column(Instant())
    """When it was written that it had failed."""
    failure_reason: Mapped[str | None] = mapped_column(Name(LONGEST_REASON))
    """Why it failed. `check` may set it before it returns "failed"."""

    @declared_attr
    def job_notes(cls) -> Mapped[list[JobNote]]:
        """The notes on this operation, the newest first; see `add_note` and `notes_of`."""
        model: Any = cls
        notes: Mapped[list[JobNote]] = notes_relationship(model)
        return notes

    @classmethod
    def __attempts_model__(cls) -> type[BaseAttempt]:
        """The model of the attempts that poll it."""
        return cls.polling.model

    def message_user(self) -> Any:
        """Override this to return the user who gets messages about this operation (`AsyncTask(on_message=...)`)."""
        return None

    def start(self, idempotency_key: str) -> Any:
        """Start the operation at the provider. The key is the same at each try: hand it to the provider, which then
        starts nothing twice. Also called again after an error, and after a crash."""
        raise NotImplementedError(f"{type(self).__name__} has no start()")

    def check(self) -> Any:
        """Ask the provider, and return the state: a `PollState`, or its text; not "pending". Never called after the
        end."""
        raise NotImplementedError(f"{type(self).__name__} has no check()")

    def fetch(self) -> Any:
        """Get the results of an operation that has ended. Called again until it returns."""
        raise NotImplementedError(f"{type(self).__name__} has no fetch()")

    def handle(self) -> Any:
        """Do what follows the end, whatever the state. Called again until it returns; then never again."""
        raise NotImplementedError(f"{type(self).__name__} has no handle()")

    def stop(self) -> Any:
        """Override this to cancel at the provider what is given up. What it raises is logged."""
        return None

    def secrets(self) -> Iterable[str]:
        """Override this to return the texts that no recorded error may hold, such as the key of the provider."""
        return ()

    def submit(self, session: SyncSession | None = None) -> None:
        """Submit the operation in your transaction, once: it starts after the commit, and never if that rolls back.

            with SessionLocal.begin() as session:
                CompletionBatch(prompts=prompts).submit(session)
            await session.run_sync(batch.submit)  # with an AsyncSession

        Calls nobody. `session`: left out, the one to which the row is attached. Flushes. Raises InvalidState if it was
        submitted before, NoTransaction without a session, ConfigurationError if its class lacks one of the methods.
        """
        _check_methods(type(self))
        own = _session_of(self, session)
        own.add(self)
        own.flush()
        c = _columns(type(self))
        now = {"submitted_at": clock_now(), "next_poll_at": clock_now()}
        self._change(own, now, c["status"] == PollState.PENDING, c["submitted_at"].is_(None), verb="submit")
        refresh_changed(own, self, STATE, only=STATE)
        continue_chain(own, type(self), key_of(self))

    def fail(self, session: SyncSession | None = None, *, reason: str) -> None:
        """Give the operation up: it is failed, and its handler is called. Legal until it has ended.

        Does not ask the provider. Raises InvalidState if it has ended, also at the same time; else as `submit`.
        """
        _check_reason(reason)
        own = _session_of(self, session)
        own.flush()
        status = _columns(type(self))["status"]
        self._change(own, _failed(reason), status.not_in(sorted(TERMINAL)), verb="fail")
        refresh_changed(own, self, STATE, only=STATE)
        continue_chain(own, type(self), key_of(self), at_once=True)

    # What a poll writes. `was`: the state that it has read.

    def record_start(self, session: Session, was: str, wait: dt.timedelta) -> None:
        """The provider has accepted it."""
        values = {"status": PollState.SUBMITTED.value, "submitted_at": clock_now(), **_next(wait)}
        self._change(session, values, _columns(type(self))["status"] == was)

    def record_stamp(self, session: Session, was: str) -> None:
        """It goes on, and its age counts from now."""
        c = _columns(type(self))
        values = {"submitted_at": clock_now(), "next_poll_at": clock_now()}
        self._change(session, values, c["status"] == was, c["submitted_at"].is_(None))

    def record_check(self, session: Session, was: str, state: PollState, wait: dt.timedelta) -> None:
        """The provider has answered. A state without results needs no fetch."""
        values: dict[str, Any] = {"status": state.value} | _next(wait)
        if state is PollState.FAILED:
            values = _failed(self.failure_reason or "the provider says that it has failed") | {"ended_at": clock_now()}
        elif state.is_terminal:
            fetched = {} if state is PollState.ENDED else {"results_fetched_at": clock_now()}
            values = {"status": state.value, "ended_at": clock_now(), "next_poll_at": None, **fetched}
        self._change(session, values, _columns(type(self))["status"] == was)

    def record_failure(self, session: Session, was: str, reason: str) -> None:
        """It was given up."""
        self._change(session, _failed(reason), _columns(type(self))["status"] == was)

    def record_fetch(self, session: Session, was: str) -> None:
        """Its results are fetched, or it has none."""
        c = _columns(type(self))
        unless_fetched = c["results_fetched_at"].is_(None)
        self._change(session, {"results_fetched_at": clock_now()}, c["status"] == was, unless_fetched)

    def record_handled(self, session: Session, was: str) -> None:
        """Its handler has returned."""
        c = _columns(type(self))
        conditions = (c["results_fetched_at"].is_not(None), c["handler_dispatched_at"].is_(None))
        values = {"handler_dispatched_at": clock_now(), "next_poll_at": None}
        self._change(session, values, c["status"] == was, *conditions)

    def record_delay(self, session: Session, was: str, wait: dt.timedelta) -> None:
        """Nothing was learned: the provider is asked again after `wait`."""
        self._change(session, _next(wait), _columns(type(self))["status"] == was)

    def _change(
        self, session: Session, values: Mapping[str, Any], *conditions: ColumnElement[bool], verb: str = "poll"
    ) -> None:
        """Raises InvalidState where the conditions do not hold any more."""
        c = _columns(type(self))
        mapper: Mapper[Any] = inspect(type(self))
        table: Any = c["status"].table
        identity = zip(table.primary_key.columns, mapper.primary_key_from_instance(self), strict=True)
        statement = update(table).where(*(column == value for column, value in identity), *conditions)
        result: Any = session.execute(
            statement.values({c[name]: value for name, value in values.items()}),
            bind_arguments={"mapper": mapper},
        )
        if result.rowcount != 1:
            raise InvalidState(f"{verb}: {type(self).__name__} {key_of(self)} is in another state by now, or is gone")


# Not when the class is made: the base of several classes may leave them to these.
def _check_methods(model: type[Pollable]) -> None:
    lacks = [f"{name}()" for name in METHODS if getattr(model, name) is getattr(Pollable, name)]
    if lacks:
        raise ConfigurationError(f"{model.__name__} lacks {', '.join(lacks)}: a Pollable has each of these methods")


def _columns(model: type[Any]) -> Mapping[str, Any]:
    """The columns of the state, by attribute."""
    attributes = inspect(model).column_attrs
    return {name: attributes[name].columns[0] for name in STATE}


def polling_indexes(model: type[Pollable]) -> list[Index]:
    """The indexes along which the sweep of polls reads."""
    c = _columns(model)
    swept = {c["results_fetched_at"], c["handler_dispatched_at"]}
    return [one for one in c["status"].table.indexes if next(iter(one.columns), None) in swept]


def _next(wait: dt.timedelta) -> dict[str, Any]:
    return {"next_poll_at": clock_now(wait.total_seconds())}


def _failed(reason: object) -> dict[str, Any]:
    short = storable(str(reason))
    short = short if len(short) <= LONGEST_REASON else f"{short[: LONGEST_REASON - 4]} ..."
    return {
        "status": PollState.FAILED.value, "failed_at": clock_now(), "failure_reason": short, "next_poll_at": None,
        "results_fetched_at": clock_now(),
    }  # fmt: skip


def _check_reason(reason: object) -> None:
    if not isinstance(reason, str) or not reason:
        raise InvalidArguments("reason: takes a text")


def _session_of(row: Pollable, session: SyncSession | None) -> Session:
    own = given(session) or attached_session(row)
    if own is None:
        raise NoTransaction(f"this {type(row).__name__} is attached to no session: give the one in which to change it")
    return own


@event.listens_for(Pollable, "instrument_class", propagate=True)
def _register(mapper: Mapper[Any], model: type[Any]) -> None:
    for name in (*METHODS, "stop"):
        refuse_generator(getattr(model, name), f"{model.__name__}.{name}()")
    if isinstance(mapper.local_table, Table):
        register(model)
