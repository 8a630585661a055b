"""Attempts with an order key: one at a time, in the order in which they were written down."""

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session, sessionmaker

from async_task import Attempt
from outbox import Client


def test_keyed_attempts_are_numbered_in_the_order_of_their_inserts_by_every_door(
    engine: Engine, sessions: sessionmaker[Session]
) -> None:
    ids = []
    for number in range(2):
        with sessions.begin() as session:
            made = [
                Attempt.create(target=Client, method_name="ping", order_key=key, session=session)
                for key in ("a", "b", None, "a")
            ]
            session.flush()
            token = f"token {number}"
            again = {"target": Client, "method_name": "ping", "order_key": "a", "idempotence_token": token}
            ids += [made[0].id, made[3].id, Attempt.ensure(session, **again).id, Attempt.ensure(session, **again).id]
            rows = [{"target": Client, "method_name": "ping", "order_key": key} for key in ("a", None, "b", "a", "a")]
            many = Attempt.create_many(session, rows)
            ids += [many[0], *many[3:]]
    in_order = list(dict.fromkeys(ids))
    with engine.connect() as connection:
        t = Attempt.__table__.c
        found = connection.execute(select(t.id, t.seq).where(t.order_key == "a").order_by(t.seq)).all()
        unkeyed = connection.execute(select(t.seq, t.released, t.arrived).where(t.order_key.is_(None))).all()
        keyed = connection.execute(select(t.released, t.arrived).where(t.order_key.is_not(None)).distinct()).all()
    assert [row.id for row in found] == in_order
    assert len({row.seq for row in found}) == len(in_order)
    assert {tuple(row) for row in unkeyed} == {(None, True, None)}
    assert [tuple(row) for row in keyed] == [(False, True)]
