import datetime as dt, pytest, uuid
from sqlalchemy import text
from async_task import Attempt, transactions
from clockwork import row_of
from outbox import Client
T=Attempt.__table__
@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("n", range(60))
def test_it(engine, write, n):
    attempt = write(Client, "ping")
    due = row_of(engine, attempt.id).due_at
    for k in range(3):
        got = transactions.claim_due(engine, T, "w", dt.timedelta(seconds=1), "default", 1, began=due, suspects=False)
        if got: break
    with engine.begin() as c:
        if k:
            from async_task import queries
            from sqlalchemy import select
            conds=queries.due(T, began=due, suspects=False)
            print("CONDS", [(str(x), c.execute(select(x).select_from(T)).all()) for x in conds], c.execute(select(T.c.due_at, T.c.due_at - due)).all())
            st=queries.nearest_due(T,"default",conds,1)
            print("N", c.execute(st).all(), c.execute(queries.due_in_priority(T,"default",0,conds,1)).all(), c.execute(text("explain "+str(st.compile(engine, compile_kwargs={"literal_binds":True})))).all())
        fresh=[tuple(r) for r in c.execute(text("select due_at, statement_timestamp(), clock_timestamp(), status, claim_id from async_task_attempts"))]
        c.execute(T.delete())
    assert k == 0, (k, due, fresh)
