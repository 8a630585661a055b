"""`/jobs`: attempts and rows that are their own jobs; by default those that are potentially stuck, the oldest first."""

import shlex
from collections.abc import Sequence
from typing import Any

from async_task.web.pages.job_list import JobList, attempts_page, merged_page, rows_page
from async_task.web.requests.query import Query
from async_task.web.requests.search import ROW_STATES, WORDS, Search, search_of
from async_task.web.security.refusal import Refused
from async_task.web.view import Asked, Page, View

DEFAULT, ALL, ATTEMPTS = "stuck", "all", "attempts"
COLUMNS = ("type", "id", "submitted", "last_submitted", "attempted", "error", "user")
ORDER_WORDS = {"oldest": "created", "newest": "-created", "due": "due", "due_last": "-due"}
"""The words of `async-task list --order`, by those of the reading API."""
FIELDS = ("type", "status", "target", "queue", "error", "since")
"""Qualifiers that the form has a field for."""
ONLY_ATTEMPTS = ("target", "method", "queue", "token", "error", "tries", "since", "until", "status")
"""Qualifiers that a row has nothing for: with them, only attempts are listed."""


def read(asked: Asked) -> View:
    query, search = asked.query, search_of(asked.query)
    models = asked.outbox.job_models
    kind = _kind(search, models, query)
    found = _found(asked, search, kind, models)
    short = asked.outbox.attempts.short_ids([one.attempt.id for one in found.lines if one.attempt is not None])
    is_of_rows = lists_rows(query, models)
    values = {
        "lines": found.lines, "next": found.next, "now": found.read_at, "short": short, "search": search,
        "viewing": found.words, "kind": kind, "models": models, "order": found.order,
        "is_of_rows": is_of_rows, "orders": ("oldest",) if is_of_rows else tuple(ORDER_WORDS),
        "words": _words(kind, found.statuses), "statuses": ",".join(found.statuses), "hidden": _hidden(search),
        "is_default": found.statuses == (DEFAULT,), "is_first": query.text("after") is None,
        "identifier": search.identifier, "is_cut": not found.lines and found.next is not None,
        "unread": found.unread,
    }  # fmt: skip
    rows = [one.cells for one in found.lines]
    data = {"jobs": [one.data for one in found.lines], "next": found.next, "read_at": found.read_at}
    return View(values, data, COLUMNS, rows, found.command, next=found.next)


def _words(kind: str, statuses: tuple[str, ...]) -> Sequence[str]:
    """What the form offers as a status, with the one that is chosen, which may be several."""
    words = WORDS if kind in ("", ATTEMPTS) else (DEFAULT, *ROW_STATES)
    return words if len(statuses) < 2 else (*words, ",".join(statuses))


def _hidden(search: Search) -> dict[str, str]:
    """What is searched for that the form has no field for: it must not be lost when the form is sent."""
    return {name: value for name, value in search.given.items() if name not in FIELDS}


def _kind(search: Search, models: Sequence[str], query: Query) -> str:
    """What is listed: `attempts`, the rows of one model, or, empty, both."""
    given = Query([("type", search.given["type"])]) if "type" in search.given else query
    kind = given.choice("type", ("", ATTEMPTS, *models), "")
    is_narrow = bool(search.words) or any(name in search.given for name in ONLY_ATTEMPTS)
    is_ordered = query.text("order") not in (None, "oldest") or _shows_all(query)
    is_of_attempts = (is_narrow or is_ordered or not models) and not search.is_of_rows
    return ATTEMPTS if not kind and is_of_attempts else kind


def _found(asked: Asked, search: Search, kind: str, models: list[str]) -> JobList:
    outbox, query, after = asked.outbox, asked.query, asked.query.text("after")
    if kind == ATTEMPTS:
        filters, order = filters_of(query), order_of(query)
        return attempts_page(outbox, filters, order, after, _command(filters, order))
    if kind in models or search.is_of_rows:
        _refuse_others(search)
        return rows_page(outbox, kind or None, _states_of_rows(search, query), search.given.get("user"), after)
    return merged_page(outbox, after)


def _states_of_rows(search: Search, query: Query) -> tuple[str, ...]:
    """In which rows are listed; none: in whichever."""
    states = tuple(one for one in search.statuses if one != DEFAULT)
    is_all = _shows_all(query) and not search.statuses
    return states if states or is_all else (DEFAULT,)


def _refuse_others(search: Search) -> None:
    """Raises Refused for what only attempts have: it would be left out without a word."""
    others = [name for name in ONLY_ATTEMPTS if name in search.given and name != "status"]
    if others or search.words:
        names = ", ".join(others) or "error"
        raise Refused(400, f"Rows of models are not searched by {names}: leave it out, or say type:attempts.")


def lists_rows(query: Query, models: Sequence[str]) -> bool:
    """Whether the list shows only rows of models, and no attempts. Raises Refused."""
    search = search_of(query)
    return search.is_of_rows or _kind(search, models, query) in models


def lists_both(query: Query, models: Sequence[str]) -> bool:
    """Whether the list shows rows of models beside attempts. Raises Refused."""
    return not lists_rows(query, models) and _kind(search_of(query), models, query) != ATTEMPTS


def order_of(query: Query) -> Any:
    """The order of a list of attempts. Raises Refused."""
    first = "oldest" if filters_of(query)["status"] == (DEFAULT,) else "newest"
    return query.choice("order", ORDER_WORDS, first)


def filters_of(query: Query) -> dict[str, Any]:
    """The keyword arguments of `outbox.attempts.list` that select attempts. Raises Refused."""
    search = search_of(query)
    if search.is_of_rows:
        raise Refused(400, "Attempts have no user, and not the states of rows: leave them out, or say type:MODEL.")
    statuses = search.statuses or (() if _shows_all(query) or search.given or search.words else (DEFAULT,))
    return search.filters() | {"status": statuses}


def _shows_all(query: Query) -> bool:
    return query.choice("show", (ALL, DEFAULT), DEFAULT) == ALL


def _command(filters: dict[str, Any], order: str) -> str:
    words = ["async-task", "list"]
    for name, value in filters.items():
        for one in value if isinstance(value, tuple) else (value,):
            words += [f"--{name}", str(one)]
    return shlex.join([*words, "--order", ORDER_WORDS[order]])


PAGE = Page("Jobs", "/jobs", "jobs.html", read)
