"""The forms of the dashboard: each is one verb, with the actor and the reason, and each refusal changes nothing."""

import datetime as dt
import re
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, delete, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.testclient import TestClient
from test_pages import everything

from async_task import Access, AsyncTask, Attempt, ReadTimeout, Right, Schedule, Status
from async_task.reading import pages
from async_task.web import site
from async_task.web.dashboard import dashboard
from async_task.web.forms import bulk
from async_task.web.pages import job
from claims import claimed
from conftest import by_one_door
from dashboards import ORIGIN, OURS, browser, send, token_in, words_of
from mess import changed, ended
from outbox import act, act_boxed, events_of

Write = Callable[..., Attempt]
ENDS = {"expire": Status.EXPIRED, "fail": Status.FAILED, "cancel": Status.CANCELED}


def status_of(engine: Engine, attempt: Attempt) -> str:
    with engine.connect() as connection:
        found = connection.scalar(select(Attempt.status).where(Attempt.id == attempt.id))
    return "gone" if found is None else found.value


@pytest.mark.slow
def test_each_verb_changes_an_attempt_and_says_who_and_why(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempts = {verb: write(act) for verb in (*ENDS, "reschedule")}
    attempts["retry"] = ended(engine, write(act), "Broken: order 7")
    with browser(app) as client:
        token = token_in(client)
        for verb, attempt in attempts.items():
            given = {"at": "2h"} if verb == "reschedule" else {}
            answer = send(client, verb, token, id=attempt.id, reason=f"to {verb}", **given)
            assert answer.status_code == 303, words_of(answer)
            assert (answer.status_code, answer.headers["location"]) == (
                303, f"/jobs/attempts/{attempt.id}?done={verb}",
            )  # fmt: skip
            page = client.get(answer.headers["location"])
            assert page.status_code == 200
            assert 'role="status"' in page.text
            assert f"to {verb}" in words_of(page)
    assert {verb: status_of(engine, attempts[verb]) for verb in ENDS} == {verb: one.value for verb, one in ENDS.items()}
    assert status_of(engine, attempts["retry"]) == "pending"
    for verb, attempt in attempts.items():
        event = next(one for one in events_of(engine, attempt.id) if one.actor is not None)
        assert (event.actor, event.message) == ("anna@web", f"to {verb}")
    due = app.attempts.get(attempts["reschedule"].id)
    assert dt.timedelta(hours=1, minutes=55) < due.due_at - due.read_at < dt.timedelta(hours=2, minutes=5)


@pytest.mark.slow
@by_one_door
def test_a_verb_that_lost_a_race_says_what_happened_instead(app: AsyncTask, engine: Engine, write: Write) -> None:
    running, over, gone = write(act), write(act), write(act)
    with browser(app) as client:
        token = token_in(client)
        pages = {one.id: client.get(f"/jobs/attempts/{one.id}") for one in (running, over, gone)}
        assert all("data-refused" not in page.text for page in pages.values())
        claimed(engine, running.id)
        changed(engine, over, status="succeeded", completed_at=over.created_at, num_attempts=1)
        with engine.begin() as connection:
            connection.execute(delete(Attempt).where(Attempt.id == gone.id))
        answers = [send(client, "cancel", token, id=one.id, reason="late") for one in (running, over, gone)]
        again = words_of(client.get(f"/jobs/attempts/{over.id}"))
    assert [one.status_code for one in answers] == [409, 409, 404]
    assert "is being performed by" in words_of(answers[0])
    assert "is succeeded" in words_of(answers[1])
    assert "is succeeded, and must be" in again
    assert [status_of(engine, one) for one in (running, over, gone)] == ["pending", "succeeded", "gone"]


@pytest.mark.slow
@by_one_door
def test_what_is_no_right_form_is_refused_and_changes_nothing(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(act)
    before = everything(engine)
    good = {"id": str(attempt.id), "reason": "why", "text": "a note"}
    with browser(app) as client:
        token = token_in(client)
        assert send(client, "cancel", token, id=attempt.id).status_code == 400  # no reason
        assert send(client, "cancel", token, id="1 OR 1=1", reason="why").status_code == 400
        assert send(client, "cancel", token, id=uuid.uuid4(), reason="why").status_code == 404
        assert send(client, "reschedule", token, id=attempt.id, at="tomorrow").status_code == 400
        assert send(client, "reschedule", token, id=attempt.id).status_code == 400
        assert send(client, "reschedule", token, id=attempt.id, at="999999w").status_code == 400
        assert send(client, "row/restart", token, model="x", key="1", reason="why").status_code == 400
        many = ",".join(uuid.uuid4().hex for _ in range(101))
        assert send(client, "bulk", token, verb="cancel", ids=many, total="1", reason="why").status_code == 400
        assert send(client, "note", token, id=attempt.id, text=" ").status_code == 400
        assert send(client, "note", token, id=attempt.id, text="x" * 70_000).status_code == 400
        assert send(client, "cancel", token, id=attempt.id, reason="x" * 3_000).status_code == 400
        assert send(client, "explode", token, **good).status_code == 404
        assert send(client, "pause", token, reason="why").status_code == 400
        assert send(client, "pause", token, queue="mail").status_code == 400
        for verb in ("cancel", "note", "bulk", "preview", "pause", "schedule/run", "reveal"):
            assert client.get(f"/act/{verb}", params=good).status_code == 405
            assert send(client, verb, "", **good).status_code == 403
            assert send(client, verb, "0" * 64, **good).status_code == 403
            other = {**OURS, "Sec-Fetch-Site": "cross-site"}
            assert client.post(f"/act/{verb}", data={"csrf": token, **good}, headers=other).status_code == 403
    for access in (Access.read("bob"), Access.of("eve", {"see_args"}), Access.none()):
        with browser(app, access) as client:
            for right in Right:
                assert send(client, right, "x", **good).status_code in (403, 404), right
    with browser(app, read_only=True) as client:
        page = client.get(f"/jobs/attempts/{attempt.id}")
        assert 'action="/act/' not in page.text
        assert send(client, "cancel", token_in(client), **good).status_code == 403
    assert everything(engine) == before


@by_one_door
def test_each_right_opens_its_own_verb_only(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(act)
    with browser(app, Access.of("eve", {"note"})) as client:
        page = client.get(f"/jobs/attempts/{attempt.id}")
        token = re.search(r'name="csrf" value="([0-9a-f]+)"', page.text)
        assert token is not None
        assert send(client, "cancel", token[1], id=attempt.id, reason="why").status_code == 403
        chosen = {"verb": "cancel", "reason": "why", "total": "1"}
        assert send(client, "preview", token[1], **chosen, id=attempt.id).status_code == 403
        assert send(client, "bulk", token[1], **chosen, ids=attempt.id.hex).status_code == 403
        assert send(client, "note", token[1], id=attempt.id, text="**seen** <b>").status_code == 303
        seen = client.get(f"/jobs/attempts/{attempt.id}").text
    assert "<strong>seen</strong> &lt;b&gt;" in seen
    assert "You do not have the right to do this." in seen
    assert status_of(engine, attempt) == "pending"


@pytest.mark.slow
@by_one_door
def test_revealing_arguments_is_recorded(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(act_boxed, None, {"card": "card-73556"})
    with browser(app) as client:
        token = token_in(client)
        assert send(client, "reveal", token, id=attempt.id).status_code == 400
        shown = send(client, "reveal", token, id=attempt.id, reason="ticket 17")
        after = client.get(f"/jobs/attempts/{attempt.id}").text
        assert "ticket 17" in client.get("/audit?verb=reveal").text
    assert shown.status_code == 200
    assert "card-73556" in shown.text
    assert shown.headers["cache-control"] == "no-store"
    assert "card-73556" not in after
    (event,) = [one for one in events_of(engine, attempt.id) if one.kind == "reveal"]
    assert (event.actor, event.message) == ("anna@web", "ticket 17")


@pytest.mark.slow
@by_one_door
def test_queues_and_entries_are_paused_and_resumed(engine: Engine, app: AsyncTask) -> None:
    schedule = Schedule()
    schedule.every(minutes=15, call=act, key="quarterly")
    own = AsyncTask(engine, schedule=schedule)
    with browser(own) as client:
        token = token_in(client)
        assert send(client, "pause", token, queue="mail", reason="smtp is down").status_code == 303
        paused = words_of(client.get("/targets"))
        assert send(client, "resume", token, queue="mail").status_code == 303
        assert send(client, "schedule/pause", token, key="quarterly", reason="holiday").status_code == 303
        assert "holiday" in words_of(client.get("/schedules"))
        assert send(client, "schedule/resume", token, key="quarterly").status_code == 303
        assert send(client, "schedule/run", token, key="quarterly").status_code == 303
        assert send(client, "schedule/run", token, key="quaterly").status_code == 400
        audit = words_of(client.get("/audit"))
        run = words_of(client.get("/audit?verb=run_now"))
    assert "by anna@web: smtp is down" in paused
    assert own.paused() == []
    assert own.attempts.counts().total == 1
    assert "smtp is down" in audit
    assert "holiday" in audit
    assert "anna@web run_now schedule quarterly" in run
    own.close()


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("access", [Access.full("anna"), Access.read("bob")])
def test_a_form_that_is_sent_to_a_page_leads_to_the_page(app: AsyncTask, access: Access) -> None:
    """As the form of a login does in a second tab, after a login in the first one."""
    with browser(app, access, base_path="/tools") as client:
        sent = client.post("/jobs?status=failed", data={"csrf": "old", "token": "x"}, headers=OURS)
        elsewhere = client.post("/jobs", headers={"Sec-Fetch-Site": "cross-site"})
    assert (sent.status_code, sent.headers["location"], elsewhere.status_code) == (303, "?status=failed", 403)


@pytest.mark.only_on("sqlite")
def test_the_address_of_a_form_says_that_it_takes_one(app: AsyncTask) -> None:
    with browser(app) as client:
        said = client.get("/act/retry")
    assert (said.status_code, said.headers["allow"]) == (405, "POST")
    assert said.text.count("Method Not Allowed") == 2  # the title and the heading
    assert "This address takes a form of a page of the dashboard." in words_of(said)


@pytest.mark.slow
@by_one_door
def test_a_note_that_the_field_takes_is_added(app: AsyncTask, write: Write) -> None:
    attempt = write(act)
    with browser(app) as client:
        page = client.get(f"/jobs/attempts/{attempt.id}").text
        (most,) = re.findall(r'<textarea name="text"[^>]* maxlength="(\d+)"', page)
        sent = send(client, "note", token_in(client), id=attempt.id, text="\N{EURO SIGN}" * int(most))
    assert sent.status_code == 303


# Many at once


def ids_in(page: Any) -> str:
    found = re.search(r'name="ids" value="([^"]*)"', page.text)
    assert found is not None, page.text
    return found[1]


@pytest.mark.slow
def test_many_are_changed_after_a_preview_of_a_frozen_set(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "AT_ONCE", 2)
    monkeypatch.setattr(bulk, "TYPED_FROM", 3)
    failed = [ended(engine, write(act), "Broken: order 7") for _ in range(5)]
    other = write(act)
    claimed(engine, other.id)
    with browser(app) as client:
        token = token_in(client)
        seen = send(client, "preview", token, verb="retry", all="1", status="failed")
        late = ended(engine, write(act), "Broken: order 8")
        form = {"verb": "retry", "ids": ids_in(seen), "total": "5", "reason": "mended"}
        assert send(client, "bulk", token, **form).status_code == 400  # the number is not typed
        assert send(client, "bulk", token, **form, typed="4").status_code == 400
        assert send(client, "bulk", token, **form | {"reason": " "}, typed="5").status_code == 400
        pages = [send(client, "bulk", token, **form, typed="5")]
        while "data-continue" in pages[-1].text:
            fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', pages[-1].text))
            pages.append(client.post("/act/bulk", data=fields, headers=OURS))
    assert "Retry 5 attempts?" in words_of(seen)
    assert "Nothing is changed yet" in words_of(seen)
    assert len(pages) == 3
    assert "5 changed, 0 refused" in words_of(pages[-1])
    assert {status_of(engine, one) for one in failed} == {"pending"}
    assert status_of(engine, late) == "failed"
    assert {(one.actor, one.message) for row in failed for one in events_of(engine, row.id)} == {("anna@web", "mended")}


@pytest.mark.slow
@by_one_door
def test_a_preview_says_what_will_be_refused_and_the_result_what_was(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    waiting, running, over = write(act), write(act), write(act)
    claimed(engine, running.id)
    changed(engine, over, status="succeeded", completed_at=over.created_at, num_attempts=1)
    with browser(app) as client:
        token = token_in(client)
        none = send(client, "preview", token, verb="cancel")
        ticked = [str(one.id) for one in (waiting, running, over)]
        seen = send(client, "preview", token, verb="cancel", id=ticked)
        done = send(client, "bulk", token, verb="cancel", ids=ids_in(seen), total="3", reason="too late")
    assert none.status_code == 400
    assert "tick some rows" in words_of(none)
    words = words_of(seen)
    assert "1: it is succeeded, and must be pending" in words
    assert "1: it is being performed" in words
    assert "1 changed, 2 refused" in words_of(done)
    assert [status_of(engine, one) for one in (waiting, running, over)] == ["canceled", "pending", "succeeded"]


@pytest.mark.slow
@by_one_door
def test_a_preview_reads_a_bounded_part_of_the_table_and_says_so(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "SCANNED", 2)
    monkeypatch.setattr(bulk, "MOST_LOOKS", 2)
    for _ in range(6):
        ended(engine, write(act), "Broken: order 7")
    with browser(app) as client:
        seen = send(client, "preview", token_in(client), verb="retry", all="1", status="failed")
        none = send(client, "preview", token_in(client), verb="retry", all="1", status="failed", error="mail")
    assert "Retry 4 attempts?" in words_of(seen)
    assert "more may match" in words_of(seen)
    assert none.status_code == 400
    assert "None matches of the jobs that were looked at" in words_of(none)


@pytest.mark.slow
@by_one_door
def test_a_preview_begins_where_the_list_does(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "SCANNED", 2)
    monkeypatch.setattr(bulk, "MOST_LOOKS", 1)
    ended(engine, write(act), "Broken: order 7")
    for _ in range(2):
        write(act)
    last = ended(engine, write(act), "Broken: order 7")
    with browser(app) as client:
        seen = send(client, "preview", token_in(client), verb="retry", all="1", status="failed")
        oldest = send(client, "preview", token_in(client), verb="retry", all="1", status="failed", order="oldest")
    assert ids_in(seen) == last.id.hex
    assert ids_in(oldest) != last.id.hex


# The database away


@pytest.mark.slow
@by_one_door
def test_pages_keep_their_last_figures_while_the_database_is_away(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(engine, write(act), "Broken: order 7")

    def raising(problem: Exception) -> Callable[..., Any]:
        def run(*_: Any, **__: Any) -> Any:
            raise problem

        return run

    with browser(app) as client:
        good, token = client.get("/jobs?status=failed"), token_in(client)
        for problem in (OperationalError("SELECT", {}, ConnectionError("refused")), ReadTimeout("slow"), PoolTimeout()):
            with monkeypatch.context() as patch:
                patch.setattr(type(app), "_run", raising(problem))
                shown = client.get("/jobs?status=failed")
                unknown, data = client.get("/jobs?status=expired"), client.get("/jobs.json?status=failed")
                probes = [client.get(path).status_code for path in ("/healthz", "/readyz")]
                scraped = client.get("/metrics")
                form = {"verb": "cancel", "ids": uuid.uuid4().hex, "total": "1", "reason": "why"}
                sent = [
                    send(client, "preview", token, verb="cancel", all="1"),
                    send(client, "reschedule", token, id=uuid.uuid4(), at="2h"),
                    send(client, "cancel", token, id=uuid.uuid4(), reason="why"),
                ]
                stopped = send(client, "bulk", token, **form)
            assert shown.status_code == 200
            assert "test.act" in words_of(shown)
            is_slow = isinstance(problem, ReadTimeout)
            said = "is too slow now: it has not answered within 2 s." if is_slow else "cannot be used now: "
            assert f"The database {said}" in words_of(shown)
            assert 'data-live data-age="' in shown.text
            assert "These figures are of" in words_of(shown)
            assert (unknown.status_code, data.status_code, probes) == (503, 503, [200, 503])
            assert [one.status_code for one in (scraped, *sent)] == [503] * 4
            assert scraped.headers["content-type"].startswith("text/plain")
            assert "0 changed, 0 refused, 1 to go" in words_of(stopped)
            assert "data-continue" not in stopped.text
        back = client.get("/jobs?status=failed")
    assert "cannot be used" not in words_of(good) + words_of(back)
    with engine.begin() as connection:
        connection.execute(update(Attempt).values(last_error=None))


@by_one_door
def test_nobody_is_shown_the_last_page_of_somebody_with_other_rights(
    app: AsyncTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/jobs"
    people = {"anna": Access.full("anna"), "bob": Access.read("bob")}
    made = dashboard(app, authorize=lambda request: people[request.headers["x-person"]])
    with TestClient(made, ORIGIN) as client:
        assert client.get(path, headers={"x-person": "anna"}).status_code == 200

        def away(*_: Any, **__: Any) -> Any:
            raise ReadTimeout("too slow")

        monkeypatch.setattr(type(app), "_run", away)
        found = {name: client.get(path, headers={"x-person": name}).status_code for name in people}
    assert found == {"anna": 200, "bob": 503}


@pytest.mark.slow
@by_one_door
def test_where_no_thread_is_free_pages_show_their_last_figures_and_probes_answer(
    app: AsyncTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "THREADS", 1)
    monkeypatch.setattr(site, "PATIENCE", 1)
    begun, is_thawed = threading.Event(), threading.Event()

    def freeze(*_: Any, **__: Any) -> Any:
        begun.set()
        assert is_thawed.wait(30)
        return []

    with browser(app) as client:
        good = client.get("/jobs")
        monkeypatch.setattr(type(app), "workers", freeze)
        waiting = threading.Thread(target=client.get, args=("/workers",))
        waiting.start()
        assert begun.wait(30)
        busy = [client.get(path).status_code for path in ("/jobs", "/stuck", "/readyz", "/healthz")]
        shown = client.get("/jobs")
        is_thawed.set()
        waiting.join(30)
        after = client.get("/stuck")
    assert busy == [200, 503, 503, 200]
    assert (good.status_code, after.status_code) == (200, 200)
    assert "does not answer those who have asked before you" in words_of(shown)


@pytest.mark.slow
@by_one_door
def test_changes_that_wait_keep_no_page_and_no_probe_from_answering(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = write(act)
    monkeypatch.setattr(site, "CHANGES", 1)
    monkeypatch.setattr(site, "PATIENCE", 1)
    begun, is_free = threading.Event(), threading.Event()

    def wait(*_: Any, **__: Any) -> None:
        begun.set()
        assert is_free.wait(30)

    with browser(app) as client:
        token = token_in(client)
        with monkeypatch.context() as patch:
            patch.setattr(type(app), "pause", wait)
            waiting = threading.Thread(
                target=send, args=(client, "pause", token), kwargs={"queue": "mail", "reason": "why"}
            )
            waiting.start()
            assert begun.wait(30)
            shown = [client.get(path).status_code for path in ("/jobs", "/stuck", "/readyz")]
            refused = send(client, "cancel", token, id=attempt.id, reason="why")
            stopped = send(client, "bulk", token, verb="cancel", ids=attempt.id.hex, total="1", reason="why")
            is_free.set()
            waiting.join(30)
    assert shown == [200, 200, 200]
    assert refused.status_code == 503
    assert "Other changes still wait for the database. Nothing was changed: try again." in words_of(refused)
    assert "0 changed, 0 refused, 1 to go" in words_of(stopped)
    assert "Other changes still wait for the database. What is to go can be continued." in words_of(stopped)
    assert status_of(engine, attempt) == "pending"


@by_one_door
def test_a_large_job_is_not_kept(app: AsyncTask, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"/jobs/attempts/{write(act).id}"

    def away(*_: Any, **__: Any) -> Any:
        raise ReadTimeout("too slow")

    found = []
    for most in (200_000, 0):
        with browser(app) as client, monkeypatch.context() as patch:
            patch.setattr(job, "MOST_KEPT", most)
            assert client.get(path).status_code == 200
            patch.setattr(type(app), "_run", away)
            found.append(client.get(path).status_code)
    assert found == [200, 503]


@by_one_door
def test_metrics_are_in_the_text_format_of_prometheus(app: AsyncTask, engine: Engine, write: Write) -> None:
    write(act, queue='qu"eue\\')
    with browser(app) as client:
        lines = client.get("/metrics").text.splitlines()
    assert r'async_task_attempts_due{queue="qu\"eue\\"} 1' in lines
    pattern = r'(# (HELP|TYPE) \w+ .+|async_task_\w+(\{\w+="(\\.|[^"\\])*"\})? [0-9.e+-]+)'
    assert all(re.fullmatch(pattern, line) for line in lines), lines
