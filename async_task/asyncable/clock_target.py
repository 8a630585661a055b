"""The sweep as a target, for the schedule of an application."""

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from async_task.asyncable import sweep
from async_task.asyncable.asyncable import Asyncable
from async_task.asyncable.registration import registered_asyncables
from async_task.attempts.attempt import BaseAttempt
from async_task.database.lanes import lane_of
from async_task.schema.tables import table_of
from async_task.targets.context import current_attempt
from async_task.targets.registry import target
from async_task.targets.retry import Retry


@target("async_task.process_models", mode="leased", retry=Retry.never())
def process_models(session: Session, limit: int = 100) -> None:
    """What `AsyncTask.process_models` does, as an entry of a schedule: `schedule.every(hours=1, call=process_models)`.

    Of the models whose attempts are in the table of this one. A failure waits for the next time of the entry.
    """
    engine = lane_of(session).engine
    sweep.process_models(engine, _models(engine), limit)


def _models(engine: Engine) -> list[type[Asyncable]]:
    known = registered_asyncables()
    tables = {table_of(one.processing.model): one.processing.model for one in known}
    if len(tables) > 1:
        tables = {table: model for table, model in tables.items() if _has_this(engine, model)}
    return [one for one in known if table_of(one.processing.model) in tables]


def _has_this(engine: Engine, model: type[BaseAttempt]) -> bool:
    """Whether the attempt that is being performed is in this table, which may be in another database."""
    table = table_of(model)
    try:
        with engine.begin() as connection:
            return connection.scalar(select(table.c.id).where(table.c.id == current_attempt().id)) is not None
    except Exception:
        return False
