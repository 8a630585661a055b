"""Operations at a provider that this process plays: the test says what it answers, and sees what it was asked."""

import collections
import datetime as dt
import uuid
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, ForeignKey, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from async_task import AsyncTask, Attempt, Outcome, Pollable, Polling
from async_task.schema.columns import Identifier, Name
from async_task.targets import registry
from clockwork import let_pass
from outbox import more_metadata

_others = registry.registered_targets()


class Away(Exception):
    """The provider is busy: a transient error."""


class Refused(Exception):
    """An error that is not transient."""


class Provider:
    def __init__(self) -> None:
        self.asked: list[Any] = []
        """What it was asked, in order."""
        self.meanwhile: Callable[[], object] = lambda: None
        """Called during each request."""
        self._answers: dict[str, collections.deque[Any]] = {}

    def will(self, what: str, *answers: Any) -> None:
        """Answer `what` with these, one after the other; exceptions are raised. The last one is repeated."""
        self._answers[what] = collections.deque(answers)

    def ask(self, what: str) -> Any:
        self.asked.append(what)
        self.meanwhile()
        answers = self._answers.get(what, collections.deque([{"check": "in_progress"}.get(what)]))
        answer = answers.popleft() if len(answers) > 1 else answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def count(self, what: str) -> int:
        return self.asked.count(what)


provider = Provider()


class Base(DeclarativeBase):
    metadata = more_metadata


class Columns:
    id: Mapped[int] = mapped_column(primary_key=True)
    provider_id: Mapped[str | None] = mapped_column(Name(100))
    results: Mapped[str | None] = mapped_column(Name(100))
    note: Mapped[str | None] = mapped_column(Name(100))


class Batch(Columns, Pollable, Base):
    """Its methods are plain functions."""

    __tablename__ = "batches"
    polling = Polling(name="test.batch", transient_errors=(Away,))

    def start(self, idempotency_key: str) -> None:
        self.note = idempotency_key
        provider.ask("start")
        self.provider_id = "at the provider"

    def check(self) -> str:
        answer: str = provider.ask("check")
        return answer

    def fetch(self) -> None:
        self.results = provider.ask("fetch")

    def handle(self) -> None:
        provider.ask("handle")

    def stop(self) -> None:
        provider.ask("stop")

    def secrets(self) -> list[str]:
        return ["sk-7355608"]


class AsyncBatch(Columns, Pollable, Base):
    """Its methods are coroutines."""

    __tablename__ = "async_batches"
    polling = Polling(name="test.async_batch", transient_errors=(Away,))

    async def start(self, idempotency_key: str) -> None:
        self.note = idempotency_key
        provider.ask("start")
        self.provider_id = "at the provider"

    async def check(self) -> str:
        answer: str = provider.ask("check")
        return answer

    async def fetch(self) -> None:
        self.results = provider.ask("fetch")

    async def handle(self) -> None:
        provider.ask("handle")

    async def stop(self) -> None:
        provider.ask("stop")


class Methods:
    def start(self, idempotency_key: str) -> None:
        provider.ask(f"start {type(self).__name__}")

    def check(self) -> str:
        answer: str = provider.ask("check")
        return answer

    def fetch(self) -> None:
        provider.ask("fetch")

    def handle(self) -> None:
        provider.ask("handle")


class Pair(Methods, Pollable, Base):
    """It has a primary key of two columns."""

    __tablename__ = "pairs"
    polling = Polling(name="test.pair")

    tenant: Mapped[str] = mapped_column(Name(100), primary_key=True)
    number: Mapped[uuid.UUID] = mapped_column(Identifier(), primary_key=True)


class Parent(Methods, Pollable, Base):
    """Its table has the rows of another class too."""

    __tablename__ = "families"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "parent"}  # noqa: RUF012
    polling = Polling(name="test.parent")

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(Name(16))


class Child(Parent):
    __mapper_args__ = {"polymorphic_identity": "child"}  # noqa: RUF012
    polling = Polling(name="test.child")


class Order(Methods, Pollable, Base):
    """It is read together with its items."""

    __tablename__ = "polled_orders"
    polling = Polling(name="test.order")

    id: Mapped[int] = mapped_column(primary_key=True)
    items: Mapped[list["Item"]] = relationship(lazy="joined")


class Item(Base):
    __tablename__ = "polled_items"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id))


registry._allowed = registry.AllowList(_others)  # the fixture of the tests registers them: other tests sweep too

HOUR = 3600.0


class World:
    """An application, its operations, and the time."""

    def __init__(self, app: AsyncTask, engine: Engine, model: type[Any]) -> None:
        self.app, self.engine, self.model = app, engine, model

    def submitted(self) -> int:
        """The id of an operation that was just submitted."""
        with Session(self.engine) as session, session.begin():
            batch = self.model()
            batch.submit(session)
            return int(batch.id)

    def running(self) -> int:
        """The id of one that the provider has accepted, and was asked nothing about since."""
        made = self.submitted()
        self.go_on()
        return made

    def by_hand(self, **values: Any) -> int:
        """The id of a row that somebody has written by hand."""
        with Session(self.engine) as session, session.begin():
            batch = self.model(**values)
            session.add(batch)
            session.flush()
            return int(batch.id)

    def change(self, made: int, **values: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(update(self.model).where(self.model.id == made).values(**values))

    def row(self, made: int) -> Any:
        with Session(self.engine) as session:
            found = session.get(self.model, made)
            session.expunge_all()
        return found

    def progress(self, made: int) -> tuple[str, bool, bool]:
        """Its status, and whether its results are fetched and its handler was called."""
        row = self.row(made)
        return row.status, row.results_fetched_at is not None, row.handler_dispatched_at is not None

    def attempts(self) -> list[Attempt]:
        with Session(self.engine) as session:
            found = list(session.scalars(select(Attempt).order_by(Attempt.id)))
            session.expunge_all()
        return found

    def go_on(self) -> list[Outcome]:
        """Perform what is due now, until nothing is."""
        outcomes: list[Outcome] = []
        while due := [one for one in self.attempts() if one.status == "pending" and one.due_at <= self.app.now()]:
            assert len(outcomes) < 20, "it never comes to rest"
            outcomes += [self.app.perform(one.id) for one in due]
        return outcomes

    def pass_by(self, seconds: float | dt.timedelta) -> None:
        let_pass(self.engine, seconds, also=(self.model,))

    def wait(self, made: int) -> float:
        """Seconds until its next poll, to the full second."""
        return float(round((self.row(made).next_poll_at - self.app.now()).total_seconds() / 5) * 5)
