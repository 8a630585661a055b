"""The web application: `uvicorn shop.web:app`."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy.exc import IntegrityError

from async_task import Access, Attempt
from shop.database import Transaction
from shop.models import Order
from shop.outbox import Warehouse, confirm, outbox


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    if os.environ.get("SHOP_WORKER") != "1":  # in production it is a process of its own: async-task worker
        yield
        return
    await asyncio.to_thread(outbox.check_schema)  # or the server would start, and the worker would not
    worker = outbox.worker()
    running = asyncio.create_task(asyncio.to_thread(worker.run))
    try:
        yield
    finally:
        worker.stop()
        await running


app = FastAPI(lifespan=lifespan)


@app.post("/orders/{number}", status_code=201)
async def place(number: int, session: Transaction) -> dict[str, int]:
    session.add(Order(number=number))
    Attempt.call(Warehouse.pack, number)
    Attempt.call(confirm, number)
    return {"number": number}


@app.get("/orders/{number}")
async def show(number: int, session: Transaction) -> dict[str, object]:
    order = await session.get_one(Order, number)
    return {"number": order.number, "is_confirmed": order.is_confirmed}


@app.exception_handler(IntegrityError)
async def refuse(request: Request, error: IntegrityError) -> JSONResponse:
    return JSONResponse({"error": "there is an order with this number"}, status_code=409)


def authorize(request: Request) -> Access:
    given, token = request.headers.get("Authorization", ""), os.environ.get("SHOP_DASHBOARD_TOKEN", "")
    is_known = token and secrets.compare_digest(given.encode(), f"Bearer {token}".encode())
    return Access.full("operator") if is_known else Access.none()


app.mount("/jobs", outbox.dashboard(authorize=authorize))
