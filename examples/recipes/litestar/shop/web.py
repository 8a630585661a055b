"""The web application: `litestar --app shop.web:app run`."""

import os
import secrets

from advanced_alchemy.extensions.litestar import SQLAlchemyPlugin
from litestar import Litestar, asgi, get, post
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request

from async_task import Access
from shop.database import alchemy
from shop.models import Attempt, Order
from shop.outbox import outbox, pack


@post("/orders/{number:int}")
async def place(number: int, db_session: AsyncSession) -> dict[str, int]:
    async with db_session.begin():  # commits before the response; see the page
        db_session.add(Order(number=number))
        Attempt.call(pack, number)
    return {"number": number}


@get("/orders/{number:int}")
async def show(number: int, db_session: AsyncSession) -> dict[str, object]:
    order = await db_session.get_one(Order, number)
    return {"number": order.number, "is_packed": order.is_packed}


def authorize(request: Request) -> Access:
    given, token = request.headers.get("Authorization", ""), os.environ.get("SHOP_DASHBOARD_TOKEN", "")
    is_known = token and secrets.compare_digest(given.encode(), f"Bearer {token}".encode())
    return Access.full("operator") if is_known else Access.none()


dashboard = outbox.dashboard(authorize=authorize, base_path="/jobs")
app = Litestar(
    [place, show, asgi("/jobs", is_mount=True, copy_scope=True)(dashboard)],
    plugins=[SQLAlchemyPlugin(config=alchemy)],
)
