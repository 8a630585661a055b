"""Everything can be done with the keyboard alone, and one sees where one is."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine

from async_task import AsyncTask, Attempt
from mess import ended
from outbox import act
from serving import apart
from windows import Windows, focused

pytestmark = [pytest.mark.only_on("postgresql"), pytest.mark.parametrize("door", ["sync"])]
RING = """() => {
  const style = getComputedStyle(document.activeElement);
  return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
}"""
FIELD = "document.activeElement.name"
NAME = "((one) => one.matches('input, select') ? one.name : one.innerText)(document.activeElement)"


def press(page: Any, *keys: str) -> None:
    for one in keys:
        page.keyboard.press(one)


def test_a_job_is_found_ticked_opened_and_retried_without_a_mouse(
    app: AsyncTask, engine: Engine, write: Callable[..., Attempt], windows: Windows, dashboard: str
) -> None:
    attempts = [ended(engine, write(act), f"Broken: order {number}") for number in range(3)]
    page = windows.open(dashboard)
    press(page, "/")
    assert page.evaluate(FIELD) == "q"
    page.keyboard.type("status:failed")
    press(page, "Enter")
    page.wait_for_url("**/jobs?q=*")
    here = page.locator("tr.here")
    press(page, "j", "j", "j", "j", "k")
    assert here.locator(f"a[href$='{attempts[1].id}']").count() == 1
    press(page, "x")
    assert here.locator("input").is_checked()
    press(page, "r")
    assert focused(page) == "Retry…"
    press(page, "k", "Enter")
    page.wait_for_url(f"**/{attempts[2].id}")
    press(page, "r")
    assert page.evaluate(FIELD) == "reason"
    page.keyboard.type("j/x? are letters here")
    press(page, "Escape")
    assert page.evaluate(FIELD) != "reason"
    press(page, "r", "Enter")
    page.wait_for_url("**?done=retry")
    assert "j/x? are letters here" in page.inner_text("#audit")
    assert apart(lambda: app.attempts.get(attempts[2].id)).status == "pending"


def test_the_keys_are_explained_until_escape(app: AsyncTask, windows: Windows, dashboard: str) -> None:
    page = windows.open(dashboard)
    press(page, "?")
    assert page.inner_text("dialog[open] h2") == "Keys"
    press(page, "/")
    assert page.evaluate(FIELD) != "q"
    press(page, "Escape")
    assert page.locator("dialog[open]").count() == 0


def test_tab_goes_from_top_to_bottom_and_the_focus_is_seen(
    app: AsyncTask, engine: Engine, write: Callable[..., Attempt], windows: Windows, dashboard: str
) -> None:
    ended(engine, write(act), "Broken: order 1")
    for manner in ({}, {"dark": True}, {"narrow": True}):
        page = windows.open(f"{dashboard}/jobs", **manner)
        seen = []
        for _ in range(30):
            press(page, "Tab")
            if page.evaluate("document.activeElement === document.body"):
                break
            assert page.evaluate(RING), seen
            seen.append(page.evaluate(NAME))
        assert seen[:3] == ["Skip to the content", "async-task", "Overview"]
        assert seen[9:12] == ["Audit", "q", "stop updating"]
        assert [one for one in seen if one in ("status", "target", "Filter", "Retry…", "id", "test.act", "JSON")] == [
            "status", "target", "Filter", "Retry…", "id", "test.act", "JSON",
        ]  # fmt: skip
    page.goto(f"{dashboard}/jobs")
    press(page, "Tab", "Enter", "Tab")
    assert focused(page) == "stop updating"
