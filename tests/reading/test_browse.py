"""`app.attempts`: what it lists, finds, counts and groups; and that it never reads more of a table than it says."""

import datetime as dt
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, String, insert, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from async_task import (
    AsyncTask,
    Attempt,
    BaseAttempt,
    ConfigurationError,
    DecryptionFailed,
    JobEvent,
    Status,
    UnknownAttempt,
    UnknownTarget,
    target,
)
from async_task.queue.fingerprints import normalised, parsed
from async_task.reading import due_pages, lookup, pages
from clockwork import let_pass
from conftest import by_one_door
from outbox import Client, act, act_boxed, act_redacted

Write = Callable[..., Attempt]
HOUR = dt.timedelta(hours=1)


def set_row(engine: Engine, attempt: Attempt, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(update(Attempt).where(Attempt.id == attempt.id).values(values))


def end(engine: Engine, attempt: Attempt, status: Status, **values: Any) -> None:
    set_row(engine, attempt, status=status, completed_at=attempt.created_at, **values)


def ids(app: AsyncTask, **filters: Any) -> list[uuid.UUID]:
    """All of a list, over all of its pages."""
    page = app.attempts.list(**filters)
    found = [*page.attempts]
    while page.next is not None:
        page = app.attempts.list(**filters, after=page.next)
        found += page.attempts
    return [one.id for one in found]


def ids_of(*written: Attempt) -> list[uuid.UUID]:
    return [one.id for one in written]


# Lists


def test_a_list_has_the_newest_first_with_every_fact_but_the_arguments(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    first = write(Client, "ping", queue="mail", idempotence_token="order-7", priority=3)
    second = write(act)
    page = app.attempts.list()
    assert [one.id for one in page.attempts] == [second.id, first.id]
    found = page.attempts[1]
    assert (found.target, found.method_name, found.call) == ("test.client", "ping", "test.client.ping")
    assert (found.queue, found.priority, found.idempotence_token) == ("mail", 3, "order-7")
    assert (found.status, found.is_due, found.is_performing) == (Status.PENDING, True, False)
    assert page.attempts[0].call == "test.act"
    assert abs(page.read_at - dt.datetime.now(dt.UTC)) < HOUR
    assert page.next is None
    assert not hasattr(found, "method_args")
    assert not hasattr(found, "encoded_args")


@pytest.mark.slow
@by_one_door
def test_filters_select_and_all_must_hold(app: AsyncTask, engine: Engine, write: Write) -> None:
    ping = write(Client, "ping", queue="mail")
    poll = write(Client, "poll", idempotence_token="order-7", order_key="customer-7")
    other = write(act, queue="mail")
    set_row(engine, other, last_error="HTTPError: 503 at 100% load")
    assert ids(app, target="test.client") == ids_of(poll, ping)
    assert ids(app, target=Client) == ids_of(poll, ping)
    assert ids(app, method="poll") == ids_of(poll)
    assert ids(app, queue="mail", order="oldest") == ids_of(ping, other)
    assert ids(app, queue="mail", target="test.client") == ids_of(ping)
    assert ids(app, token="order-7") == ids_of(poll)
    assert ids(app, token="order-8") == []
    assert ids(app, order_key="customer-7") == ids_of(poll)
    assert ids(app, error="httperror") == ids(app, error="100%") == ids_of(other)
    assert ids(app, error="_") == []


@pytest.mark.slow
@by_one_door
def test_a_status_is_that_of_the_row_or_due_performing_stuck(app: AsyncTask, engine: Engine, write: Write) -> None:
    later = write(Client, "ping", scheduled_at=dt.datetime.now(dt.UTC) + HOUR)
    due, claimed, failed = (write(Client, "ping") for _ in range(3))
    claim = {"claim_id": uuid.uuid4(), "claimed_by": "me", "lease_until": due.due_at + HOUR}
    set_row(engine, claimed, **claim, num_attempts=1, attempted_at=claimed.created_at)
    end(engine, failed, Status.FAILED)
    assert ids(app, status="due") == ids_of(due)
    assert ids(app, status="performing") == ids_of(claimed)
    assert ids(app, status=["stuck"], order="oldest") == ids_of(due, claimed, failed)
    assert ids(app, status=Status.PENDING, order="oldest") == ids_of(later, due, claimed)
    assert ids(app, status=[Status.FAILED, "due"]) == ids_of(failed, due)


@by_one_door
def test_since_and_until_take_instants_and_lengths_before_the_databases_clock(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    old = write(Client, "ping")
    let_pass(engine, dt.timedelta(days=2))
    new = write(Client, "ping")
    day = dt.timedelta(days=1)
    for when in (day, dt.datetime.now(dt.UTC) - day):
        assert ids(app, since=when) == ids_of(new)
        assert ids(app, until=when) == ids_of(old)
    assert ids(app, since=7 * day, until=day) == ids_of(old)
    assert ids(app, since=new.created_at) == ids_of(new)
    assert ids(app, until=new.created_at) == ids_of(old)


@pytest.mark.in_turns
@pytest.mark.parametrize("order", ["newest", "oldest", "due", "due_last"])
@pytest.mark.parametrize("wanted", [{}, {"target": "test.client"}])
@by_one_door
def test_pages_have_each_attempt_once_while_others_come(
    app: AsyncTask, engine: Engine, write: Write, order: Any, wanted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "SCANNED", 3)
    monkeypatch.setattr(due_pages, "SCANNED", 3)
    soon = dt.datetime.now(dt.UTC) + HOUR
    # Two each are due at one instant: then the id decides. Every second one is of another target.
    written = [
        write((act, Client)[n % 2], ("", "ping")[n % 2] or None, scheduled_at=soon - n // 2 * HOUR / 9, priority=n % 3)
        for n in range(9)
    ]
    chosen = [one for one in written if not wanted or one.target == "test.client"]
    is_by_due = order in ("due", "due_last")
    chosen.sort(key=lambda one: (one.due_at if is_by_due else 0, one.id), reverse=order in ("newest", "due_last"))
    seen: list[uuid.UUID] = []
    page = app.attempts.list(order=order, limit=2, **wanted)
    seen += [one.id for one in page.attempts]
    if order == "newest":
        write(Client, "ping")
    while page.next is not None:
        page = app.attempts.list(order=order, limit=2, after=page.next, **wanted)
        assert len(page.attempts) <= 2
        seen += [one.id for one in page.attempts]
    assert seen == ids_of(*chosen)


@by_one_door
def test_a_list_by_due_time_has_what_waits_in_any_queue_and_nothing_else(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    now = dt.datetime.now(dt.UTC)
    second, first = write(act, scheduled_at=now - HOUR, queue="b", priority=9), write(act, scheduled_at=now - 2 * HOUR)
    ended, keyed = write(act), [write(act, order_key="k", scheduled_at=now + HOUR) for _ in range(2)]
    end(engine, ended, Status.CANCELED)
    assert ids(app, order="due") == ids_of(first, second)  # nothing has released the keyed ones
    assert ids(app, order="due_last", queue="b") == ids_of(second)
    assert len(keyed) == 2
    with pytest.raises(ConfigurationError, match="only what waits in a queue"):
        app.attempts.list(order="due", status="failed")


@target("test.newly_named_here", aliases=["test.named_before_here"])
def renamed() -> None:
    """Has rows under both of its names."""


@by_one_door
def test_a_target_is_found_by_each_of_its_names(app: AsyncTask, engine: Engine, write: Write) -> None:
    new, old = write(renamed), write(renamed)
    set_row(engine, old, target="test.named_before_here")
    for name in ("test.newly_named_here", "test.named_before_here", renamed):
        assert ids(app, target=name, order="oldest") == ids_of(new, old)


@pytest.mark.slow
@by_one_door
def test_a_name_that_only_rows_know_is_accepted_and_one_that_nothing_knows_is_refused(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    gone, waits, ended = write(act), write(act, queue="waits"), write(act, queue="ended")
    set_row(engine, gone, target="elsewhere.target")
    end(engine, ended, Status.CANCELED)
    app.pause("paused")
    assert ids(app, target="elsewhere.target") == ids_of(gone)
    assert ids(app, target="elsewhere.target", status="failed") == []
    assert ids(app, target="test.client") == []  # registered here
    for queue in ("waits", "ended", "paused", "default"):
        assert ids(app, queue=queue, status="failed") == []
        assert app.attempts.counts(queue=queue, status="failed").total == 0
    assert waits.queue == "waits"
    with pytest.raises(UnknownTarget, match=r"'elsewhere.targte' \(did you mean 'elsewhere.target'\?\)"):
        app.attempts.list(target="elsewhere.targte")
    with pytest.raises(ConfigurationError, match=r"no queue is named 'endde' \(did you mean 'ended'\?\)"):
        app.attempts.list(queue="endde")
    with pytest.raises(ConfigurationError, match=r"no queue is named 'wait' \(did you mean 'waits'\?\)"):
        app.attempts.counts(queue="wait")
    app.resume("paused")


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"status": "faild"}, "it was 'faild' (did you mean 'failed'?)"),
        ({"status": ["due", 7]}, "status is one of"),
        ({"order": "newset"}, "(did you mean 'newest'?)"),
        ({"limit": 0}, "limit is a whole number from 1 to 10,000"),
        ({"limit": 10_001}, "limit is a whole number"),
        ({"limit": True}, "limit is a whole number"),
        ({"after": "17"}, "after takes the `next` of a page"),
        ({"after": 17}, "after takes the `next` of a page"),
        ({"order": "due", "after": str(uuid.uuid4())}, "after takes the `next` of a page"),
        ({"since": dt.datetime(2026, 1, 1)}, "a naive datetime names no instant"),
        ({"until": "yesterday"}, "until takes an aware datetime or a timedelta"),
        ({"since": dt.timedelta.max}, "before the year 1"),
        ({"queue": 7}, "queue takes a text"),
        ({"queue": "a\0b"}, "queue takes a text without NUL characters"),
        ({"error": "\ud800"}, "error takes a text without NUL characters and surrogates"),
        ({"target": "a\0b"}, "target takes a text without NUL characters"),
        ({"status": None}, "status takes one status or a list of them, not NoneType"),
        ({"until": dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=14)))}, "outside of the years 1 to 9999"),
    ],
)
@pytest.mark.only_on("sqlite")
@by_one_door
def test_an_invalid_argument_is_refused_in_a_sentence(app: AsyncTask, given: Any, part: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        app.attempts.list(**given)
    assert part in str(refused.value)


@pytest.mark.only_on("sqlite")
@by_one_door
def test_inside_of_an_event_loop_reading_is_refused_with_what_to_write(app: AsyncTask) -> None:
    import asyncio

    async def ask() -> None:
        app.attempts.list()

    with pytest.raises(ConfigurationError, match=r"await asyncio.to_thread\(outbox.attempts.list\)"):
        asyncio.run(ask())


# One attempt


@by_one_door
def test_get_finds_by_the_whole_id_and_by_its_begin_or_end(app: AsyncTask, engine: Engine, write: Write) -> None:
    one, other = write(act), write(act)
    for given in (one.id, str(one.id), one.id.hex, str(one.id).upper(), one.id.hex[-8:], str(one.id)[:-1]):
        assert app.attempts.get(given).id == one.id
    with pytest.raises(UnknownAttempt, match="several attempts fit"):
        app.attempts.get(one.id.hex[:5])
    nobody = uuid.uuid4()
    with pytest.raises(UnknownAttempt, match=f"there is no attempt {nobody}"):
        app.attempts.get(nobody)
    with pytest.raises(UnknownAttempt, match="no attempt's id begins with 'ffff'"):
        app.attempts.get("ffff")
    for given in ("", "17", "order-7", "f" * 33):
        with pytest.raises(UnknownAttempt, match="is not a valid id"):
            app.attempts.get(given)
    assert other.id != one.id


@by_one_door
def test_the_end_of_an_id_is_looked_for_among_the_newest(
    app: AsyncTask, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = write(act), write(act)
    monkeypatch.setattr(lookup, "NEWEST", 1)
    assert app.attempts.get(new.id.hex[-10:]).id == new.id
    with pytest.raises(UnknownAttempt, match="none of the newest 1 ends with it"):
        app.attempts.get(old.id.hex[-10:])


def test_get_also_has_what_waits_behind_what(app: AsyncTask, engine: Engine, write: Write) -> None:
    first, second = write(act, order_key="k"), write(act, order_key="k")
    app.sweep()
    found = app.attempts.get(second.id)
    assert (found.waits_behind, found.is_due, found.released) == (first.id, False, False)
    assert app.attempts.get(first.id).waits_behind is None


@pytest.mark.slow
@by_one_door
def test_a_fact_sheet_says_why_a_verb_is_not_legal(app: AsyncTask, engine: Engine, write: Write) -> None:
    pending, claimed, lapsed, succeeded = (write(act) for _ in range(4))
    for one, until in ((claimed, HOUR), (lapsed, -HOUR)):
        claim = {"claim_id": uuid.uuid4(), "claimed_by": "shop:1:a", "lease_until": one.due_at + until}
        set_row(engine, one, **claim, num_attempts=1, attempted_at=one.created_at)
    end(engine, succeeded, Status.SUCCEEDED, num_attempts=1)
    for verb in ("cancel", "expire", "fail", "reschedule", "retry_now"):
        assert app.attempts.get(pending.id).why_not(verb) is None
        assert app.attempts.get(lapsed.id).why_not(verb) is None
        assert "is being performed by shop:1:a since" in str(app.attempts.get(claimed.id).why_not(verb))
        assert "is succeeded, and must be" in str(app.attempts.get(succeeded.id).why_not(verb))


@by_one_door
def test_arguments_are_shown_but_for_what_is_encrypted_or_redacted(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    plain = write(Client, "fulfill", {"customer_token": "c-1", "order_number": 7})
    redacted, sealed = write(act_redacted, None, {"card": "4711", "order": 7}), write(act_boxed, None, {"card": "4711"})
    shown = app.attempts.arguments(plain.id)
    assert shown.values == shown.stored == {"customer_token": "c-1", "order_number": 7}
    shown = app.attempts.arguments(redacted.id)
    assert (shown.values, shown.why_hidden) == ({"card": "[hidden]", "order": 7}, "by its target's policy")
    shown = app.attempts.arguments(sealed.id)
    assert (shown.values, shown.stored, shown.encryptor) == (None, None, "test.box")
    assert shown.length == len(sealed.encoded_args)
    assert app.attempts.arguments(sealed.id, decrypt=True).values == {"card": "4711"}
    set_row(engine, sealed, encoded_args="bm8=")
    with pytest.raises(DecryptionFailed):
        app.attempts.arguments(sealed.id, decrypt=True)
    set_row(engine, plain, target="elsewhere.target")
    shown = app.attempts.arguments(plain.id)
    assert shown.values == {"customer_token": "[hidden]", "order_number": "[hidden]"}
    assert "elsewhere.target.fulfill is not known here" in str(shown.why_hidden)


class Rows(DeclarativeBase):
    pass


class NotedAttempt(BaseAttempt, Rows):
    __tablename__ = "noted_attempts"
    note: Mapped[str | None] = mapped_column(String(20))


@pytest.mark.slow
@by_one_door
def test_get_has_the_columns_of_your_own_model(engine: Engine, app: AsyncTask) -> None:
    own = AsyncTask(engine, model=NotedAttempt)
    own.create_schema()
    try:
        with Session(engine) as session, session.begin():
            attempt = NotedAttempt.create(target=act, session=session)
            attempt.note = "for Ada"
        assert own.attempts.get(attempt.id).extra == {"note": "for Ada"}
        assert own.attempts.list().attempts[0].extra == {}
    finally:
        NotedAttempt.__table__.drop(engine)  # type: ignore[attr-defined]


# Events and failures


def happened(engine: Engine, attempt: Attempt, kind: str, message: str, **values: Any) -> None:
    row = {"job_type": "async_task_attempts", "job_id": str(attempt.id), "kind": kind, "message": message}
    with engine.begin() as connection:
        connection.execute(insert(JobEvent).values(row | values))


@pytest.mark.slow
def test_events_come_in_order_and_in_parts(app: AsyncTask, engine: Engine, write: Write) -> None:
    one, other = write(act), write(act)
    for number in range(5):
        happened(engine, one, "error", f"Broken: {number}", num_attempt=number, detail="Traceback")
        happened(engine, other, "note", "Not mine", actor="anna")
    found = app.attempts.events(one.id)
    assert [(event.message, event.num_attempt, event.detail) for event in found] == [
        (f"Broken: {number}", number, "Traceback") for number in range(5)
    ]
    assert {event.attempt_id for event in found} == {one.id}
    assert app.attempts.events(one.id, limit=2, after=found[1].id) == found[2:4]
    assert app.attempts.events(one.id.hex[-12:], limit=1) == found[:1]
    assert app.attempts.events(uuid.uuid4()) == ()
    for after in ("x", True, -1, 2**70):
        with pytest.raises(ConfigurationError, match="after takes the `id` of an event"):
            app.attempts.events(one.id, after=after)  # type: ignore[arg-type]
    assert [event.message for event in app.attempts.errors(2)] == ["Broken: 4", "Broken: 3"]


@by_one_door
def test_failures_are_grouped_by_target_exception_and_what_the_message_has_in_common(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    one, other, gone = write(Client, "ping"), write(act), write(act)
    for number in range(3):
        happened(engine, one, "error", f"HTTPError: 503 after {number}.5 s for order '{number}' at {uuid.uuid4()}")
    happened(engine, other, "error", "HTTPError: 503 after 7 s for order 'x' at 0199f3a0-0000-7000-8000-000000000000")
    happened(engine, other, "crash", "the process shop:1:ab12 has died")
    happened(engine, gone, "error", "KeyError")
    happened(engine, gone, "note", "HTTPError: it was I")
    with engine.begin() as connection:
        connection.execute(Attempt.__table__.delete().where(Attempt.id == gone.id))  # type: ignore[attr-defined]
        connection.execute(insert(JobEvent).values(job_type="other", job_id="17", kind="error", message="KeyError: 1"))
    report = app.attempts.failures()
    assert (report.counted, report.is_complete) == (6, True)
    first, *others = report.groups
    message = "N after N s for order '...' at UUID"
    assert (first.target, first.exception, first.message) == ("test.client", "HTTPError", message)
    assert (first.count, first.attempts, first.latest, first.first <= first.last) == (3, 1, one.id, True)
    assert {(group.target, group.exception, group.message, group.count) for group in others} == {
        ("test.act", "HTTPError", message, 1),
        ("test.act", "crash", "the process shop:N:abN has died", 1),
        (None, "KeyError", "", 1),
    }
    assert (first.left, {group.left for group in others}) == (1, {0, 1})
    end(engine, one, Status.SUCCEEDED, num_attempts=1)
    assert app.attempts.failures().groups[0].left == 0


@by_one_door
def test_errors_are_looked_for_among_the_newest_events(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from async_task.reading import events, failures

    attempt = write(act)
    for number in range(3):
        happened(engine, attempt, "error", f"Broken: {number}")
    monkeypatch.setattr(events, "READ", 2)
    monkeypatch.setattr(failures, "READ", 2)
    report = app.attempts.failures()
    assert (report.counted, report.is_complete, len(report.groups)) == (2, False, 1)


@pytest.mark.parametrize(
    ("kind", "message", "expected"),
    [
        ("error", "Broken: no such order", ("Broken", "no such order")),
        ("error", "shop.errors.Broken: 17", ("shop.errors.Broken", "N")),
        ("error", "ValueError", ("ValueError", "")),
        ("error", "it said: nothing", ("", "it said: nothing")),
        ("error", "Broken: one\ntwo", ("Broken", "one")),
        ("error", "Broken: 17 (max_attempts used up: 2 of 2)", ("Broken", "N")),
        ("error", None, ("", "")),
        ("crash", "the process x has died", ("crash", "the process x has died")),
        ("loss", "the process x has died", ("loss", "the process x has died")),
    ],
)
def test_an_error_is_parsed_into_exception_and_message(kind: str, message: Any, expected: Any) -> None:
    assert parsed(kind, message) == expected


def test_a_message_is_normalised_by_its_numbers_uuids_and_quoted_texts() -> None:
    assert normalised("order 17 of 1,200.50 at 0xff") == "order N of N at N"
    assert normalised("key \"a\" or 'b' or `c` of 0199F3A0-0000-7000-8000-000000000000") == (
        "key '...' or '...' or '...' of UUID"
    )
    assert normalised("it isn't Ada's") == "it isn't Ada's"
    died = {
        normalised(f"the process web-1.org:{pid}:{token} has died")
        for pid, token in ((7, "8a3fc712"), (42, "0d1b22ee"))
    }
    assert died == {"the process WORKER has died"}


# Counts and depths


def test_counts_are_by_status_and_say_where_they_stopped(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending, failed, canceled = (write(act, queue="mail") for _ in range(3))
    end(engine, failed, Status.FAILED)
    end(engine, canceled, Status.CANCELED)
    counts = app.attempts.counts()
    assert counts.by_status == {Status.PENDING: 1, Status.FAILED: 1, Status.CANCELED: 1}
    assert (counts.total, counts.is_complete) == (3, True)
    assert app.attempts.counts(status="failed", queue="mail").by_status == {Status.FAILED: 1}
    monkeypatch.setattr(pages, "COUNTED", 2)
    counts = app.attempts.counts()
    assert (counts.by_status, counts.is_complete) == ({Status.FAILED: 1, Status.CANCELED: 1}, False)
    counts = app.attempts.counts(after=counts.next)
    assert (counts.by_status, counts.is_complete) == ({Status.PENDING: 1}, True)
    assert pending.queue == "mail"


@pytest.mark.slow
def test_depths_count_what_is_due_and_waits_by_queue_and_target(app: AsyncTask, engine: Engine, write: Write) -> None:
    now = dt.datetime.now(dt.UTC)
    write(act, scheduled_at=now - HOUR, priority=5)
    write(act, scheduled_at=now + HOUR)
    write(Client, "ping", queue="mail", scheduled_at=now - 2 * HOUR)
    write(Client, "ping", queue="mail", scheduled_at=now - HOUR / 2, priority=9)
    write(act, queue="later", scheduled_at=now + HOUR)
    end(engine, write(act), Status.CANCELED)
    claim = {"claim_id": uuid.uuid4(), "claimed_by": "me", "lease_until": now + HOUR}
    claimed = write(act, queue="claimed")
    set_row(engine, claimed, **claim, num_attempts=1, attempted_at=claimed.created_at)
    depths = app.attempts.depths()
    assert depths.is_complete
    assert [(one.queue, one.due, one.waiting, one.claimed) for one in depths.by_queue] == [
        ("claimed", 0, 0, 1), ("default", 1, 1, 0), ("later", 0, 1, 0), ("mail", 2, 0, 0),
    ]  # fmt: skip
    assert [(one.target, one.due, one.waiting, one.claimed) for one in depths.by_target] == [
        ("test.act", 1, 2, 1),
        ("test.client", 2, 0, 0),
    ]
    _, default, later, mail = depths.by_queue
    assert later.oldest_due is None
    for one, hours in ((default, 1), (mail, 2), (depths.by_target[0], 1), (depths.by_target[1], 2)):
        assert one.oldest_due is not None
        assert abs(one.oldest_due - hours * HOUR) < dt.timedelta(minutes=5)


@by_one_door
def test_depths_say_that_they_are_lower_bounds(app: AsyncTask, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from async_task.reading import depths

    for _ in range(4):
        write(act)
    monkeypatch.setattr(depths, "MOST_COUNTED", 3)
    monkeypatch.setattr(depths, "FEWEST", 2)
    found = app.attempts.depths()
    assert (found.is_complete, found.by_queue[0].due, found.by_target[0].due) == (False, 3, 3)


def test_now_is_the_databases_clock(app: AsyncTask) -> None:
    assert abs(app.now() - dt.datetime.now(dt.UTC)) < HOUR
