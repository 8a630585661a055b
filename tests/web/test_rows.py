"""Rows that are their own jobs on the dashboard: beside attempts in one list, and each on a page of its own."""

import datetime as dt
import html
import re
import shlex
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from async_task import Access
from async_task.asyncable.registration import register
from async_task.web.pages import job_list
from conftest import by_one_door
from dashboards import browser, send, token_in, words_of
from mess import changed
from outbox import Broken, act
from reviews import DAY, HOUR, Board, Desk, Pair

NOON = dt.datetime(2026, 10, 25, 12, tzinfo=dt.UTC)
HOSTILE_KEYS = ("a/b", "a%2Fb", "../c", "100%", "q?x=1#y", "<b>", "\N{PILE OF POO}", "x.json", "a;b c")
LINK = re.compile(r'class="open" href="(/jobs/[^"?]+)"')


def links_of(client: Any, path: str) -> list[str]:
    """Of all jobs of a list, over all of its pages."""
    found: list[str] = []
    for _ in range(20):
        page = client.get(path)
        assert page.status_code == 200, words_of(page)
        found += LINK.findall(page.text)
        following = re.search(r'rel="next" href="([^"]+)"', page.text)
        if following is None:
            return found
        path = following[1].replace("&amp;", "&")
    raise AssertionError("the list has no end")


@pytest.mark.slow
@by_one_door
def test_rows_and_attempts_are_listed_together_by_the_time_of_submission(
    desk: Desk, board: Board, engine: Engine, write: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(job_list, "LIMIT", 2)
    board.will_raise(Broken("order 7"))
    rows = [desk.submitted() for _ in range(3)]
    desk.go_on()
    attempts = [write(act) for _ in range(3)]
    for one in attempts:
        changed(engine, one, num_errors=1, num_attempts=1, last_error="Broken: order 8")
    with browser(desk.app) as client:
        both = links_of(client, "/jobs")
        only_rows = links_of(client, "/jobs?type=test.review")
        only_attempts = links_of(client, "/jobs?type=attempts&q=error:Broken")
        failing = links_of(client, "/jobs?type=test.review&status=failing,expired")
        none = links_of(client, "/jobs?user=nobody")
        stuck = links_of(client, "/jobs?type=test.review&status=stuck")
        silent = [f"/jobs?type=test.review&{one}" for one in ("target=x", "q=Broken", "tries=2", "status=failing,due")]
        refused = [client.get(path).status_code for path in silent]
        wrong = client.get("/jobs?after=x")
        token = token_in(client)
        bulk = [
            send(client, "preview", token, verb="cancel", all="1", **one)
            for one in ({"type": "test.review"}, {"q": "user:ada"}, {"status": "failing"}, {"status": "queued"})
        ]
    of_rows = [f"/jobs/test.review/{one}" for one in rows]
    assert only_rows == failing == stuck == of_rows
    assert refused == [400] * 4
    assert none == []
    assert [one for one in both if one in of_rows] == of_rows
    assert both[-3:] == [f"/jobs/attempts/{one.id}" for one in attempts]
    assert len(both) == len({*both})
    assert {f"/jobs/attempts/{one.id}" for one in attempts} <= {*only_attempts}
    assert [one.status_code for one in (wrong, *bulk)] == [400] * 5


@pytest.mark.slow
@by_one_door
def test_rows_in_all_states_are_listed_and_said_to_be_in_one_order(desk: Desk, board: Board) -> None:
    done = [desk.submitted() for _ in range(2)]
    desk.go_on()
    waiting = desk.submitted()
    with browser(desk.app) as client:
        every = client.get("/jobs?type=test.review&show=all&order=newest")
        stuck = client.get("/jobs?type=test.review")
        form = re.search('<select name="status">.*?</select>', every.text, re.DOTALL)
    links = [f"/jobs/test.review/{one}" for one in (waiting, *done)]
    assert (LINK.findall(every.text), LINK.findall(stuck.text)) == (links, links[:1])
    assert "Viewing 1 to 3, the oldest first" in words_of(every)
    assert "Viewing 1 to 1 that are potentially stuck, the oldest first" in words_of(stuck)
    assert form is not None
    assert "selected" not in form[0]
    for page in (every, stuck):
        assert re.findall(r'<select name="order">(.*?)</select>', page.text) == [
            '<option value="oldest" selected>oldest</option>'
        ]


@pytest.mark.slow
@by_one_door
def test_a_preview_of_a_list_of_both_says_that_rows_are_not_among_them(desk: Desk, engine: Engine, write: Any) -> None:
    desk.submitted()
    changed(engine, write(act), num_errors=1, num_attempts=1, last_error="Broken: order 8")
    with browser(desk.app) as client:
        token = token_in(client)
        lists: tuple[dict[str, str], ...] = ({}, {"type": "attempts"})
        both, attempts = (words_of(send(client, "preview", token, verb="cancel", all="1", **one)) for one in lists)
    told = "Rows of models are not among them: each is changed on its own page."
    assert (told in both, told in attempts) == (True, False)


@pytest.mark.slow
@by_one_door
def test_a_row_is_restarted_canceled_and_noted_on_its_page(desk: Desk, board: Board, engine: Engine) -> None:
    board.will_raise(Broken("order 7"))
    key, other = desk.submitted(), desk.submitted()
    desk.go_on()
    with browser(desk.app, Access.read("bob")) as client:
        poor = client.get(f"/jobs/test.review/{key}")
    with browser(desk.app) as client:
        token = token_in(client)
        path = f"/jobs/test.review/{key}"
        row = {"model": "test.review", "key": str(key)}
        fresh = client.get(path)
        soon = send(client, "row/restart", token, **row, reason="mended")
        desk.pass_by(HOUR)
        board.will_raise(None)
        assert send(client, "row/restart", token, **row).status_code == 400  # no reason
        again = send(client, "row/restart", token, **row, reason="mended")
        noted = send(client, "note", token, **row, text="The board **knows**.")
        desk.go_on()
        page, data = client.get(path), client.get(f"{path}.json").json()
        late = send(client, "row/cancel", token, **row, reason="too late")
        canceled = send(client, "row/cancel", token, model="test.review", key=str(other), reason="not wanted")
        missing = [client.get(f"/jobs/test.review/{one}").status_code for one in ("999999", "x")]
        nowhere = client.get("/jobs/test.nothing/1").status_code
        gone = send(client, "row/cancel", token, model="test.review", key="999999", reason="why")
        without = [send(client, f"row/{verb}", token, **row, reason="why") for verb in ("fail", "submit")]
    assert "failing" in words_of(fresh)
    assert "You do not have the right to do this." in words_of(poor)
    assert "<form method" not in poor.text.replace('<form method="dialog">', "")
    assert (soon.status_code, again.status_code, noted.status_code) == (409, 303, 303)
    assert again.headers["location"] == f"{path}?done=restart"
    words = words_of(page)
    assert "processed" in words
    assert "mended" in words
    assert "<strong>knows</strong>" in page.text
    assert (data["job"]["state"], data["job"]["key"]) == ("processed", str(key))
    assert late.status_code in (303, 409)
    assert canceled.status_code == 303
    assert (missing, nowhere, gone.status_code) == ([404, 400], 404, 404)
    assert [one.status_code for one in without] == [400, 400]
    assert "has the verbs submit_for_processing, restart, cancel, not fail" in words_of(without[0])
    assert desk.row(key).processed_at is not None
    assert desk.row(other).canceled_at is not None


@pytest.mark.slow
@by_one_door
def test_a_user_sees_their_own_job_and_nothing_else(desk: Desk, board: Board, monkeypatch: Any, write: Any) -> None:
    mine, attempt = desk.submitted(), write(act)
    monkeypatch.setattr(desk.model, "asyncable_user", property(lambda row: "ada" if row.id == mine else "bob"))
    other = desk.submitted()
    desk.pass_by(DAY)
    with browser(desk.app, Access.read("ada", user="ada")) as client:
        own = client.get(f"/jobs/test.review/{mine}")
        refused = [client.get(f"/jobs/{one}").status_code for one in (f"test.review/{other}", f"attempts/{attempt.id}")]
        closed = ("/", "/jobs", "/stuck", "/audit", "/system", "/jobs.csv", "/metrics")
        pages = {client.get(path).status_code for path in closed}
        told = {words_of(client.get(f"/jobs/{one}")) for one in (f"test.review/{other}", "test.review/999", "test.x/1")}
        token = re.search(r'name="csrf" value="([0-9a-f]+)"', own.text)
        verbs = [
            send(client, verb, "x", id=attempt.id, reason="why").status_code
            for verb in ("cancel", "note", "reveal", "bulk", "preview", "pause", "schedule/run", "row/cancel")
        ]
    assert (own.status_code, refused, pages) == (200, [404, 404], {403})
    assert (len(told), token, {*verbs}) == (1, None, {403})
    words = words_of(own)
    assert "ada" in words
    assert "No worker is running" in words
    assert not [one for one in ("Attempt ", "right to do", "async-task ") if one in words.partition("async-task ")[2]]
    assert {*re.findall(r'<a [^>]*href="([^"]+)"', own.text)} == {
        "#main", *(f"/jobs/test.review/{mine}.{kind}" for kind in ("json", "csv"))
    }  # fmt: skip
    assert "async-task" not in client.get(f"/jobs/test.review/{mine}.json").text


@pytest.mark.slow
@by_one_door
def test_a_row_is_found_by_its_link_whatever_its_key_holds(desk: Desk, engine: Engine) -> None:
    register(Pair)
    for office in HOSTILE_KEYS:
        with Session(engine) as session, session.begin():
            row = Pair(office=office, number=7)
            session.add(row)
            row.submit_for_processing(session)
    with browser(desk.app) as client:
        token = token_in(client)
        links = links_of(client, "/jobs?type=test.review_pair")
        pages = [client.get(html.unescape(link)) for link in links]
        named = [re.findall(r'href="([^"]+)">JSON<', page.text)[0] for page in pages]
        data = [client.get(html.unescape(one)).json()["job"]["key"] for one in named]
        fields = [dict(re.findall(r'name="(model|key)" value="([^"]*)"', page.text)) for page in pages]
        given = [{name: html.unescape(value) for name, value in one.items()} for one in fields]
        commands = [re.findall(r"shell: <code>(.*?)</code>", page.text)[0] for page in pages]
        sent = [send(client, "row/cancel", token, **one, reason="not wanted") for one in given]
        assert [one.status_code for one in sent] == [303] * len(sent), [words_of(one) for one in sent]
        after = [words_of(client.get(one.headers["location"])) for one in sent]
    assert [page.status_code for page in pages] == [200] * len(HOSTILE_KEYS)
    shown = [["async-task", "show", "--model", one["model"], one["key"], "--history"] for one in given]
    assert [shlex.split(html.unescape(one)) for one in commands] == shown
    assert sorted(one["key"].rpartition(",")[0].replace("\\", "") for one in given) == sorted(HOSTILE_KEYS)
    assert data == [one["key"] for one in given]
    assert not [one for one in named if one.count("/") != 3]  # no browser takes a key for a way up
    assert all("canceled" in words for words in after)


@by_one_door
def test_a_row_that_is_stuck_is_one_click_away(desk: Desk) -> None:
    key = desk.submitted()
    desk.pass_by(5 * DAY)
    with browser(desk.app) as client:
        assert f'href="/jobs/test.review/{key}"' in client.get("/stuck").text


@pytest.mark.slow
@by_one_door
def test_no_job_is_left_out_or_listed_twice_where_clocks_differ(
    desk: Desk, engine: Engine, write: Any, monkeypatch: Any
) -> None:
    """The ids of attempts are in the order of their writers' clocks, and not in that of `created_at`."""
    monkeypatch.setattr(job_list, "LIMIT", 3)
    rows = [desk.submitted() for _ in range(5)]
    desk.pass_by(5 * DAY)
    attempts = [write(act) for _ in range(9)]
    for number, one in enumerate(attempts):
        changed(
            engine, one, num_errors=1, num_attempts=1, created_at=one.created_at - dt.timedelta(days=number * 4 % 9)
        )
    with browser(desk.app) as client:
        both = links_of(client, "/jobs")
    assert len(both) == len({*both})
    assert {f"/jobs/attempts/{one.id}" for one in attempts} <= {*both}
    assert {f"/jobs/test.review/{one}" for one in rows} <= {*both}


def test_two_lists_are_merged_without_a_change_of_their_order() -> None:
    late, early, between = (SimpleNamespace(submitted_at=NOON + dt.timedelta(hours=one)) for one in (2, 0, 1))
    some: list[Any] = [late, early]
    others: list[Any] = [between]
    assert job_list._merged(some, others) == [between, late, early]
