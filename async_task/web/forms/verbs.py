"""The forms that change something: each is one verb of the library, in one transaction, with the actor and a reason."""

import datetime as dt
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from async_task.attempts.notes import add_note
from async_task.errors import UnknownAttempt
from async_task.schema.audit import acting
from async_task.web.forms import bulk
from async_task.web.forms.reasons import reason_of
from async_task.web.pages import job, row
from async_task.web.pages.job import ATTEMPTS, VERBS
from async_task.web.rendering.html import render, segment
from async_task.web.requests.query import LENGTH, UNITS, instant
from async_task.web.security.access import Right
from async_task.web.security.guard import form_of, require
from async_task.web.security.refusal import Refused
from async_task.web.site import Site, away_words, is_passing, refusal_of

T = TypeVar("T")
SUBMITTING = ("submit", "submit_for_processing")
NEEDS_REASON = (Right.EXPIRE, Right.FAIL, Right.CANCEL)
Change = Callable[[Any, Any], object]


async def change_one(right: Right, site: Site, request: Request) -> Response:
    """Retry, expire, fail, cancel or reschedule one attempt."""
    access, form = require(request, right), await form_of(request)
    attempt_id = _attempt_id(form)
    reason = reason_of(form, is_needed=right in NEEDS_REASON)
    change = await site.run(partial(_change_of, right, form, reason, site))  # it may ask the database's clock

    def work(session: Any) -> None:
        change(_found(session.get(site.outbox.model, attempt_id), f"attempt {attempt_id}"), session)

    await acted(site, partial(site.outbox.write, work), access.actor)
    return back_to(request, f"/jobs/{ATTEMPTS}/{attempt_id}", done=right)


def _change_of(right: Right, form: FormData, reason: str | None, site: Site) -> Change:
    if right is Right.RESCHEDULE:
        at = _instant_of(form, site)
        return lambda attempt, session: attempt.reschedule(session, at=at, reason=reason)
    verb = VERBS[right]
    return lambda attempt, session: getattr(attempt, verb)(session, reason=reason)


async def change_row(verb: str, site: Site, request: Request) -> Response:
    """Restart, submit, fail or cancel a row that is its own job."""
    access, form = require(request, row.RIGHTS[verb]), await form_of(request)
    model, key = _row_named(form)
    given = {"reason": reason_of(form, is_needed=True)} if verb not in SUBMITTING else {}
    await site.run(partial(_refuse_in_vain, site, verb, model, key))

    def work(session: Any) -> None:
        found = _found(site.outbox.row(session, model, key), f"row {key} of {model}")
        getattr(found, verb)(session, **given)

    await acted(site, partial(site.outbox.write, work), access.actor)
    return back_to(request, f"/jobs/{segment(model)}/{segment(key)}", done=verb)


def _refuse_in_vain(site: Site, verb: str, model: str, key: str) -> None:
    """Raises Refused for a verb that the model has not, of which it may have a method of its own; and for a restart
    shortly after a try has begun, in which the row may be processed."""
    found = site.outbox.job(model, key)
    if verb not in found.verbs:
        raise Refused(400, f"Nothing was changed: a row of {model} has the verbs {', '.join(found.verbs)}, not {verb}.")
    if verb == "restart" and (why := found.why_not(verb)) is not None:
        raise Refused(409, f"Nothing was changed: {why}.")


async def note(site: Site, request: Request) -> Response:
    """Add a note to an attempt, or to a row that is its own job."""
    access, form = require(request, Right.NOTE), await form_of(request)
    text = str(form.get("text") or "")
    is_row = "model" in form
    kind, key = _row_named(form) if is_row else (ATTEMPTS, str(_attempt_id(form)))

    def work(session: Any) -> None:
        job = site.outbox.row(session, kind, key) if is_row else session.get(site.outbox.model, uuid.UUID(key))
        add_note(session, _found(job, f"job {key}"), text)

    await acted(site, partial(site.outbox.write, work), access.actor)
    return back_to(request, f"/jobs/{segment(kind)}/{segment(key)}", done="note")


async def reveal(site: Site, request: Request) -> Response:
    """Show the arguments of one attempt decrypted, once, and record who has seen them and why."""
    access, form = require(request, Right.REVEAL), await form_of(request)
    attempt_id, reason = _attempt_id(form), reason_of(form, is_needed=True)
    assert reason is not None
    shown = await acted(site, partial(site.outbox.reveal, attempt_id, reason=reason), access.actor)
    parts = {"kind": ATTEMPTS, "key": str(attempt_id)}
    asked = site.asked(job.NO_QUERY, access, parts)
    view = await site.run(partial(job.read, asked))
    values = dict(view.values) | {
        "revealed": shown, "page": job.PAGE, "title": view.title, "query": asked.query, "command": view.command,
        "done": "", "problem": None, "has_csv": False, "stem": job.PAGE.stem(parts),
        "python": job.as_python(view.values["attempt"], shown),
    }  # fmt: skip
    return HTMLResponse(render(request, job.PAGE.template, site.pages, values))


async def pause(is_pause: bool, site: Site, request: Request) -> Response:
    """Pause or resume a queue or a target."""
    access, form = require(request, Right.PAUSE), await form_of(request)
    given = {name: str(form[name]) for name in ("queue", "target") if form.get(name)}
    if len(given) != 1:
        raise Refused(400, "Name one queue or one target.")
    reason = reason_of(form, is_needed=is_pause)
    outbox: Any = site.outbox
    verb = partial(outbox.pause, **given, reason=reason) if is_pause else partial(outbox.resume, **given)
    await acted(site, verb, access.actor)
    return back_to(request, "/targets", done="pause" if is_pause else "resume")


async def change_schedule(verb: str, site: Site, request: Request) -> Response:
    """Run, pause or resume an entry of the schedule."""
    access, form = require(request, Right.RUN_NOW if verb == "run" else Right.PAUSE), await form_of(request)
    key = str(form.get("key") or "")
    given = {"reason": reason_of(form, is_needed=True)} if verb == "pause" else {}
    await acted(site, partial(getattr(site.outbox.schedule, verb), key, **given), access.actor)
    return back_to(request, "/schedules", done=verb)


async def acted(site: Site, verb: Callable[[], T], actor: str) -> T:
    """What a verb returns, done by this actor. Raises Refused with the words of the library where it is not allowed,
    with 409 where somebody else was first."""

    def done() -> T:
        with acting(actor):
            return verb()

    try:
        return await site.change(done)
    except Exception as error:
        if is_passing(error):
            raise Refused(503, f"{away_words(error)}. It may have been changed or not: look again.") from error
        raise refusal_of(error, "Nothing was changed: ") or error from error


def back_to(request: Request, path: str, *, done: str) -> Response:
    """A redirect to a page of this dashboard, which says what was done."""
    base = str(request.scope.get("root_path", "")).rstrip("/")
    return RedirectResponse(f"{base}{path}?done={done}", 303)


def _attempt_id(form: FormData) -> uuid.UUID:
    try:
        return uuid.UUID(str(form.get("id") or ""))
    except ValueError:
        raise Refused(400, "The form names no attempt.") from None


def _row_named(form: FormData) -> tuple[str, str]:
    model, key = str(form.get("model") or ""), str(form.get("key") or "")
    if not model or not key:
        raise Refused(400, "The form names no row.")
    return model, key


def _found(job: Any, name: str) -> Any:
    if job is None:
        raise UnknownAttempt(f"there is no {name}")
    return job


def _instant_of(form: FormData, site: Site) -> dt.datetime:
    """`at`: an instant of UTC, as a browser writes it without a zone; or a length of time from now."""
    given = str(form.get("at") or "").strip()
    if (length := LENGTH.fullmatch(given)) is not None:
        try:
            return site.outbox.now() + dt.timedelta(seconds=int(length[1]) * UNITS[length[2]])
        except OverflowError:
            raise Refused(400, "That is after the year 9999.") from None
    return instant("at", given)


FORMS: dict[str, Callable[[Site, Request], Any]] = {
    **{right.value: partial(change_one, right) for right in (
        Right.RETRY, Right.RESCHEDULE, Right.EXPIRE, Right.FAIL, Right.CANCEL
    )},
    **{f"row/{verb}": partial(change_row, verb) for verb in row.RIGHTS},
    "note": note,
    "reveal": reveal,
    "pause": partial(pause, True),
    "resume": partial(pause, False),
    "schedule/run": partial(change_schedule, "run"),
    "schedule/pause": partial(change_schedule, "pause"),
    "schedule/resume": partial(change_schedule, "resume"),
    "preview": bulk.preview,
    "bulk": bulk.perform,
}  # fmt: skip
"""What each path below `/act/` does."""
