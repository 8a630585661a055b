"""Verbs for many attempts: a preview of a frozen set, and then each in a transaction of its own."""

import uuid
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from async_task.attempts.info import AttemptInfo
from async_task.errors import UnknownAttempt
from async_task.schema.audit import acting
from async_task.web.forms.reasons import reason_of
from async_task.web.pages import job
from async_task.web.pages.jobs import filters_of, lists_both, lists_rows, order_of
from async_task.web.rendering.html import render
from async_task.web.requests.query import Query
from async_task.web.security.access import Right
from async_task.web.security.guard import form_of, require
from async_task.web.security.refusal import Refused
from async_task.web.site import CHANGING, WITHIN, Site, refusal_of

VERBS: dict[Right, str] = {right: verb for right, verb in job.VERBS.items() if right is not Right.RESCHEDULE}
MOST = 5_000
"""How many attempts one form changes: their ids travel in it."""
AT_ONCE = 200
"""How many are changed by one request: then a page says how far it is, and goes on."""
TYPED_FROM = 100
"""Above this number a person types it, so that a filter that was too wide is seen."""
MOST_NAMED = 20
MOST_LOOKS = 100
"""How many bounded parts of the table are read for one preview."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What a verb would do. `by_state` and `by_call`: how many there are. `refused`: which will not change, and why.
    `is_cut`: more may match, and these are the first of the list. `is_without_rows`: the list also has rows of
    models."""

    verb: Right
    ids: tuple[uuid.UUID, ...]
    by_state: dict[str, int]
    by_call: dict[str, int]
    refused: dict[str, int]
    is_cut: bool
    is_without_rows: bool


async def preview(site: Site, request: Request) -> Response:
    """The page that says what will be changed, and asks for a reason."""
    form = await form_of(request)
    verb = _verb_of(form)
    require(request, verb)
    found = await site.run(partial(_previewed, site, form, verb))
    if not found.ids and found.is_cut:
        raise Refused(
            400, "None matches of the jobs that were looked at, and there are more: narrow the list by a time."
        )
    if not found.ids:
        raise Refused(400, "No attempt is chosen: tick some rows, or choose all that match.")
    values = {"preview": found, "typed_from": TYPED_FROM, "title": "Preview", "packed": pack(found.ids)}
    return HTMLResponse(render(request, "preview.html", site.pages, values))


def _previewed(site: Site, form: FormData, verb: Right) -> Preview:
    with site.outbox.reading(within=WITHIN):
        attempts, is_cut = _chosen(site, form)
        is_without_rows = form.get("all") == "1" and lists_both(_query_of(form), site.outbox.job_models)
    whys = (one.why_not(VERBS[verb]) for one in attempts)
    refused = Counter(_alike(why, one.id) for one, why in zip(attempts, whys, strict=True) if why is not None)
    by_state = Counter("performing" if one.is_performing else one.status.value for one in attempts)
    ids = tuple(one.id for one in attempts)
    by_call = Counter(one.call for one in attempts)
    return Preview(verb, ids, dict(by_state), dict(by_call), dict(refused), is_cut, is_without_rows)


def _chosen(site: Site, form: FormData) -> tuple[list[AttemptInfo], bool]:
    if form.get("all") == "1":
        query = _query_of(form)
        if lists_rows(query, site.outbox.job_models):
            raise Refused(400, "Rows of a model are changed one by one, each on its own page.")
        return _matching(site, filters_of(query), order_of(query))
    found = []
    for given in form.getlist("id")[:AT_ONCE]:
        try:
            found.append(site.outbox.attempts.get(uuid.UUID(str(given))))
        except ValueError:
            raise Refused(400, "The form names something that is no attempt.") from None
        except UnknownAttempt:
            continue
    return found, False


def _matching(site: Site, filters: dict[str, Any], order: Any) -> tuple[list[AttemptInfo], bool]:
    found: list[AttemptInfo] = []
    after = None
    for _ in range(MOST_LOOKS):
        page = site.outbox.attempts.list(**filters, order=order, limit=1_000, after=after)
        found += page.attempts
        after = page.next
        if after is None or len(found) > MOST:
            break
    return found[:MOST], after is not None or len(found) > MOST


def _query_of(form: FormData) -> Query:
    """What the list was asked for, in which all that match are chosen."""
    pairs = [(name, str(value)) for name, value in form.multi_items() if name not in ("id", "all", "verb", "q")]
    return Query([("q", str(form.get("q") or "")), *pairs])


async def perform(site: Site, request: Request) -> Response:
    """Change the next AT_ONCE of the frozen set, and say how far that is."""
    form = await form_of(request)
    verb = _verb_of(form)
    access, ids = require(request, verb), unpack(str(form.get("ids") or ""))
    total, reason = max(_number(form, "total", 0), len(ids)), reason_of(form, is_needed=True)
    assert reason is not None
    if total > TYPED_FROM and _number(form, "typed", -1) != total:
        raise Refused(400, f"Type the number of attempts, {total}, to change so many.")
    try:
        result = await site.change(partial(_change, site, verb, ids[:AT_ONCE], reason, access.actor))
    except Refused:  # those of the requests before this one are changed
        result = Changed(0, [], CHANGING)
    left, refused = ids[result.number :], result.refused
    values = {
        "verb": verb, "title": "Progress", "total": total, "left": len(left), "packed": pack(left), "reason": reason,
        "changed": _number(form, "changed", 0) + result.number - len(refused),
        "num_refused": _number(form, "refused", 0) + len(refused),
        "refused": refused[:MOST_NAMED], "so_far": total - len(left), "why_stopped": result.problem,
    }  # fmt: skip
    return HTMLResponse(render(request, "progress.html", site.pages, values))


@dataclass(frozen=True, slots=True)
class Changed:
    """Of how many it was decided, which of these were refused and why, and why it stopped before the end."""

    number: int
    refused: list[tuple[uuid.UUID, str]]
    problem: str | None = None


def _change(site: Site, verb: Right, ids: tuple[uuid.UUID, ...], reason: str, actor: str) -> Changed:
    refused: list[tuple[uuid.UUID, str]] = []

    def change(attempt_id: uuid.UUID, session: Any) -> None:
        attempt = session.get(site.outbox.model, attempt_id)
        if attempt is None:
            raise UnknownAttempt(f"there is no attempt {attempt_id}")
        getattr(attempt, VERBS[verb])(session, reason=reason)

    with acting(actor):
        for number, attempt_id in enumerate(ids):
            try:
                site.outbox.write(partial(change, attempt_id))
            except Exception as error:
                if (told := refusal_of(error)) is None:
                    raise
                if told.status == 503:
                    return Changed(number, refused, told.words)
                refused.append((attempt_id, _without_id(str(error), attempt_id)))
    return Changed(len(ids), refused)


def pack(ids: tuple[uuid.UUID, ...]) -> str:
    """As one field of a form."""
    return ",".join(one.hex for one in ids)


def unpack(packed: str) -> tuple[uuid.UUID, ...]:
    """The ids again. Raises Refused."""
    try:
        found = tuple(dict.fromkeys(uuid.UUID(one) for one in packed.split(",") if one))
    except ValueError:
        raise Refused(400, "The form names something that is no attempt.") from None
    if not 0 < len(found) <= MOST:
        raise Refused(400, f"A form names 1 to {MOST:,} attempts.")
    return found


def _verb_of(form: FormData) -> Right:
    given = str(form.get("verb") or "")
    if given not in VERBS:
        raise Refused(400, "The form names no verb.")
    return Right(given)


def _number(form: FormData, name: str, default: int) -> int:
    text = str(form.get(name) or "").strip().replace(",", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 8 else default


def _alike(why: str, attempt_id: uuid.UUID) -> str:
    """Without the worker that performs it, and since when."""
    return _without_id(why, attempt_id).partition(" by ")[0]


def _without_id(why: str, attempt_id: uuid.UUID) -> str:
    """The same words for all attempts."""
    return why.replace(f"attempt {attempt_id}", "it").partition(": ")[2] or why
