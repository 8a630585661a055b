"""A row of a model that is its own job, as `show --model` and `explain --model` print it."""

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click
from rich.text import Text

from async_task import (
    AsyncTask,
    EventInfo,
    InvalidArguments,
    JobEventInfo,
    JobExplanation,
    JobInfo,
    NoteInfo,
    UnknownAttempt,
    events_of,
    notes_of,
)
from async_task_cli.faults import USAGE, Refusal
from async_task_cli.fields import as_json_value
from async_task_cli.history import BRIEF_NOTES, NOTE, PAGE, as_data, events_in_order, print_events, print_newest_notes
from async_task_cli.reason_lines import print_reasons, reason_as_data
from async_task_cli.terminal import moment, page, plain, print_sheet, since

FIELDS = (
    "model", "job_type", "key", "state", "submitted_at", "last_submitted_at", "attempted_at", "processed_at",
    "canceled_at", "error", "user", "read_at",
)  # fmt: skip
INSTANTS = {
    "submitted_at": "submitted", "last_submitted_at": "last submitted", "attempted_at": "attempted",
    "processed_at": "processed", "canceled_at": "canceled",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FoundJob:
    """A row with its reasons, its events and those of its attempt, and its newest notes."""

    told: JobExplanation
    events: Sequence[JobEventInfo]
    of_attempt: Sequence[EventInfo]
    notes: Sequence[NoteInfo]

    @property
    def all_events(self) -> list[EventInfo | JobEventInfo]:
        return [*self.events, *self.of_attempt]


@contextmanager
def finding(app: AsyncTask) -> Iterator[None]:
    """A row that is not there, and what is no key, as errors of the command line."""
    try:
        yield
    except UnknownAttempt as error:
        raise Refusal(f"{error} (looked in {app.address})") from None
    except InvalidArguments as error:
        raise Refusal(str(error), USAGE) from None


def say_reasons(app: AsyncTask, model: str, key: str, *, is_json: bool) -> None:
    """What `explain --model` prints."""
    with finding(app):
        told = app.explain_job(model, key)
    if is_json:
        click.echo(json.dumps(_as_data(told)))
        return
    console = page()
    console.print(Text(_title(told.job), style="bold"))
    print_sheet(console, [("state", plain(told.job.state))])
    print_reasons(console, told.reasons, told.job.read_at)


def say_job(app: AsyncTask, model: str, key: str, *, has_traces: bool, is_json: bool) -> None:
    """What `show --model` prints."""
    found = _found(app, model, key)
    if is_json:
        events = [_event(event, has_trace=has_traces) for event in found.all_events]
        click.echo(json.dumps({**_as_data(found.told), "events": events}))
        return
    console, job = page(), found.told.job
    console.print(Text(_title(job), style="bold"))
    print_sheet(console, list(_lines(found.told)))
    print_newest_notes(console, found.notes, job.read_at, shlex.join(("--model", job.model, job.key)))
    _print_events(found, job, has_traces=has_traces, are_notes_told=True)


def say_job_history(app: AsyncTask, model: str, key: str, *, has_traces: bool, is_json: bool) -> None:
    """What `show --model --history` prints."""
    found = _found(app, model, key)
    if is_json:
        for event in found.all_events:
            click.echo(json.dumps(_event(event, has_trace=has_traces)))
        return
    _print_events(found, found.told.job, has_traces=has_traces, are_notes_told=False)


def _found(app: AsyncTask, model: str, key: str) -> FoundJob:
    with finding(app):
        told = app.explain_job(model, key)
        events, notes = app.read(lambda session: _written(session, app.row(session, model, key)))
    attempt = told.job.attempt
    of_attempt = [] if attempt is None else list(events_in_order(app, attempt.id))
    return FoundJob(told, events, of_attempt, notes)


def _written(session: Any, row: Any) -> tuple[list[JobEventInfo], Sequence[NoteInfo]]:
    """All events of a row, and its newest notes; none of one that is gone by now."""
    events: list[JobEventInfo] = []
    if row is None:
        return events, ()
    while some := events_of(session, row, limit=PAGE, after=events[-1].id if events else None):
        events += some
    return events, notes_of(session, row, limit=BRIEF_NOTES + 1)


def _as_data(told: JobExplanation) -> dict[str, Any]:
    job = told.job
    attempt = None if job.attempt is None else str(job.attempt.id)
    return {
        **{name: as_json_value(getattr(job, name)) for name in FIELDS}, "attempt": attempt,
        "refused": dict(job.verbs), "reasons": [reason_as_data(one) for one in told.reasons],
    }  # fmt: skip


def _event(event: EventInfo | JobEventInfo, *, has_trace: bool) -> dict[str, Any]:
    of = str(event.attempt_id) if isinstance(event, EventInfo) else None
    return {**as_data(event, has_trace=has_trace), "attempt": of}


def _title(job: JobInfo) -> str:
    return f"{job.model} {job.key}"


def _lines(told: JobExplanation) -> Iterator[tuple[str, Text]]:
    job = told.job
    yield "state", plain(job.state)
    if told.reasons:
        yield "why", plain("\n".join(one.words for one in told.reasons))
    for name, words in INSTANTS.items():
        if (at := getattr(job, name)) is not None:
            yield words, plain(f"{moment(at)} ({since(at, job.read_at)})")
    if job.error is not None:
        yield "error", plain(job.error)
    if job.user is not None:
        yield "user", plain(str(job.user))
    if job.attempt is not None:
        yield "attempt", plain(f"{job.attempt.id}, {job.attempt.status.value}")
    for verb, why_not in job.verbs.items():
        yield verb, plain("allowed" if why_not is None else why_not.removeprefix(f"{verb}: "))


def _print_events(found: FoundJob, job: JobInfo, *, has_traces: bool, are_notes_told: bool) -> None:
    console = page()
    shown: dict[str, Sequence[EventInfo | JobEventInfo]] = {f"Events of {_title(job)}": found.events}
    if job.attempt is not None:
        shown[f"Events of its attempt {job.attempt.id}"] = found.of_attempt
    for title, events in shown.items():
        told = [event for event in events if not (are_notes_told and event.kind == NOTE)]
        console.print(Text(f"{title}{'' if told else ': none'}", style="bold"))
        print_events(console, told, has_traces=has_traces)
