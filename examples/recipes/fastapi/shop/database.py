"""The engine, and the transaction of a request."""

import os
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

engine = create_async_engine(os.environ.get("SHOP_DATABASE_URL", "postgresql+psycopg://localhost/shop"))
SessionLocal = async_sessionmaker(engine, expire_on_commit=False)


async def transaction() -> AsyncIterator[AsyncSession]:
    async with SessionLocal.begin() as session:
        yield session


# Without scope="function" FastAPI sends the response first and commits then.
Transaction = Annotated[AsyncSession, Depends(transaction, scope="function")]
