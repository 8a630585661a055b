"""Which attempts are meant: the filters that `list` and the verbs share, and where a page of them begins and ends."""

import datetime as dt
import functools
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from async_task.schema.states import Status
from async_task_cli.moments import MomentOrLength, instant

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from async_task import BaseAttempt

SELECTABLES = ("due", "performing", "stuck")
STATES = tuple(one.value for one in Status)
ORDERS = ("created", "-created", "due", "-due")
When = dt.datetime | dt.timedelta


@dataclass(frozen=True, slots=True)
class Filters:
    """What they say; all of them must hold, of several states any."""

    statuses: tuple[str, ...] = ()
    target: str | None = None
    method: str | None = None
    queue: str | None = None
    token: str | None = None
    since: When | None = None
    until: When | None = None
    error: str | None = None

    def conditions(self, model: "type[BaseAttempt]") -> "list[ColumnElement[bool]]":
        from sqlalchemy import or_

        columns: list[tuple[Any, str | None]] = [
            (model.method_name, self.method),
            (model.queue, self.queue),
            (model.idempotence_token, self.token),
        ]
        return [
            *([or_(*(_state(model, one) for one in self.statuses))] if self.statuses else []),
            *([model.target.in_(_names_of(self.target))] if self.target is not None else []),
            *(column == wanted for column, wanted in columns if wanted is not None),
            *([model.created_at >= _moment(self.since)] if self.since is not None else []),
            *([model.created_at < _moment(self.until)] if self.until is not None else []),
            *([model.last_error.icontains(self.error, autoescape=True)] if self.error is not None else []),
        ]


@dataclass(frozen=True, slots=True)
class Order:
    """The order of a list. Its key is unique and lies in every line, so that a page can begin behind any line.

    `created` is the order of the ids: these hold the time of their making (UUIDv7), and their index is there.
    """

    by: str = "created"

    @property
    def is_backward(self) -> bool:
        return self.by.startswith("-")

    @property
    def is_by_due(self) -> bool:
        return self.by.endswith("due")

    def columns(self, model: "type[BaseAttempt]") -> list[Any]:
        keys: list[Any] = [model.due_at, model.id] if self.is_by_due else [model.id]
        return [key.desc() if self.is_backward else key for key in keys]

    def behind(self, model: "type[BaseAttempt]", cursor: str | None) -> "list[ColumnElement[bool]]":
        """The condition for what comes behind `cursor`. Raises UsageError for one of another order."""
        if cursor is None:
            return []
        due_at, attempt_id = self._read(cursor)
        further = model.id < attempt_id if self.is_backward else model.id > attempt_id
        if due_at is None:
            return [further]
        later = model.due_at < due_at if self.is_backward else model.due_at > due_at
        return [later | ((model.due_at == due_at) & further)]

    def cursor(self, row: Any) -> str:
        """What `--after` takes to go on behind `row`."""
        return f"{row.due_at.isoformat()},{row.id}" if self.is_by_due else str(row.id)

    def _read(self, cursor: str) -> tuple[dt.datetime | None, uuid.UUID]:
        due_at, _, attempt_id = cursor.rpartition(",")
        try:
            if bool(due_at) is self.is_by_due:
                return instant(due_at) if due_at else None, uuid.UUID(attempt_id)
        except ValueError:
            pass
        shape = "the due_at and the id, joined by a comma," if self.is_by_due else "the id"
        raise click.BadParameter(f"{cursor!r} is not {shape} of the last line before", param_hint="'--after'")


def identifier(text: str) -> uuid.UUID:
    """The id that `text` is. Raises BadParameter."""
    try:
        return uuid.UUID(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no id: it is a UUID, as `async-task list` prints it") from None


def selecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """The filters; the command is called with `filters=`."""
    kind = click.Choice([*STATES, *SELECTABLES])

    @click.option("--status", "statuses", type=kind, multiple=True, help="Only in these states; may be repeated.")
    @click.option(
        "--target", metavar="NAME", help="Only this target, by a name that rows hold or that it is registered under."
    )
    @click.option("--method", metavar="NAME", help="Only this method of a target.")
    @click.option("--queue", metavar="NAME", help="Only in this queue.")
    @click.option("--token", metavar="TOKEN", help="Only with this idempotence token.")
    @click.option("--since", type=MomentOrLength(), metavar="WHEN", help="Only created then or later.")
    @click.option("--until", type=MomentOrLength(), metavar="WHEN", help="Only created before then.")
    @click.option("--error", metavar="TEXT", help="Only with TEXT in the last error, in capitals or not.")
    @functools.wraps(command)
    def selected(
        *args: Any, statuses: tuple[str, ...], target: str | None, method: str | None, queue: str | None,
        token: str | None, since: When | None, until: When | None, error: str | None, **options: Any,
    ) -> Any:  # fmt: skip
        filters = Filters(statuses, target, method, queue, token, since, until, error)
        return command(*args, filters=filters, **options)

    return selected


def _names_of(target: str) -> tuple[str, ...]:
    """All its names, where it is registered here: rows that were written before it was renamed hold a former one."""
    from async_task.errors import UnknownTarget
    from async_task.targets.registry import target_named

    try:
        return target_named(target).names
    except UnknownTarget:
        return (target,)


def _state(model: "type[BaseAttempt]", name: str) -> Any:
    if name == "performing":
        return (model.status == Status.PENDING) & model.claim_id.is_not(None)
    if name in SELECTABLES:
        return (model.due() if name == "due" else model.potentially_stuck()).whereclause
    return model.status == Status(name)


def _moment(when: When) -> Any:
    from async_task.database.clock import statement_now

    return when if isinstance(when, dt.datetime) else statement_now(-when.total_seconds())
