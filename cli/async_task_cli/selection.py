"""The filters that `list` and the verbs share, and the cursors of their pages."""

import datetime as dt
import functools
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import click

from async_task import Status
from async_task_cli.moments import MomentOrLength, instant

if TYPE_CHECKING:
    from async_task import AsyncTask, AttemptInfo

STATES = (*(one.value for one in Status), "due", "performing", "stuck")
ORDERS: dict[str, Literal["newest", "oldest", "due", "due_last"]] = {
    "created": "oldest",
    "-created": "newest",
    "due": "due",
    "-due": "due_last",
}
"""By the word of `--order`: the same in the library."""


@dataclass(frozen=True, slots=True)
class Filters:
    """The filters as options give them; all must hold, and of several statuses any."""

    status: tuple[str, ...] = ()
    target: str | None = None
    method: str | None = None
    queue: str | None = None
    token: str | None = None
    since: dt.datetime | dt.timedelta | None = None
    until: dt.datetime | dt.timedelta | None = None
    error: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `app.attempts.list` and `.counts`."""
        return {name: getattr(self, name) for name in self.__slots__}


def selected(
    app: "AsyncTask", filters: Filters, order: str, limit: int, after: str | None, *, page: int | None = None
) -> Iterator["AttemptInfo"]:
    """Up to `limit` attempts behind the cursor `after`, read in pages."""
    while limit > 0:
        size = min(limit, page or limit, 10_000)
        found = app.attempts.list(**filters.options, order=ORDERS[order], limit=size, after=after)
        yield from found.attempts
        if found.next is None:
            return
        limit, after = limit - len(found.attempts), found.next


def cursor_of(row: "AttemptInfo", order: str) -> str:
    """What `--after` takes to go on behind `row`."""
    return f"{row.due_at.isoformat()},{row.id}" if order.endswith("due") else str(row.id)


def check_cursor(cursor: str | None, order: str) -> None:
    """Raises UsageError unless `cursor` is one of this order."""
    is_by_due = order.endswith("due")
    if cursor is None or _is_cursor(cursor, is_by_due):
        return
    shape = "the due_at and the id, joined by a comma," if is_by_due else "the id"
    raise click.BadParameter(f"{cursor!r} is not {shape} of the last line before", param_hint="'--after'")


def _is_cursor(cursor: str, is_by_due: bool) -> bool:
    due_at, comma, attempt_id = cursor.rpartition(",")
    try:
        uuid.UUID(attempt_id)
        if is_by_due:
            instant(due_at)
    except ValueError:
        return False
    return bool(comma) is is_by_due


def identifier(text: str) -> uuid.UUID:
    """The id that `text` is. Raises BadParameter."""
    try:
        return uuid.UUID(text)
    except ValueError:
        words = f"{text!r} is not a valid id: an id is a UUID, as `async-task list` prints it"
        raise click.BadParameter(words) from None


def selecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """The filters as options; the command is called with `filters=`."""

    @click.option("--status", type=click.Choice(STATES), multiple=True, help="Only in these states; may be repeated.")
    @click.option("--target", metavar="NAME", help="Only of this target, by its name, or one that rows hold.")
    @click.option("--method", metavar="NAME", help="Only this method of a target.")
    @click.option("--queue", metavar="NAME", help="Only in this queue.")
    @click.option("--token", metavar="TOKEN", help="Only with this idempotence token.")
    @click.option("--since", type=MomentOrLength(), metavar="WHEN", help="Only created then or later.")
    @click.option("--until", type=MomentOrLength(), metavar="WHEN", help="Only created before then.")
    @click.option("--error", metavar="TEXT", help="Only with TEXT in the last error, in upper or lower case.")
    @functools.wraps(command)
    def filtered(*args: Any, **options: Any) -> Any:
        filters = Filters(**{name: options.pop(name) for name in Filters.__slots__})
        return command(*args, filters=filters, **options)

    return filtered
