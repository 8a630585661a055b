"""The shop with a Session of SQLModel."""

from collections.abc import Iterator

import pytest
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, SQLModel, select

from shop.models import Address, Attempt, Order
from shop.orders import place
from shop.outbox import engine, outbox, send


@pytest.fixture(scope="module", autouse=True)
def tables() -> Iterator[None]:
    SQLModel.metadata.create_all(engine)  # those of async-task too
    yield
    engine.dispose()


def test_an_order_is_packed_after_its_call() -> None:
    place(1, "Ada")
    assert outbox.run_batch().succeeded == 1
    with Session(engine) as session:
        assert session.get_one(Order, 1).is_packed
        assert session.exec(select(Attempt.customer)).one() == "Ada"


def test_an_order_that_is_not_committed_leaves_no_call() -> None:
    place(2, "Ada")
    outbox.run_batch()
    with pytest.raises(IntegrityError):
        place(2, "Grace")
    assert outbox.run_batch().claimed == 0


def test_a_model_without_a_table_is_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with Session(engine) as session, session.begin():
        Attempt.options(session=session).call(send, 3, Address(city="Delft"))
    assert outbox.run_batch(concurrency=1).succeeded == 1
    assert capsys.readouterr().out == "3 goes to Delft\n"


def test_the_tables_of_create_all_have_their_version() -> None:
    outbox.check_schema()
