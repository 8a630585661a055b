"""The same with a Session and plain functions, which FastAPI calls in threads: `uvicorn shop.web_sync:app`."""

import os
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlalchemy import create_engine, make_url
from sqlalchemy.orm import Session, sessionmaker

from async_task import Attempt
from shop.models import Order
from shop.outbox import Warehouse

url = make_url(os.environ.get("SHOP_DATABASE_URL", "postgresql+psycopg://localhost/shop"))
SessionLocal = sessionmaker(create_engine(url.set(drivername=url.drivername.replace("+aiosqlite", ""))))


def transaction() -> Iterator[Session]:
    with SessionLocal.begin() as session:
        yield session


app = FastAPI()


@app.post("/orders/{number}", status_code=201)
def place(number: int, session: Annotated[Session, Depends(transaction, scope="function")]) -> dict[str, int]:
    session.add(Order(number=number))
    # session=, because FastAPI begins the transaction in one thread and calls this function in another.
    Attempt.options(session=session).call(Warehouse.pack, number)
    return {"number": number}
