"""Who did what: the events that have an actor, of attempts, queues and other jobs."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, insert, update
from sqlalchemy.orm import Session, sessionmaker

from async_task import AsyncTask, Attempt, ConfigurationError, JobEvent, UnknownAttempt, acting
from async_task.reading import audit_log
from async_task.schema.audit import RUN
from conftest import by_one_door
from outbox import Client, act

Write = Callable[..., Attempt]
DAY = dt.timedelta(days=1)


@pytest.mark.slow
def test_what_people_did_is_listed_newest_first_with_before_and_after(
    app: AsyncTask, sessions: sessionmaker[Session], write: Write
) -> None:
    assert (app.attempts.audit().events, app.attempts.audit().next) == ((), None)
    first, second = write(act), write(Client, "fail")
    with acting("anna@web"), sessions.begin() as session:
        session.add(first)
        first.cancel(reason="a duplicate")
        first.add_note(text="see ticket 17")
    with acting("ben@web"), sessions.begin() as session:
        session.add(second)
        second.reschedule(at=app.now() + DAY)
    with acting("ben@web"):
        app.pause("mail", reason="down")
    with sessions.begin() as session:  # nobody says who
        session.add(second)
        second.retry_now()
    app.run_batch()  # its error has no actor, and its run is nothing that was done to a job
    found = app.attempts.audit()
    table = app.table_name
    assert [(one.actor, one.kind, one.job_type, one.job_id, one.message) for one in found.events] == [
        ("ben@web", "pause", "async_task_queues", "mail", "down"),
        ("ben@web", "reschedule", table, str(second.id), None),
        ("anna@web", "note", table, str(first.id), "see ticket 17"),
        ("anna@web", "cancel", table, str(first.id), "a duplicate"),
    ]
    cancel = found.events[-1]
    assert (cancel.before["status"], cancel.after["status"], found.next) == ("pending", "canceled", None)

    def kinds(**filters: Any) -> list[str]:
        return [one.kind for one in app.attempts.audit(**filters).events]

    assert kinds(actor="anna@web") == kinds(attempt=first.id) == ["note", "cancel"]
    assert kinds(verb="pause") == kinds(job_type="async_task_queues", job_id="mail") == ["pause"]
    assert kinds(attempt=str(second.id)[-8:], actor="ben@web") == ["reschedule"]
    assert kinds(since=DAY, until=app.now() + DAY) == ["pause", "reschedule", "note", "cancel"]
    assert kinds(until=DAY) == kinds(since=app.now() + DAY) == kinds(actor="anna") == []


@by_one_door
def test_a_page_of_the_audit_reads_a_bounded_number_of_events_and_says_where_it_ended(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ["error", "cancel", "cancel", "error", "error", "error", "cancel", RUN]
    rows = [{"job_type": "jobs", "job_id": str(number), "kind": kind} for number, kind in enumerate(kinds)]
    long_ago = app.now() - 2 * DAY
    with engine.begin() as connection:
        for row in rows:
            connection.execute(insert(JobEvent).values(row | {"actor": "anna" if row["kind"] != "error" else None}))
        old = JobEvent.job_id.in_(["0", "1"])
        connection.execute(update(JobEvent).where(old).values(created_at=long_ago))
    monkeypatch.setattr(audit_log, "READ", 3)

    def pages(**filters: Any) -> list[list[str]]:
        page = app.attempts.audit(**filters)
        found = [[one.job_id for one in page.events]]
        while page.next is not None:
            page = app.attempts.audit(**filters, after=page.next)
            found.append([one.job_id for one in page.events])
        return found

    assert pages() == [["6"], ["2"], ["1"]]
    assert pages(limit=1) == [["6"], ["2"], ["1"]]
    assert pages(since=DAY) == [["6"], ["2"], []]
    monkeypatch.setattr(audit_log, "READ", 7)
    assert pages(limit=1) == [["6"], ["2"], ["1"]]
    assert pages(since=DAY) == [["6", "2"]]


@by_one_door
def test_an_audit_refuses_what_names_nothing(app: AsyncTask) -> None:
    for wrong, words in {
        "verb": ({"verb": "retry"}, "did you mean 'retry_now'"),
        "half a job": ({"job_type": "jobs"}, "give both"),
        "two jobs": ({"attempt": "1234", "job_type": "jobs", "job_id": "1"}, "one of the two"),
        "a naive instant": ({"since": dt.datetime(2026, 1, 1)}, "naive"),
        "no text": ({"actor": 7}, "takes a text"),
        "no page": ({"limit": 0}, "limit"),
    }.values():
        with pytest.raises(ConfigurationError, match=words):
            app.attempts.audit(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UnknownAttempt):
        app.attempts.audit(attempt="12345678")
