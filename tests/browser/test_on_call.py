"""What people do on call, at night and in a hurry: one job that failed, and many."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, update

from async_task import AsyncTask, Attempt
from async_task.web.forms import bulk
from claims import TABLE, seconds_from_now
from elsewhere import await_
from outbox import Broken, act, will
from serving import apart
from windows import Windows
from workers import working

pytestmark = [pytest.mark.only_on("postgresql"), pytest.mark.parametrize("door", ["sync"])]
Write = Callable[..., Attempt]
NUMBER = 121


def refuse() -> None:
    raise Broken("the warehouse is closed")


@pytest.fixture
def failed(app: AsyncTask, write: Write) -> Attempt:
    """An attempt that has failed for good, with its traceback."""
    will(refuse)
    attempt = write(act, max_attempts=1)
    apart(lambda: app.perform(attempt.id))
    return attempt


@pytest.fixture
def many(engine: Engine, write: Write) -> list[Attempt]:
    """NUMBER attempts that failed, and two that wait."""
    made = [write(act) for _ in range(NUMBER)]
    values = {"status": "failed", "completed_at": seconds_from_now(-60), "last_error": "Broken", "num_attempts": 1}
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id.in_([one.id for one in made])).values(values))
    return [*made, *(write(act, scheduled_at=seconds_from_now(600)) for _ in range(2))]


@pytest.mark.parametrize("manner", [{}, {"narrow": True}, {"scripts": False}], ids=["wide", "telephone", "no-scripts"])
def test_a_failed_job_is_found_read_noted_retried_and_seen_to_succeed(
    app: AsyncTask, failed: Attempt, windows: Windows, dashboard: str, manner: dict[str, bool]
) -> None:
    page = windows.open(dashboard, **manner)
    page.click("#needs >> text=Broken")
    page.click(f"a[href$='{failed.id}']")
    assert "Broken: the warehouse is closed" in page.inner_text("#tries")
    assert "makes it due again" in page.inner_text(".reasons")
    page.click("text=Traceback")
    assert "in refuse" in page.inner_text("#tries pre")
    page.fill("textarea", "They **open** at six")
    page.click("text=Add the note")
    assert page.inner_text("#notes strong") == "open"
    page.click("#verbs summary >> text=Retry now")
    page.fill("#verbs input[name=reason]", "they have opened")
    page.click("#verbs button >> text=Retry now")
    assert "the next worker performs it" in page.inner_text("[role=status]")
    page.evaluate("window.isTheSame = true")
    will(lambda: None)
    with working(app):
        if manner.get("scripts", True):
            page.wait_for_selector("#state .state.succeeded")
            assert page.evaluate("window.isTheSame")
        await_(lambda: apart(lambda: app.attempts.get(failed.id)).status == "succeeded", "it has succeeded")
    page.reload()
    assert page.locator("#state .state.succeeded").is_visible()
    assert "they have opened" in page.inner_text("#audit")
    assert "anna@web" in page.inner_text("#audit")


SUBMIT = """() => {
  const form = document.querySelector("form[action$='/act/note']");
  return form.dispatchEvent(new SubmitEvent("submit", { bubbles: true, cancelable: true }));
}"""


def test_a_form_is_sent_once_until_its_page_is_shown_again(failed: Attempt, windows: Windows, dashboard: str) -> None:
    page = windows.open(f"{dashboard}/jobs/attempts/{failed.id}")
    assert [page.evaluate(SUBMIT) for _ in range(3)] == [True, False, False]
    page.evaluate("window.dispatchEvent(new Event('pageshow'))")
    assert page.evaluate(SUBMIT)


def test_ticked_rows_are_retried_after_a_preview(
    app: AsyncTask, many: list[Attempt], windows: Windows, dashboard: str
) -> None:
    page = windows.open(f"{dashboard}/jobs")
    page.select_option("select[name=status]", "failed")
    page.fill("input[name=target]", "test.act")
    page.click("text=Filter")
    assert page.inner_text(".viewing") == f"Viewing 1 to 50 of {NUMBER}"
    boxes = page.locator("td.tick input")
    boxes.nth(0).check()
    boxes.nth(3).check()
    page.click("text=Retry…")
    assert page.inner_text("h1") == "Retry 2 attempts?"
    assert "failed\n2" in page.inner_text("main")
    page.fill("input[name=reason]", "they have opened")
    page.click("button >> text=Retry 2")
    assert "2 changed, 0 refused" in page.inner_text("[role=status]")
    assert number_of(app, "failed") == NUMBER - 2
    page.goto(f"{dashboard}/audit")
    assert page.locator("td[data-name=Why]").all_inner_texts() == ["they have opened"] * 2


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_all_that_match_are_retried_page_by_page_after_their_number_is_typed(
    app: AsyncTask, many: list[Attempt], windows: Windows, dashboard: str, monkeypatch: Any, scripts: bool
) -> None:
    monkeypatch.setattr(bulk, "AT_ONCE", 50)
    page = windows.open(f"{dashboard}/jobs?status=failed", scripts=scripts)
    page.check("text=all that match")
    page.click("text=Retry…")
    assert page.inner_text("h1") == f"Retry {NUMBER} attempts?"
    page.fill("input[name=reason]", "they have opened")
    page.click(f"button >> text=Retry {NUMBER}")
    assert page.inner_text("h1") == f"Retry {NUMBER} attempts?"  # the browser asks for the number
    page.fill("input[name=typed]", str(NUMBER))
    page.click(f"button >> text=Retry {NUMBER}")
    for _ in range(0 if scripts else NUMBER // 50):
        page.click("text=Continue")
    page.wait_for_selector(f"h1 >> text=Retry: {NUMBER} of {NUMBER}")
    assert f"{NUMBER} changed, 0 refused." in page.inner_text("[role=status]")
    assert number_of(app, "failed") == 0


def number_of(app: AsyncTask, status: str) -> int:
    return apart(lambda: app.attempts.counts(status=[status])).total
