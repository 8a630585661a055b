"""The attempts that a verb changes: by their ids, by ids on standard input, or all that the filters select."""

import functools
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from async_task_cli.faults import USAGE, Refusal
from async_task_cli.options import once_more
from async_task_cli.selection import Filters, check_cursor, id_of, identifier, selected, selecting
from async_task_cli.terminal import counted, say

if TYPE_CHECKING:
    from async_task import AsyncTask

PAGE = 500
ORDER = "created"


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was given: `ids`, whole or in part; or with `is_all` up to `limit` attempts that the `filters` select,
    behind the id `after`.

    `is_sure`: --yes; `is_dry`: --dry-run.
    """

    ids: tuple[str, ...]
    is_all: bool
    filters: Filters
    limit: int
    after: str | None
    is_sure: bool
    is_dry: bool

    def found(self, app: "AsyncTask", verb: str, states: tuple[str, ...]) -> list[uuid.UUID]:
        """The ids, each once. With --all: of attempts in `states` unless --status gives others, after a person has
        agreed. Raises UnknownAttempt for a part of an id that fits no attempt, or several."""
        if not self.is_all:
            return list(dict.fromkeys(id_of(app, one) for one in self.ids))
        filters = self.filters if self.filters.status else replace(self.filters, status=states)
        # All are read before any is changed: a changed one may be selected again.
        ids = [one.id for one in selected(app, filters, ORDER, self.limit + 1, self.after, page=PAGE)]
        found, has_more = ids[: self.limit], len(ids) > self.limit
        if not found:
            say("No attempt is selected.")
        elif not self.is_dry and not self.is_sure:
            confirm(f"{verb} {counted(len(found), 'attempt')}{', the oldest of more' if has_more else ''}")
        if has_more and found:
            command = once_more(click.get_current_context(), "--after", str(found[-1]))
            say(f"More are selected. The next ones: {command}")
        return found


def choosing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Ids, or --all and its filters; the command is called with `chosen=`."""

    @click.argument("words", metavar="[ID...]", nargs=-1)
    @click.option("--all", "is_all", is_flag=True, help="Instead of ids: all that the filters below select.")
    @selecting
    @click.option("--limit", type=click.IntRange(min=1), metavar="N", help="With --all: the N oldest [default: 1000].")
    @click.option("--after", metavar="ID", help="With --all: only those behind this one.")
    @click.option("--yes", "is_sure", is_flag=True, help="With --all: do not ask.")
    @click.option("--dry-run", "is_dry", is_flag=True, help="Show what would change, and change nothing.")
    @functools.wraps(command)
    def chose(
        *args: Any, words: tuple[str, ...], is_all: bool, filters: Filters, limit: int | None, after: str | None,
        is_sure: bool, is_dry: bool, **options: Any,
    ) -> Any:  # fmt: skip
        is_filtered = filters != Filters() or limit is not None or after is not None
        _check(words, is_all=is_all, is_filtered=is_filtered)
        check_cursor(after, ORDER)
        chosen = Chosen(_ids(words), is_all, filters, limit or 1000, after, is_sure, is_dry)
        return command(*args, chosen=chosen, **options)

    return chose


def _check(words: tuple[str, ...], *, is_all: bool, is_filtered: bool) -> None:
    if is_all and words:
        raise click.UsageError("give ids, or --all with filters: not both")
    if not is_all and is_filtered:
        raise click.UsageError("filters select attempts for --all: add it, or leave them out")
    if not is_all and not words:
        raise click.UsageError("no attempt is named: give ids, - to read them from standard input, or --all")


def _ids(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(identifier(word) for word in _all_words(words))


def _all_words(words: Iterable[str]) -> Iterator[str]:
    for word in words:
        if word == "-":
            yield from sys.stdin.read().split()
        else:
            yield word


def confirm(words: str) -> None:
    """Ask a person. Raises Refusal if there is no terminal to ask on, and if they say no."""
    if not sys.stdin.isatty():
        raise Refusal(f"{words}? There is no terminal to ask on: --yes does it, --dry-run shows it", USAGE)
    if not click.confirm(f"{words[0].upper()}{words[1:]}?", err=True):
        raise Refusal("nothing was changed")
