"""`/jobs/MODEL/KEY`: a row that is its own job, what keeps it from being processed, its notes, and who did what."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from async_task.attempts.notes import notes_of
from async_task.reading.events import JobEventInfo, events_of
from async_task.reading.explanation import Reason, command
from async_task.reading.jobs import JobInfo
from async_task.web.security.access import Access, Right
from async_task.web.security.refusal import NO_RIGHT, Refused
from async_task.web.view import Asked, View

MOST_EVENTS, MOST_NOTES = 500, 20
RIGHTS = {
    "restart": Right.RETRY, "submit_for_processing": Right.RETRY, "submit": Right.RETRY, "fail": Right.FAIL,
    "cancel": Right.CANCEL,
}  # fmt: skip
"""The right that each verb of a row needs."""
LABELS = {
    "restart": "Restart", "submit_for_processing": "Submit", "submit": "Submit", "fail": "Fail for good",
    "cancel": "Cancel the job",
}  # fmt: skip
COLUMNS = ("at", "kind", "try", "actor", "message")


def read(asked: Asked) -> View:
    """The view of the row that the path names."""
    outbox, kind, key = asked.outbox, asked.parts["kind"], asked.parts["key"]
    told = outbox.explain_job(kind, key)
    job = told.job
    refuse_other_users(asked.access, job.user)
    notes, events = outbox.read(lambda session: _happened(outbox.row(session, kind, key), session))
    reasons = reasons_for(asked.access, told.reasons)
    values = {
        "job": job, "reasons": reasons, "now": job.read_at, "notes": notes, "verbs": _verbs(job, asked.access),
        "events": [one for one in events if one.kind != "note"],
    }  # fmt: skip
    data = {"job": job, "reasons": reasons, "notes": notes, "events": events}
    rows = [(one.created_at, one.kind, one.num_attempt, one.actor, one.message) for one in events]
    shown_by = command_for(asked.access, "show", "--model", job.model, job.key, "--history")
    return View(values, data, COLUMNS, rows, shown_by, title=f"{job.model} {job.key}", template="row.html")


def refuse_other_users(access: Access, user: Any) -> None:
    """Raises Refused for a person who may see only their own jobs, if this one is of somebody else."""
    if access.user is not None and (user is None or str(user) != access.user):
        raise not_theirs()


def not_theirs() -> Refused:
    """The same for a job of somebody else as for none."""
    return Refused(404, "There is no such job of yours.")


def reasons_for(access: Access, reasons: Sequence[Reason]) -> Sequence[Reason]:
    """Without the commands of operators, for a person who may see only their own jobs."""
    if access.user is None:
        return reasons
    return [replace(one, words=one.words.partition("`async-task")[0].rstrip(" :"), remedy="") for one in reasons]


def command_for(access: Access, *words: str) -> str:
    """What gives the page in a shell; empty for a person who may see only their own jobs."""
    return "" if access.user is not None else command(*words)


def _happened(row: Any, session: Any) -> tuple[Any, tuple[JobEventInfo, ...]]:
    if row is None:  # deleted since
        return (), ()
    return notes_of(session, row, limit=MOST_NOTES), events_of(session, row, limit=MOST_EVENTS)


def _verbs(job: JobInfo, access: Access) -> list[dict[str, Any]]:
    """Each verb of the row, and why it is not allowed or has no effect now; None where it would do its work. No
    verbs for a person who may see only their own jobs."""
    if access.user is not None:
        return []
    return [
        {"name": verb, "label": LABELS.get(verb, verb), "why_not": _why_not(job, verb, access), "right": RIGHTS[verb]}
        for verb in job.verbs
        if verb in RIGHTS
    ]  # fmt: skip


def _why_not(job: JobInfo, verb: str, access: Access) -> str | None:
    if not access.may(RIGHTS[verb]):
        return NO_RIGHT
    found = job.why_not(verb)
    return None if found is None else found.partition(": ")[2] or found
