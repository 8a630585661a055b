"""The filters that `list` and the verbs share, and the cursors of their pages."""

import contextlib
import datetime as dt
import functools
import string
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import click

from async_task import ConfigurationError, Status, UnknownTarget
from async_task_cli.faults import USAGE, Refusal, near
from async_task_cli.moments import MomentOrLength, instant

if TYPE_CHECKING:
    from async_task import AsyncTask, AttemptInfo

MOST_TRIES = 2**31 - 1
SHORTEST, WHOLE = 4, 32
"""How many digits a part of an id and a whole one have."""
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
    tries: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `outbox.attempts.list` and `.counts`."""
        return {name: getattr(self, name) for name in self.__slots__}


def selected(
    app: "AsyncTask", filters: Filters, order: str, limit: int, after: str | None, *, page: int | None = None
) -> Iterator["AttemptInfo"]:
    """Up to `limit` attempts behind the cursor `after`, read in pages."""
    while limit > 0:
        size = min(limit, page or limit, 10_000)
        with naming():
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


class State(click.Choice[str]):
    """One of these states; an unknown one is refused with the nearest."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        return super().get_invalid_choice_message(value, ctx).rstrip(".") + near(str(value), self.choices)


@contextlib.contextmanager
def naming() -> Iterator[None]:
    """A name that nothing has is an error of the command line, and not of the configuration."""
    try:
        yield
    except (UnknownTarget, ConfigurationError) as error:
        raise Refusal(str(error), USAGE) from error


def identifier(text: str) -> str:
    """The id, or the begin or end of one, that `text` is. Raises BadParameter."""
    digits = text.strip().replace("-", "")
    if not SHORTEST <= len(digits) <= WHOLE or not all(one in string.hexdigits for one in digits):
        words = f"{text!r} is not a valid id: give a UUID or its end, as `async-task list` prints it"
        raise click.BadParameter(words)
    return str(uuid.UUID(digits)) if len(digits) == WHOLE else text.strip()


def id_of(app: "AsyncTask", text: str) -> uuid.UUID:
    """The whole id for an `identifier`. A whole one need not be of any attempt. Raises UnknownAttempt for a part that
    fits none, or several."""
    try:
        return uuid.UUID(text)
    except ValueError:
        return app.attempts.get(text).id


def selecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """The filters as options; the command is called with `filters=`."""

    @click.option("--status", type=State(STATES), multiple=True, help="Only in these states; may be repeated.")
    @click.option("--target", metavar="NAME", help="Only of this target, by its name, or one that rows hold.")
    @click.option("--method", metavar="NAME", help="Only this method of a target.")
    @click.option("--queue", metavar="NAME", help="Only in this queue.")
    @click.option("--token", metavar="TOKEN", help="Only with this idempotence token.")
    @click.option("--since", type=MomentOrLength(), metavar="WHEN", help="Only created then or later.")
    @click.option("--until", type=MomentOrLength(), metavar="WHEN", help="Only created before then.")
    @click.option("--error", metavar="TEXT", help="Only with TEXT in the last error, in upper or lower case.")
    @click.option(
        "--tries", type=click.IntRange(0, MOST_TRIES), metavar="N", default=0, help="Only with at least N tries."
    )
    @functools.wraps(command)
    def filtered(*args: Any, **options: Any) -> Any:
        filters = Filters(**{name: options.pop(name) for name in Filters.__slots__})
        return command(*args, filters=filters, **options)

    return filtered
