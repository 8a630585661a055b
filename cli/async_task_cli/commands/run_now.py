"""`async-task run-now`: attempts made due, and performed in this process."""

import contextlib
import sys
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import click

from async_task import (
    AsyncTask,
    AsyncTaskError,
    Busy,
    Canceled,
    Expired,
    Failed,
    NotDue,
    NotPending,
    Outcome,
    Parked,
    Retried,
    Status,
    Succeeded,
    Superseded,
    acting,
)
from async_task_cli.actor import actor_of, as_actor
from async_task_cli.application import existing
from async_task_cli.changes import Change, Verb, applied, foreseen, report, status_of
from async_task_cli.chosen import Chosen, choosing
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.reasons import check_reason, with_reason
from async_task_cli.signals import INTERRUPTED, Stop, end
from async_task_cli.terminal import span

STOPPING = "async-task: stopping: finishing the running call; a second signal abandons it"
NAMES = {
    Succeeded: "succeeded", Retried: "retried", Failed: "failed", Expired: "expired", Canceled: "canceled",
    NotDue: "not_due", NotPending: "not_pending", Busy: "busy", Superseded: "superseded", Parked: "parked",
}  # fmt: skip


@click.command("run-now", context_settings=SETTINGS)
@choosing
@with_reason
@as_actor
@as_json
@reaching
def run_now(wanted: Wanted, chosen: Chosen, reason: str | None, actor: str | None, is_json: bool) -> int:
    """Make attempts due now, as `retry` does, and perform their calls here, one after the other.

    Prints the outcome of each. Ends with 0 when all succeeded or will be retried by their policy; with 1 when one was
    refused (busy, succeeded before), failed, expired or was parked. --all means the pending ones, unless --status
    gives others. More than one need a --reason.

    After SIGINT or SIGTERM no other call is started, and the running one is finished. A second signal abandons it: its
    attempt is released, uncharged.

    --json as with `retry`, and outcome: succeeded, retried, failed, expired, canceled, parked, busy, not_due,
    not_pending or superseded; null when the attempt could not be made due.
    """
    check_reason("run-now", reason, chosen, for_one=False)
    verb = Verb("run-now", "retry_now", Status.PENDING, "performed now", {"reason": reason})
    name = actor_of(actor)
    with existing(wanted) as app:
        ids = chosen.found(app, verb.word, (Status.PENDING.value,))
        changes = (foreseen(app, verb, one) if chosen.is_dry else _run(app, verb, one, name) for one in ids)
        with Stop(STOPPING, abandons=True).listening() as stop:
            try:
                code = report(verb.word, _until(stop, changes), is_dry=chosen.is_dry, is_json=is_json)
            except KeyboardInterrupt:
                return end(stop.exit_code or INTERRUPTED)
    return code if stop.exit_code is None else stop.exit_code


def _until(stop: Stop, changes: Iterable[Change]) -> Iterator[Change]:
    for change in changes:
        yield change
        if stop.event.is_set():
            return


def _run(app: AsyncTask, verb: Verb, attempt_id: uuid.UUID, actor: str) -> Change:
    def retry(session: Any) -> None:
        with acting(actor):
            applied(session, app, verb, attempt_id)

    try:
        with contextlib.redirect_stdout(sys.stderr):  # what targets print is not data
            outcome = app.perform(attempt_id, abandonable=True, before=retry)
    except AsyncTaskError as error:
        return Change(attempt_id, False, status_of(app, attempt_id), str(error))
    is_done = isinstance(outcome, (Succeeded, Retried))
    words = _words(outcome)
    said = words if is_done else f"run-now: attempt {attempt_id} {words}"
    return Change(attempt_id, is_done, status_of(app, attempt_id), said, NAMES[type(outcome)])


def _words(outcome: Outcome) -> str:  # noqa: PLR0911
    """The outcome in words, to follow the id."""
    match outcome:
        case Retried(_, after, None):
            return f"is not finished; its next poll is in {span(after.total_seconds())}"
        case Retried(_, after, error):
            return f"will be retried in {span(after.total_seconds())}: {error}"
        case Failed(_, reason):
            return f"failed: {reason}"
        case Expired(_, reason):
            return f"expired: {reason}"
        case Parked(_, after, reason) if not after:
            return f"is left to other processes, uncharged: {reason}"
        case Parked(_, after, reason):
            return f"is parked for {span(after.total_seconds())}, uncharged: {reason}"
        case Busy(_, by, _):
            return f"is being performed by {by or 'another process'}"
        case NotPending(_, status):
            return f"was performed or changed by another process, and is {status or 'gone'}"
        case NotDue(behind=behind) if behind is not None:
            return f"waits behind {behind}, an earlier one of its order key"
        case NotDue():
            return "was rescheduled by another process, and is not due"
        case _:
            return NAMES[type(outcome)].replace("_", " ")
