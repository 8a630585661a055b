"""The pages on real databases: what they show of a mess, in three formats, and that they change nothing."""

import csv
import dataclasses
import datetime as dt
import html
import io
import itertools
import json
import re
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urljoin

import pytest
from sqlalchemy import Engine, insert, select, text

from async_task import Access, AsyncTask, Attempt, Retry, Schedule
from async_task.attempts.info import AttemptInfo, info_of_attempt
from async_task.reading import browse
from async_task.schema.tables import companion_tables
from async_task.web.pages import job, job_list
from async_task.web.requests.query import Query
from async_task.web.requests.search import search_of
from async_task.web.security.refusal import Refused
from claims import TABLE, seconds_from_now
from conftest import by_one_door
from dashboards import ORIGIN, PAGES, STEMS, browser, words_of
from databases import NAMES, Name
from mess import CAUSES, changed, ended, erred, mess
from outbox import act, act_boxed
from writing import Sessions

Write = Callable[..., Attempt]
HOSTILE = "<script>alert(1)</script>'\"><img src=x onerror=alert(2)>{{7*7}}%s%n=cmd|' /C calc'!A0"
SEARCHES = {
    'target:OrderClient status:failed error:"time out" tries:>=3': {
        "target": "OrderClient", "status": "failed", "error": "time out", "tries": ">=3",
    },
    "refused": {},
}  # fmt: skip


def everything(engine: Engine) -> Any:
    """All rows of the tables that a page might change."""
    tables = ("async_task_attempts", "async_task_job_events", "async_task_queues", "async_task_schedules")
    with engine.connect() as connection:
        return [sorted(map(str, connection.execute(text(f"SELECT * FROM {name}")).all())) for name in tables]


@pytest.mark.slow
def test_every_page_shows_the_mess_in_three_formats_and_changes_nothing(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    made = mess(engine, write)
    before = everything(engine)
    with browser(app) as client:
        pages = {path: client.get(path) for path in (*PAGES, f"/jobs/attempts/{made['same_error'][0].id}")}
        for path, page in pages.items():
            assert page.status_code == 200, (path, page.text)
            assert not re.search(r"<script(?! src=)|<style|\sstyle=|\son\w+=|javascript:", page.text), path
            assert not re.search(r"<th(?!ead)(?![^>]* scope=)", page.text), path
        stuck = client.get("/stuck.json").json()
        for path in PAGES:
            stem = STEMS.get(path, path)
            found = client.get(f"{stem}.json")
            assert found.status_code == 200, path
            assert json.loads(found.text), path
            table = client.get(f"{stem}.csv")
            assert (table.status_code, table.headers["content-type"]) == (200, "text/csv; charset=utf-8")
            assert len({len(row) for row in csv.reader(io.StringIO(table.text))}) == 1, path
    assert {one["cause"] for one in stuck["groups"]} == set(CAUSES)
    assert "Its worker has died" in words_of(pages["/stuck"])
    assert "Broken order N" in words_of(pages["/"])
    assert "Viewing 1 to" in words_of(pages["/jobs"])
    assert everything(engine) == before


@pytest.mark.slow
def test_pages_of_empty_tables_teach(app: AsyncTask) -> None:
    with browser(app) as client:
        words = {path: words_of(client.get(path)) for path in PAGES}
    assert "Attempt.create(" in words["/"]
    assert "schedule.cron(" in words["/schedules"]
    assert "async-task worker" in words["/workers"]
    assert "Nothing is stuck." in words["/stuck"]
    assert "Nothing is potentially stuck" in words["/jobs"]
    assert "Nobody has changed anything" in words["/audit"]


@pytest.mark.long
@by_one_door
def test_hostile_text_in_columns_and_parameters_is_text(app: AsyncTask, engine: Engine, write: Write) -> None:
    """In every column that holds a text, and every parameter: nothing is unescaped, nothing fails, nothing changes."""
    attempt = write(act_boxed, None, {"card": "1"}, idempotence_token=HOSTILE[:60], order_key=HOSTILE[:60])
    values = dict.fromkeys(("target", "method_name", "last_error", "queue", "trace_context"), HOSTILE[:60])
    changed(engine, attempt, **values, num_errors=1, num_attempts=1)
    names = (
        "q", "status", "target", "queue", "error", "since", "until", "order", "after", "span", "cause", "limit", "show",
        "actor", "verb", "tries", "token", "done", "type", "user",
    )  # fmt: skip
    wrong = (HOSTILE, "-1", "9" * 18, "9" * 400, "1e400", "\N{PILE OF POO}", "%00", "..%2f", "0x7f", "' OR 1=1 --")
    before = everything(engine)
    with browser(app) as client:
        paths = [*PAGES, *(f"{STEMS.get(one, one)}.csv" for one in PAGES), f"/jobs/attempts/{attempt.id}"]
        looks = [client.get(path) for path in (*paths, "/jobs?show=all", "/jobs.csv?show=all")]
        asked = list(itertools.product(PAGES, names, wrong[:4]))[
            NAMES.index(cast(Name, engine.dialect.name)) :: len(NAMES)
        ]
        looks += [client.get(path, params={name: value}) for path, name, value in asked]  # on each database a third
        looks += [client.get("/jobs", params={name: value}) for name in names for value in wrong[4:]]
        looks += [client.get(f"/jobs/{kind}/{key}") for kind in ("attempts", "x") for key in wrong]
        exported = client.get("/jobs.csv?show=all").text
    for page in looks:
        assert page.status_code in (200, 400, 404), (page.url, page.status_code, page.text[:500])
        if page.headers["content-type"].startswith("text/html"):
            assert not re.search("<script>alert|<img|49%s", page.text), page.url
    rows = list(csv.reader(io.StringIO(exported)))
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@"))]
    assert everything(engine) == before


@pytest.mark.slow
@by_one_door
def test_arguments_are_shown_with_the_right_and_masked_where_they_look_like_secrets(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    shown = write(act)
    changed(engine, shown, method_args='{"name": "Ada", "api_token": "s3cret", "deep": {"password": "hunter2"}}')
    sealed = write(act_boxed, None, {"card": "card-73556"})
    with browser(app) as client:
        full = client.get(f"/jobs/attempts/{shown.id}").text
        boxed = words_of(client.get(f"/jobs/attempts/{sealed.id}"))
    with browser(app, Access.read("bob")) as client:
        poor = client.get(f"/jobs/attempts/{shown.id}").text
        plain = client.get(f"/jobs/attempts/{shown.id}.json").json()
    assert "Ada" in full
    assert "[masked]" in full
    assert "s3cret" not in full
    assert "hunter2" not in full
    assert "Encrypted by test.box" in boxed
    assert "card-73556" not in boxed
    assert "Ada" not in poor
    assert "You do not have the right to see them" in poor
    assert plain["arguments"] is None


@pytest.mark.slow
@by_one_door
def test_long_arguments_and_tracebacks_make_no_long_page(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt, path = write(act), ""
    names = {f"name_{number}": number for number in range(60)}
    with browser(app) as client:
        path = f"/jobs/attempts/{attempt.id}"
        changed(engine, attempt, method_args=json.dumps({"text": "M" * 5_000}))
        short = client.get(path)
        changed(engine, attempt, method_args=json.dumps({"text": "M" * 1_000_000, **names}))
        for number in range(30):
            erred(
                engine,
                attempt,
                "error",
                "Broken: order 7",
                None,
                detail=f"first {number}\n{'x' * 90_000}\nlast {number}",
            )
        page, data = client.get(path), client.get(f"{path}.json").json()
    words = words_of(page)
    assert "As a Python call" in words_of(short)
    assert "M" * 5_000 in short.text
    assert "As a Python call" not in words
    assert f"The call is too long to be shown here as Python. All its arguments: async-task show {attempt.id}" in words
    assert "name_48" in words
    assert f"11 more: async-task show {attempt.id}" in words
    assert "first 29" in words
    assert "last 29" in words
    assert "[... 80," in words
    assert f"in full: async-task show {attempt.id} --history --traceback" in words
    assert words.count("Traceback") == 9
    assert len(page.text) < 200_000
    assert len(data["arguments"]["text"]) == 1_000_000
    assert len(data["events"][-1]["detail"]) > 90_000


@by_one_door
def test_a_page_counts_one_error_and_tells_a_short_delay(app: AsyncTask, engine: Engine, write: Write) -> None:
    at = dt.datetime(2099, 1, 1, 5, 23, 39, 100_000, tzinfo=dt.UTC)
    attempt = write(act, scheduled_at=at)
    changed(engine, attempt, num_attempts=1, num_errors=1)
    later = at + dt.timedelta(milliseconds=200)
    app.write(lambda session: session.get(Attempt, attempt.id).reschedule(session, at=later))
    with browser(app) as client:
        words = words_of(client.get(f"/jobs/attempts/{attempt.id}"))
    assert "Tries 1, 1 error Queue" in words
    assert "due_at 2099-01-01 05:23:39.100 UTC → 2099-01-01 05:23:39.300 UTC" in words


@by_one_door
def test_what_a_call_says_for_itself_is_shown(app: AsyncTask, sessions: Sessions) -> None:
    with sessions.begin() as session:
        made = Attempt.ensure(
            session, target=act, idempotence_token="daily", within="1d", retry=Retry.every(90), timeout=5
        ).id
    with browser(app) as client:
        words = words_of(client.get(f"/jobs/attempts/{made}"))
        found = client.get("/jobs.json?token=daily&show=all").json()
    assert "Its own retry every 90 s Its own timeout 5 s" in words
    assert "Token daily" in words
    assert str(made) in json.dumps(found)


@by_one_door
def test_an_unknown_job_is_404_with_a_search_box(app: AsyncTask) -> None:
    with browser(app) as client:
        found = client.get("/jobs/attempts/01900000-0000-7000-8000-000000000000")
        nowhere = client.get("/nowhere")
        data = client.get("/nowhere.json")
    assert (found.status_code, nowhere.status_code, data.status_code) == (404, 404, 404)
    assert "there is no attempt" in words_of(found).lower()
    assert 'name="q"' in found.text
    assert data.json() == {"error": "There is no such page."}


@pytest.mark.slow
@by_one_door
def test_a_list_pages_searches_and_names_its_command(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempts = [write(act) for _ in range(60)]
    changed(engine, attempts[7], num_attempts=4, num_errors=4, last_error="Timeout: no answer")
    with browser(app) as client:
        first = client.get("/jobs?show=all&order=oldest")
        following = re.search(r'rel="next" href="([^"]+)"', first.text)
        assert following is not None
        second = client.get(following[1].replace("&amp;", "&"))
        found = client.get("/jobs", params={"q": "error:timeout tries:>=3"})
        none = client.get("/jobs", params={"q": "tries:>=5"})
        mistyped = client.get("/jobs", params={"q": "targt:x"})
        short = client.get("/jobs", params={"q": attempts[7].id.hex[-8:]})
    assert (first.text.count("data-row"), second.text.count("data-row")) == (50, 10)
    assert "of 60" in words_of(first)
    assert re.findall(r'class="open" href="/jobs/attempts/([^"]+)"', first.text)[0] == str(attempts[0].id)
    assert str(attempts[7].id) in found.text
    assert found.text.count("data-row") == 1
    assert "async-task list --error timeout" in words_of(found)
    assert none.text.count("data-row") == 0
    assert (mistyped.status_code, "did you mean 'target'" in words_of(mistyped)) == (400, True)
    assert f"/jobs/attempts/{attempts[7].id.hex[-8:]}" in short.text


@by_one_door
def test_a_list_counts_what_its_filters_select(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempts = [write(act) for _ in range(3)]
    changed(engine, attempts[0], num_attempts=4)
    changed(engine, attempts[1], status="failed", completed_at=attempts[1].created_at, num_attempts=4)
    with browser(app) as client:
        tried = words_of(client.get("/jobs", params={"q": "tries:4"}))
        waiting = words_of(client.get("/jobs?show=all&order=due"))
    assert "Viewing 1 to 2 of 2 " in tried
    assert "async-task list --tries 4 --order -created" in tried
    assert "Viewing 1 to 2 " in waiting
    assert " of 3" not in waiting  # of these, one does not wait


@pytest.mark.slow
@by_one_door
def test_json_and_csv_go_on_where_the_page_does(app: AsyncTask, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_list, "LIMIT", 2)
    ids = [str(write(act, queue="a b&c").id) for _ in range(5)]
    with browser(app) as client:
        first = client.get("/jobs?show=all&order=oldest&queue=a+b%26c")
        following = html.unescape(re.findall(r'rel="next" href="([^"]+)"', first.text)[0])
        links = re.findall(r'href="([^"]+)">(?:JSON|CSV)<', client.get(following).text)
        second, table = (client.get(html.unescape(link)) for link in links)
        third = client.get(urljoin(str(second.url), second.links["next"]["url"]))
    found = [[one["id"] for one in data.json()["jobs"]] for data in (second, third)]
    assert (found, [row[1] for row in csv.reader(io.StringIO(table.text))][1:]) == ([ids[2:4], ids[4:]], ids[2:4])
    assert table.headers["link"] == second.headers["link"]
    assert second.headers["link"].startswith("<?show=all&order=oldest&queue=a+b%26c&after=")
    assert "link" not in third.headers


FILTERS = {
    "q=tries:4 status:failed": {"tries": "4", "status": "failed"},
    "q=token:abc status:failed": {"token": "abc", "status": "failed"},
    "status=failed&until=1h&method=fulfill": {"until": "1h", "method": "fulfill", "status": "failed"},
    "q=status:failed,expired": {"status": "failed,expired"},
    "q=status:failed status:expired": {"status": "failed,expired"},
    "status=failed&status=expired": {"status": "failed,expired"},
}
"""What a person asks for, and what the form says of it when it is sent again."""


@pytest.mark.slow
@by_one_door
def test_the_form_of_a_list_says_all_that_was_asked_for(app: AsyncTask, write: Write) -> None:
    write(act)
    for asked, said in FILTERS.items():
        with browser(app) as client:
            page = client.get(f"/jobs?{asked}").text
        form = page[page.index('<form class="filters"') : page.index("</form>", page.index('<form class="filters"'))]
        fields = dict(re.findall(r'<input [^>]*name="(\w+)" value="([^"]*)"', form))
        fields |= {"status": "".join(re.findall(r'<option value="([^"]+)" selected>', form.partition("</select>")[0]))}
        assert {name: value for name, value in fields.items() if value} == {"show": "all", **said}


@by_one_door
def test_a_refusal_keeps_the_search_and_leads_back(app: AsyncTask) -> None:
    with browser(app) as client:
        came = {"Referer": f"{ORIGIN}/stuck?cause=paused"}
        wrong = client.get("/jobs", params={"q": "targt:x"}, headers=came)
        others = [f"{ORIGIN}//other.test/x", "https://other.test/stuck", f"{ORIGIN}/jobs"]
        away = [client.get("/jobs", params={"q": "targt:x"}, headers={"Referer": one}) for one in others]
    assert 'value="targt:x"' in wrong.text
    assert 'href="/stuck?cause=paused">Back' in wrong.text
    assert not [page for page in away if ">Back" in page.text]


@pytest.mark.slow
@by_one_door
def test_the_state_of_a_waiting_call_says_whether_it_is_blocked_or_too_late(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    made = mess(engine, write)
    with browser(app) as client:
        pages = {cause: client.get(f"/jobs/attempts/{made[cause][-1].id}") for cause in ("blocked", "overdue")}
        sealed = client.get(f"/jobs/attempts/{made['key_missing'][0].id}")
    assert "blocked" in words_of(pages["blocked"])
    assert "too late" in words_of(pages["overdue"])
    assert "Reveal" in sealed.text
    assert "Reveal" not in pages["blocked"].text


@by_one_door
def test_the_newest_of_many_events_are_shown(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "MOST_EVENTS", 2)
    attempt = write(act)
    for number in range(9):
        erred(engine, attempt, "error", f"Broken: order {number}", None)
    with browser(app) as client:
        words = words_of(client.get(f"/jobs/attempts/{attempt.id}"))
    assert "Broken: order 8" in words
    assert "Broken: order 6" not in words
    assert "There are older events" in words


def test_a_schedule_is_shown_with_its_next_times(engine: Engine) -> None:
    schedule = Schedule()
    schedule.every(minutes=15, call=act, key="quarterly")
    schedule.cron("30 2 * * mon-fri", tz="Europe/Berlin", call=act, key="nightly")
    app = AsyncTask(engine, schedule=schedule)
    with browser(app) as client:
        words = words_of(client.get("/schedules"))
        data = client.get("/schedules.json").json()
    assert "At 02:30 on Monday through Friday" in words
    assert "quarterly" in words
    assert "No clock has seen it yet" in words
    assert len(data["next"]["quarterly"]) == 5
    app.close()


@by_one_door
def test_settings_are_shown_with_where_they_come_from_and_without_passwords(app: AsyncTask) -> None:
    with browser(app, settings={"application": ("shop.app:outbox", "pyproject.toml")}) as client:
        words = words_of(client.get("/system"))
    assert "application shop.app:outbox pyproject.toml" in words
    assert f"database {app.address} the application" in words


@by_one_door
def test_a_page_reads_in_transactions_that_cannot_write(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = write(act)

    def writes() -> None:
        app.write(lambda session: session.get(Attempt, attempt.id).cancel(reason="by a page"))

    monkeypatch.setattr(app, "queues", writes)
    with browser(app) as client:
        refused = client.get("/targets")
    assert refused.status_code == 400
    assert "only reads" in refused.text
    with engine.connect() as connection:
        assert connection.scalar(select(Attempt.status)) == "pending"


@pytest.mark.parametrize("text_of_box", SEARCHES)
def test_a_search_has_qualifiers_and_words(text_of_box: str) -> None:
    found = search_of(Query([("q", text_of_box)]))
    assert found.given == SEARCHES[text_of_box]
    assert found.words == ("" if found.given else text_of_box)


@pytest.mark.parametrize("wrong", ["stat:failed", "status:fialed", "tries:many", "since:yesterday", "http://x"])
def test_a_search_that_means_nothing_is_refused(wrong: str) -> None:
    with pytest.raises(Refused) as refused:
        search_of(Query([("q", wrong)])).filters()
    assert refused.value.status == 400


@pytest.mark.slow
@by_one_door
def test_columns_of_your_own_need_the_right_to_see_arguments_and_are_masked(
    app: AsyncTask, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/jobs/attempts/{write(act).id}"

    def with_columns(*given: Any) -> AttemptInfo:
        return dataclasses.replace(info_of_attempt(*given), extra={"tenant": "acme", "api_token": "s3cret"})

    monkeypatch.setattr(browse, "info_of_attempt", with_columns)
    texts = []
    for access in (Access.full("anna"), Access.read("bob")):
        with browser(app, access) as client:
            texts += [client.get(path).text, client.get(f"{path}.json").text]
    assert ["acme" in one for one in texts] == [True, True, False, False]
    assert not [one for one in texts if "s3cret" in one]


@by_one_door
def test_the_user_of_an_attempt_is_told_of_no_other_attempt(
    app: AsyncTask, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = (write(act, order_key="customer-7") for _ in range(2))
    monkeypatch.setattr(Attempt, "message_user", property(lambda self: "ada"))
    path = f"/jobs/attempts/{mine.id}"
    with browser(app, Access.read("ada", user="ada")) as client:
        own = client.get(path)
    with browser(app) as client:
        full = client.get(path)
    assert (own.status_code, str(other.id) in own.text, str(other.id) in full.text) == (200, False, True)
    assert "/jobs?queue=default" in full.text
    hrefs = {*re.findall(r'<a [^>]*href="([^"]+)"', own.text)}
    assert hrefs == {"#main", f"{path}.json", f"{path}.csv"}
    assert "<code>async-task" not in own.text
    assert "right to do" not in own.text


@pytest.mark.slow
@by_one_door
def test_rows_of_workers_and_runs_that_cannot_be_read_break_no_page(app: AsyncTask, engine: Engine) -> None:
    tables = companion_tables(TABLE)
    with engine.begin() as connection:
        for number, wrong in enumerate(("[1, 2]", '"text"', "5", "{broken", "null")):
            row = {"name": f"w{number}", "host": "elsewhere", "pid": 7, "process_started": "x", "kind": "worker"}
            values = {"about": wrong, "job_type": TABLE.name, "beat_at": seconds_from_now(60)}
            connection.execute(insert(tables.workers).values(row | values))
            run = {"job_type": TABLE.name, "job_id": "run-batch", "kind": "run", "message": "done", "detail": wrong}
            connection.execute(insert(tables.events).values(run))
    with browser(app) as client:
        found = [client.get(path).status_code for path in ("/", "/workers", "/workers.json", "/stuck", "/system")]
    assert found == [200] * 5


@pytest.mark.slow
@by_one_door
def test_errors_whose_attempts_have_succeeded_since_need_nobody(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(act)
    erred(engine, attempt, "error", "Broken: order 7", "f" * 12)
    with browser(app) as client:
        before = words_of(client.get("/"))
    changed(engine, attempt, status="succeeded", completed_at=attempt.created_at, num_attempts=1)
    with browser(app) as client:
        after = words_of(client.get("/"))
    assert "Broken order N" in before
    assert "Broken order N" not in after


@pytest.mark.slow
@by_one_door
def test_a_group_of_errors_leads_to_its_attempts(app: AsyncTask, engine: Engine, write: Write) -> None:
    broken = [write(act) for _ in range(4)]
    for number, attempt in enumerate(broken[:3]):
        erred(engine, attempt, "error", f"Broken: order {number} is lost", "f" * 12)
        ended(engine, attempt, f"Broken: order {number} is lost")
    changed(engine, broken[2], status="canceled")
    erred(engine, broken[3], "error", "Broken: the mail is lost", "e" * 12)
    ended(engine, broken[3], "Broken: the mail is lost")
    with browser(app) as client:
        overview = client.get("/").text
        (link,) = {one for one in re.findall(r'href="(/jobs\?[^"]+)"', overview) if "order" in one}
        listed = client.get(link.replace("&amp;", "&")).text
    assert "2 <small>of 3" in overview
    assert {*re.findall(r'class="open" href="/jobs/attempts/([^"]+)"', listed)} == {str(one.id) for one in broken[:2]}


def test_what_is_refused_is_escaped_once_and_is_plain_text_in_json_and_csv(app: AsyncTask) -> None:
    with browser(app) as client:
        page, data, table = (client.get(f"/jobs{kind}?after=<zzz>") for kind in ("", ".json", ".csv"))
    assert (page.status_code, data.status_code, table.status_code) == (400, 400, 400)
    assert "the <code>next</code> of a page" in page.text
    assert "&#39;&lt;zzz&gt;&#39;" in page.text
    assert "`next` of a page in the same order: it was '<zzz>'" in data.json()["error"]
    assert (table.text, table.headers["content-type"]) == (f"{data.json()['error']}\n", "text/plain; charset=utf-8")
