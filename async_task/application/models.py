"""What an `AsyncTask` does for models that are their own jobs."""

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Engine, Index

from async_task.application.upkeep import ApplicationUpkeep
from async_task.application.validation import at_least, check_text, flag, listed
from async_task.asyncable.asyncable import Asyncable
from async_task.asyncable.chain import name_of as processing_name
from async_task.asyncable.columns import asyncable_schema
from async_task.asyncable.restart import RestartReport, restart_rows
from async_task.asyncable.stuck import StuckModels
from async_task.asyncable.summary import ModelSummary, summarize
from async_task.asyncable.sweep import ProcessReport, asyncables_of, process_models
from async_task.attempts.draft import aware
from async_task.attempts.options import SyncSession
from async_task.errors import ConfigurationError, UnknownTarget, near
from async_task.polling.chain import name_of as polling_name
from async_task.polling.pollable import polling_indexes
from async_task.polling.target import registered_pollables
from async_task.reading.model_tables import lacking
from async_task.reading.row_keys import key_meant
from async_task.reading.stuck_groups import StuckSource
from async_task.schema.tables import table_of


class ApplicationModels(ApplicationUpkeep):
    """What people and a clock do with the rows of each `Asyncable`."""

    def process_models(self, limit: int = 100, *, dry_run: bool = False) -> ProcessReport:
        """See that each row of an `Asyncable` that requires processing has an attempt that is due: of each model the
        oldest submissions first, and at most `limit` new, opened or hurried attempts. Performs none.

        Any number may run at once, beside workers. A row or model that cannot be helped is in `errors` of the report,
        is logged, and stops no other. `dry_run`: only count. Raises as `run_batch`.
        """
        at_least(0, limit, "limit")
        is_dry = flag(dry_run, "dry_run")
        models = asyncables_of(self._model)
        run = self._run_checked if is_dry else self._change
        return run("process_models", lambda engine: process_models(engine, models, limit, is_dry=is_dry))

    def summarize_models(self, since: dt.datetime | None = None) -> ModelSummary:
        """Count the potentially stuck rows of each `Asyncable` by age and by the first word of their error, and measure
        how long those took that were processed `since` (an aware datetime; left out, ever). Reads all of these rows.
        Raises as `run_batch`."""
        first = None if since is None else aware(since, "since")
        models = asyncables_of(self._model)
        return self._read("summarize_models", lambda session: summarize(session, models, first))

    def check_models(self) -> list[str]:
        """Return a sentence for each table, column and index of an `Asyncable` or `Pollable` that the database lacks:
        until a migration adds them, none of these rows is processed or polled, or the sweeps read whole tables. Raises
        ConfigurationError inside of an event loop, and SQLAlchemy's OperationalError without a database."""

        def check(engine: Engine) -> list[str]:
            with engine.connect() as connection:
                return [
                    words for model in self._job_classes() for words in lacking(connection, model, sweep_indexes(model))
                ]

        return self._run("check_models", check)

    def restart_models(
        self, model: type[Asyncable] | str, keys: Iterable[Any] | None = None, *, reason: str, limit: int = 100,
        dry_run: bool = False,
    ) -> RestartReport:  # fmt: skip
        """Process rows of an `Asyncable` again from the beginning, now: those with these keys, or without any those
        whose window is over, the oldest first. Rows that were never submitted are submitted.

            outbox.restart_models(Review, [17, 18], reason="the board is back")

        `model`: the class, or the name of its job. `keys`: primary keys, or their text as `outbox.attempts.stuck` has
        it. `reason`: for the events of their attempts. `limit`: how many rows at most. Each is changed in a transaction
        of its own, by its own method; one that is refused stops no other. `dry_run`: say what would be done, and write
        nothing. Raises UnknownTarget, InvalidArguments for a key, ConfigurationError, and as `run_batch`.
        """
        check_text(reason, "reason")
        if not reason.strip():
            raise ConfigurationError("reason: say why, for the events")
        at_least(1, limit, "limit")
        is_dry = flag(dry_run, "dry_run")
        wanted = None if keys is None else listed(keys, "keys takes a list: restart_models(Review, [17], reason=...)")

        def restart(engine: Engine) -> RestartReport:
            meant = class_meant(asyncables_of(self._model), model, "an Asyncable")
            return restart_rows(engine, meant, wanted, limit, reason, is_dry=is_dry)

        return self._change("restart_models", restart)  # a dry run rolls back what it has changed

    def row(self, session: SyncSession, model: type[Any] | str, key: Any) -> Any:
        """Read a row of an `Asyncable` or `Pollable` by its key, for `add_note` or a verb of it; None if there is none.

            with acting("anna@host"), SessionLocal.begin() as session:
                add_note(session, outbox.row(session, "shop.models:Review", "17"), "The board **knows**.")

        `model`: the class, or the name of its job. `key`: the primary key, or its text, with a comma between the values
        of several columns. Raises UnknownTarget, InvalidArguments for a key, and ConfigurationError.
        """
        meant = self._job_class(model)
        return session.get(meant, key_meant(meant, key))

    def _job_class(self, model: object) -> type[Any]:
        """The class whose rows are meant. Raises UnknownTarget, ConfigurationError."""
        return class_meant(self._job_classes(), model, "an Asyncable or a Pollable")

    def _job_classes(self) -> list[type[Any]]:
        """The classes whose rows are processed or polled by attempts of this application."""
        pollables = [one for one in registered_pollables() if table_of(one.polling.model) is table_of(self._model)]
        return [*asyncables_of(self._model), *pollables]

    def _stuck_sources(self) -> tuple[StuckSource, ...]:
        return (StuckModels(asyncables_of(self._model)),)


def class_meant(models: Sequence[type[Any]], given: object, what: str) -> type[Any]:
    """The class that is given, or that has this name. Raises UnknownTarget, ConfigurationError."""
    if not isinstance(given, str):
        for one in models:
            if one is given:
                return one
        raise ConfigurationError(f"model is {what} that attempts of this application perform, or its name")
    by_name = {_name_of(one): one for one in models}
    if given not in by_name:
        raise UnknownTarget(f"no model that is its own job is called {given!r}{near(given, by_name)}")
    return by_name[given]


def sweep_indexes(model: type[Any]) -> Sequence[Index]:
    """The indexes along which the sweeps of this class read."""
    return [asyncable_schema(model).index] if issubclass(model, Asyncable) else polling_indexes(model)


def _name_of(model: type[Any]) -> str:
    return processing_name(model) if issubclass(model, Asyncable) else polling_name(model)
