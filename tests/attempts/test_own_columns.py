"""Columns that a model adds: their values are given to `create`, `call`, `ensure` and `create_many`."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, String
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import databases
from async_task import BaseAttempt, InvalidArguments
from async_task.testing import mode
from writing import Client, book

Sessions = sessionmaker[Session]


class Base(DeclarativeBase): ...


class TenantAttempt(BaseAttempt, Base):
    """A column that must be filled, one under another name, one with a default, and the version of the row."""

    __tablename__ = "tenant_attempts"

    tenant: Mapped[str] = mapped_column(String(20))
    colour: Mapped[str | None] = mapped_column("color", String(20), default="red")
    number: Mapped[int | None] = mapped_column(unique=True)
    lock_version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": lock_version}  # noqa: RUF012


@pytest.fixture
def tenants(engine: Engine) -> Iterator[None]:
    databases.drop_own(engine, Base.metadata)
    Base.metadata.create_all(engine)
    yield
    databases.drop_own(engine, Base.metadata)


ACME = {"tenant": "acme", "colour": "blue"}
Verb = Callable[[Session, dict[str, Any]], list[uuid.UUID]]
VERBS: dict[str, Verb] = {
    "create": lambda session, columns: [TenantAttempt.create(target=book, method_args={"number": 1}, session=session,
                                                             columns=columns).id],
    "call": lambda session, columns: [TenantAttempt.options(session=session, columns=columns).call(book, 1).id],
    "ensure": lambda session, columns: [TenantAttempt.ensure(session, target=Client, method_name="hurry",
                                                             idempotence_token="once", columns=columns).id],
    "create_many": lambda session, columns: TenantAttempt.create_many(
        session, [{"target": Client, "method_name": "hurry", "columns": columns}] * 2),
    "create_many of many": lambda session, columns: TenantAttempt.create_many(
        session, [{"target": Client, "method_name": "hurry", "columns": columns}] * 9),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_own_columns_are_written_by_every_verb(tenants: None, sessions: Sessions, verb: str) -> None:
    with sessions.begin() as session:
        ids = VERBS[verb](session, ACME)
    with sessions.begin() as session:
        found = [session.get_one(TenantAttempt, one) for one in ids]
        assert [(one.tenant, one.colour, one.lock_version) for one in found] == [("acme", "blue", 1)] * len(ids)


def test_ensure_tells_a_used_value_of_a_unique_column_from_a_used_token(tenants: None, sessions: Sessions) -> None:
    given: dict[str, Any] = {"target": Client, "method_name": "hurry", "columns": {"tenant": "acme", "number": 7}}
    with sessions.begin() as session:
        first = TenantAttempt.ensure(session, idempotence_token="one", **given).id
    with sessions() as session:
        assert TenantAttempt.ensure(session, idempotence_token="one", **given).id == first
        with pytest.raises(IntegrityError):
            TenantAttempt.ensure(session, idempotence_token="other", **given)


@pytest.mark.in_turns
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("columns", "why"),
    [
        (
            {"tenat": "acme"},
            r"columns: TenantAttempt adds no column .tenat. .did you mean .tenant.*the columns that it adds are",
        ),
        ({"queue": "mail"}, "columns: queue is not a column of your own: give it as queue=, if that is taken"),
        ({"claim_id": None}, "columns: claim_id is not a column of your own"),
        ({"method_args": "{}"}, "columns: method_args is not a column of your own"),
        (["tenant"], "columns: takes a mapping of names to values, not list"),
    ],
)
def test_other_columns_are_refused_before_anything_is_written(
    sessions: Sessions, verb: str, columns: Any, why: str
) -> None:
    for how in ("manual", "off"):
        with mode(how), sessions() as session, pytest.raises(InvalidArguments, match=why):
            VERBS[verb](session, columns)


def test_what_is_not_written_has_its_own_columns_too(sessions: Sessions) -> None:
    with mode("off"), sessions() as session:
        made = TenantAttempt.create(target=book, method_args={"number": 1}, session=session, columns=ACME)
        assert (made.tenant, made.colour) == ("acme", "blue")


def test_rows_with_different_own_columns_are_written_together(tenants: None, sessions: Sessions) -> None:
    given: list[dict[str, Any]] = [{"tenant": "a"}, {"tenant": "b", "colour": None}, {"tenant": "c", "colour": "blue"}]
    rows = [{"target": book, "method_args": {"number": 1}, "order_key": "k", "columns": one} for one in given * 3]
    with sessions.begin() as session:
        ids = TenantAttempt.create_many(session, rows)
    with sessions.begin() as session:
        found = [session.get_one(TenantAttempt, one) for one in ids]
        assert [(one.tenant, one.colour) for one in found] == [("a", "red"), ("b", None), ("c", "blue")] * 3
        assert sorted(one.seq or 0 for one in found) == [one.seq for one in found]
