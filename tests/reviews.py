"""Models that are their own jobs: the test says what `process` does, and sees for which rows it was called."""

import collections
import datetime as dt
from collections.abc import Callable
from typing import Any, ClassVar

from sqlalchemy import Connection, DateTime, Engine, ForeignKey, String, insert, select, update
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from async_task import Asyncable, AsyncTask, Attempt, Outcome, Processing
from async_task.schema.columns import Name
from async_task.targets import registry
from clockwork import let_pass
from outbox import more_metadata

_others = registry.registered_targets()
HOUR, DAY = 3600.0, 86_400.0
SECRET = "pin 7355608"


class Board:
    """What the rows are processed with."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        """The labels of the rows, in order."""
        self.does: Callable[[Any], Any] = lambda row: None
        """Called with the row that is being processed."""

    def establish(self, row: Any) -> Any:
        self.asked.append(row.label)
        return self.does(row)

    def will_raise(self, *errors: BaseException | None) -> None:
        """Raise these, one after the other; None returns. The last one is repeated."""
        left = collections.deque(errors)

        def raise_next(_: Any) -> None:
            error = left.popleft() if len(left) > 1 else left[0]
            if error is not None:
                raise error

        self.does = raise_next


board = Board()


class Base(DeclarativeBase):
    metadata = more_metadata


class Columns:
    id: Mapped[int] = mapped_column(primary_key=True)
    decision: Mapped[str | None] = mapped_column(Name(100))

    def secrets(self) -> list[str]:
        return [SECRET]


class Review(Columns, Asyncable, Base):
    """Its `process` is a plain function."""

    __tablename__ = "reviews"
    processing = Processing(name="test.review")

    def process(self) -> Any:
        self.decision = "granted"
        return board.establish(self)


class LeasedReview(Columns, Asyncable, Base):
    """It is processed while no transaction is open."""

    __tablename__ = "leased_reviews"
    processing = Processing(name="test.leased_review", mode="leased")

    def process(self) -> Any:
        self.decision = "granted"
        return board.establish(self)


class CoroutineReview(Columns, Asyncable, Base):
    """Its `process` is a coroutine function."""

    __tablename__ = "coroutine_reviews"
    processing = Processing(name="test.coroutine_review")

    async def process(self) -> Any:
        self.decision = "granted"
        return board.establish(self)


class SessionReview(Columns, Asyncable, Base):
    """Its `process` takes the session."""

    __tablename__ = "session_reviews"
    processing = Processing(name="test.session_review")

    def process(self, session: Session) -> Any:
        self.decision = "granted"
        session.add(Review(decision="by another"))
        return board.establish(self)


class AsyncSessionReview(Columns, Asyncable, Base):
    """Its `process` is a coroutine function that takes the session."""

    __tablename__ = "async_session_reviews"
    processing = Processing(name="test.async_session_review")

    async def process(self, session: AsyncSession) -> Any:
        self.decision = "granted"
        session.add(Review(decision="by another"))
        await session.flush()
        return board.establish(self)


class OldReview(Columns, Asyncable, Base):
    """Its table had columns of its own before, without time zones and with other names; and it sets its own times."""

    __tablename__ = "old_reviews"
    __asyncable_columns__: ClassVar = {
        "submitted_at": "establishment_submitted_at",
        "last_submitted_at": "establishment_last_submitted_at",
        "error": "establishment_error",
    }
    processing = Processing(name="test.old_review")

    establishment_submitted_at: Mapped[dt.datetime | None] = mapped_column(
        DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
    )
    sent: Mapped[dt.datetime | None] = mapped_column(
        "establishment_last_submitted_at", DateTime().with_variant(mysql.TIMESTAMP(fsp=6), "mysql", "mariadb")
    )
    establishment_error: Mapped[str | None] = mapped_column(String(40))

    def process(self) -> Any:
        self.decision = "granted"
        return board.establish(self)


class Paper(Columns, Asyncable, Base):
    """Its table has the rows of another class too."""

    __tablename__ = "papers"
    __mapper_args__: ClassVar = {"polymorphic_on": "kind", "polymorphic_identity": "paper"}
    processing = Processing(name="test.paper")

    kind: Mapped[str] = mapped_column(Name(16))

    def process(self) -> Any:
        return board.establish(self)


class Letter(Paper):
    """It has a table of its own beside."""

    __tablename__ = "review_letters"
    __mapper_args__: ClassVar = {"polymorphic_identity": "letter"}
    processing = Processing(name="test.letter")

    id: Mapped[int] = mapped_column(ForeignKey("papers.id"), primary_key=True)


class Form(Columns, Asyncable, Base):
    """Each of its rows is of a subclass."""

    __tablename__ = "review_forms"
    __mapper_args__: ClassVar = {"polymorphic_on": "kind"}
    processing = Processing(name="test.form")

    kind: Mapped[str] = mapped_column(Name(16))

    def process(self) -> Any:
        return board.establish(self)


class Appeal(Form):
    __mapper_args__: ClassVar = {"polymorphic_identity": "appeal"}
    processing = Processing(name="test.appeal")


class Pair(Asyncable, Base):
    """It has a primary key of two columns."""

    __tablename__ = "review_pairs"
    processing = Processing(name="test.review_pair")

    office: Mapped[str] = mapped_column(Name(100), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)

    def process(self) -> Any:
        return board.establish(self)


MODELS = (
    Review, LeasedReview, CoroutineReview, SessionReview, AsyncSessionReview, OldReview, Paper, Letter, Form,
    Appeal, Pair,
)  # fmt: skip
registry._allowed = registry.AllowList(_others)  # the tests register those that they need: other tests sweep too


def fill(connection: Connection, doublings: int, values: dict[str, Any]) -> None:
    """Write 2 ** `doublings` rows of Review with these values."""
    table: Any = Review.__table__
    key = connection.execute(insert(table).values(values)).inserted_primary_key[0]
    columns = [table.c[name] for name in values]
    for _ in range(doublings):
        connection.execute(insert(table).from_select(columns, select(*columns).where(table.c.id >= key)))


class Desk:
    """An application, one of these models, and the time."""

    def __init__(self, app: AsyncTask, engine: Engine, model: type[Any]) -> None:
        self.app, self.engine, self.model = app, engine, model

    def submitted(self, model: type[Any] | None = None, **options: Any) -> int:
        """The id of a row that was just submitted."""
        with Session(self.engine) as session, session.begin():
            row = (model or self.model)()
            row.submit_for_processing(session, **options)
            return int(row.id)

    def by_hand(self, **values: Any) -> int:
        """The id of a row that somebody has written by hand."""
        with Session(self.engine) as session, session.begin():
            row = self.model(**values)
            session.add(row)
            session.flush()
            return int(row.id)

    def do(self, made: Any, verb: str, *given: Any, **options: Any) -> Any:
        """Call a verb of the row in a transaction of its own."""
        with Session(self.engine) as session, session.begin():
            return getattr(session.get_one(self.model, made), verb)(*given, **options)

    def row(self, made: Any) -> Any:
        with Session(self.engine) as session:
            found = session.get(self.model, made)
            session.expunge_all()
        return found

    def status(self, made: Any) -> str:
        return str(self.row(made).asyncable_status)

    def change(self, made: int, **values: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(update(self.model).where(self.model.id == made).values(**values))

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

    def pass_by(self, seconds: float) -> None:
        let_pass(self.engine, seconds, also=(self.model,))
