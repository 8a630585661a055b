"""An engine of the library configured like the user's: its options and listeners, in READ COMMITTED transactions."""

from typing import Any

from sqlalchemy import Engine, event

from async_task.database.dialects import locks_rows, sets_isolation_by_statement
from async_task.database.driver_errors import OURS
from async_task.database.transaction_start import begin_mysql, begin_sqlite, open_sqlite


def configured_like(engine: Engine, model: Engine) -> Engine:
    """`engine`, with the options and listeners of `model`, and with READ COMMITTED transactions.

    It is an engine beside the user's, not `execution_options()` of theirs: SQLAlchemy calls the listeners of the
    engine below last, so an AUTOCOMMIT of theirs would win, and no row would be locked.
    """
    _copy_behaviour(engine, model)
    OURS.add(engine)
    if sets_isolation_by_statement(engine.dialect):
        # For each transaction: on a dead connection the statement at checkout raises the driver's own error, which
        # SQLAlchemy does not wrap.
        event.listen(engine, "begin", begin_mysql)
    elif locks_rows(engine.dialect):
        engine.update_execution_options(isolation_level="READ COMMITTED")
    else:
        event.listen(engine, "connect", open_sqlite)
        event.listen(engine, "begin", begin_sqlite)
    return engine


def _copy_behaviour(engine: Engine, model: Engine) -> None:
    """Copy the options and listeners of `model`, which may set a tenant at each begin, or translate schemas.

    Its compiled statements are shared, as by SQLAlchemy's own copies of an engine: both have one dialect, and every
    lane would compile every statement again.
    """
    options = {name: value for name, value in model.get_execution_options().items() if name != "isolation_level"}
    engine.update_execution_options(**options)
    copied: Any = engine
    original: Any = model
    _copy_listeners(copied.dispatch, original.dispatch)
    copied._has_events = getattr(original, "_has_events", True)
    copied._compiled_cache = original._compiled_cache


def _copy_listeners(dispatch: Any, model: Any) -> None:
    """Copy the listeners of `model`; if that is an engine's `execution_options()`, also those of the engine itself."""
    if not hasattr(model, "local"):
        dispatch._update(model, only_propagate=False)
        return
    for name in dispatch._event_names:
        own = getattr(model, name).local
        if own.listeners:
            getattr(dispatch, name).for_modify(dispatch)._update(own, only_propagate=False)
    _copy_listeners(dispatch, model.parent)
