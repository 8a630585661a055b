"""The library's own tables under Alembic: `ASYNC_TASK_DATABASE_URL=... alembic upgrade head`, from the tree's root.

Its revisions are those that `async-task install` and `upgrade` write, the same as into anybody's tree.
"""

import os

from alembic import context
from sqlalchemy import create_engine

from async_task import metadata

URL = os.environ.get("ASYNC_TASK_DATABASE_URL", "sqlite:///async_task.sqlite")


def run() -> None:
    if context.is_offline_mode():
        context.configure(url=URL, target_metadata=metadata, literal_binds=True)
        with context.begin_transaction():
            context.run_migrations()
        return
    engine = create_engine(URL)
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=metadata)
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
