"""A dashboard with something on every page."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Engine

from async_task import AsyncTask, Attempt, Schedule
from async_task.asyncable.registration import register
from async_task.attempts.notes import add_note
from async_task.schema.audit import acting
from mess import HEALTHY, mess
from outbox import Client, application
from reviews import Desk, Review

PAGES = ("/", "/jobs", "/jobs?show=all", "/stuck", "/targets", "/workers", "/schedules", "/system", "/audit")


@dataclass(frozen=True)
class Furnished:
    """`paths`: of all pages, and of jobs: failed and noted, retried, encrypted, lost, blocked, healthy, and a row."""

    app: AsyncTask
    paths: tuple[str, ...]


def furnished(engine: Engine, url: str, write: Callable[..., Attempt]) -> Furnished:
    """An application on this database with a schedule, a run, a mess, and people who have done something about it."""
    schedule = Schedule()
    schedule.every(minutes=15, call=Client.ping, key="ping")
    register(Review)
    app = application(engine, "sync", url, schedule=schedule)
    app.run_batch()
    made = mess(engine, write)
    noted, paused = made["same_error"][0], made["paused"][0]
    with acting("anna@web"):
        app.write(lambda session: add_note(session, session.get(Attempt, noted.id), "**Down** until 14:00, see `#7`."))
        app.write(lambda session: session.get(Attempt, paused.id).reschedule(session, at=paused.due_at, reason="later"))
        app.pause(queue="reports", reason="until noon")
    desk = Desk(app, engine, Review)
    rows = [desk.submitted(), desk.submitted()]
    jobs = [made[one][-1] for one in ("same_error", "key_missing", "orphan", "blocked", HEALTHY)]
    attempts = (f"/jobs/attempts/{one.id}" for one in (noted, *jobs))
    return Furnished(app, (*PAGES, *attempts, f"/jobs/test.review/{rows[0]}"))
