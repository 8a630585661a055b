"""The shop's application, as the command line finds it: `async-task --app shop.app:app`.

SHOP_DATABASE_URL: its database, `shop.sqlite` in the working directory unless said. SHOP_LEASE: seconds after which the
calls of a process that has died are given back.
"""

import os

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from async_task import AsyncTask
from shop.models import Attempt, Base

engine = create_engine(os.environ.get("SHOP_DATABASE_URL") or "sqlite:///shop.sqlite", hide_parameters=True)
Session = sessionmaker(engine)
app = AsyncTask(Session, model=Attempt, modules=["shop.outbox"], lease=float(os.environ.get("SHOP_LEASE", "5")))


def create_tables() -> None:
    """Make the tables that are not there. A shop in earnest migrates."""
    app.create_schema()
    Base.metadata.create_all(engine)
