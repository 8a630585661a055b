"""The pages are live: they show what has changed, disturb nobody, and say when they cannot."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine

from async_task import AsyncTask, Attempt, ReadTimeout
from async_task.attempts.notes import add_note
from async_task.schema.audit import acting
from async_task.web import last_good
from async_task.web.last_good import Answer
from async_task.web.security.access import Access
from elsewhere import await_
from mess import changed, ended
from outbox import Client, act_boxed
from serving import apart, serving
from windows import Windows, focused

pytestmark = [pytest.mark.only_on("postgresql"), pytest.mark.parametrize("door", ["sync"])]
Write = Callable[..., Attempt]
HIDDEN = "{ value: true, configurable: true }"
CHANGED = "document.dispatchEvent(new Event('visibilitychange'))"


COUNTS = "window.asked = 0; const read = fetch; window.fetch = (...all) => { window.asked += 1; return read(...all); }"


class Watched:
    """A page whose clock the test moves."""

    def __init__(self, page: Any, address: str) -> None:
        self.page = page
        page.add_init_script(COUNTS)
        page.clock.install()
        page.goto(address)

    def asked(self, after_seconds: int, script: str = "") -> int:
        """How often it is read again when `script` has run, within that time."""
        self.wait("!isAsking")
        before = self.page.evaluate("window.asked")
        self.page.evaluate(script)
        self.page.clock.run_for(after_seconds * 1000)
        return int(self.page.evaluate("window.asked")) - int(before)

    def wait(self, condition: str) -> None:
        """Until this holds in the page. Its policy lets no other script ask so."""
        await_(lambda: self.page.evaluate(condition), condition)

    def says(self) -> str:
        return str(self.page.inner_text("#live-words"))


def noted(app: AsyncTask, attempt: Attempt, text: str) -> None:
    def add() -> None:
        with acting("eve"):
            app.write(lambda session: add_note(session, session.get(Attempt, attempt.id), text))

    apart(add)


def test_only_what_has_changed_is_replaced(
    app: AsyncTask, engine: Engine, write: Write, windows: Windows, dashboard: str
) -> None:
    attempt = write(Client, "fail", max_attempts=1)
    apart(lambda: app.perform(attempt.id))
    watched = Watched(windows.open(dashboard), f"{dashboard}/jobs/attempts/{attempt.id}")
    page = watched.page
    page.evaluate("window.mine = ['h1', '#arguments', '#arguments dl'].map((one) => document.querySelector(one))")
    page.click("text=Traceback")
    page.focus("#tries summary")
    noted(app, attempt, "It is the warehouse")
    assert watched.asked(3) == 1
    page.wait_for_selector("#notes >> text=It is the warehouse")
    assert page.locator("#tries details[open] pre").is_visible()
    assert focused(page) == "Traceback"
    assert page.evaluate("window.mine.every((one) => one.isConnected)")
    page.focus("#facts a")
    changed(engine, attempt, status="pending", completed_at=None, last_error=None)
    assert watched.asked(3) == 1
    page.wait_for_selector("#state .state.failed", state="detached")
    assert focused(page) == "default"
    assert page.locator("#tries details[open] pre").is_visible()
    assert watched.asked(30) >= 1


def test_nothing_is_replaced_under_a_persons_hands(
    app: AsyncTask, engine: Engine, write: Write, windows: Windows, dashboard: str
) -> None:
    attempt = ended(engine, write(Client, "fail"), "Broken: order 7")
    watched = Watched(windows.open(dashboard), f"{dashboard}/jobs")
    page = watched.page
    assert watched.asked(3) == 1
    page.check("td.tick input")
    assert watched.asked(9) == 0
    assert watched.says().startswith("not updated while")
    page.uncheck("td.tick input")
    page.focus("input[name=target]")
    assert watched.asked(9) == 0
    page.focus(".brand")
    assert watched.asked(3) == 1
    page.click("text=stop updating")
    assert watched.asked(9) == 0
    assert watched.says().startswith("not updated, ")
    page.click("#live-button")
    assert watched.asked(3) == 1
    assert watched.asked(9, f"Object.defineProperty(document, 'hidden', {HIDDEN}); {CHANGED}") == 0
    assert watched.asked(0, f"delete document.hidden; {CHANGED}") == 1
    page.goto(f"{dashboard}/jobs/attempts/{attempt.id}")
    page.fill("textarea", "They know, and")
    page.focus(".brand")
    noted(app, attempt, "It is the warehouse")
    assert watched.asked(9) == 0
    assert page.input_value("textarea") == "They know, and"


def test_what_a_form_has_shown_is_not_asked_for_again(
    app: AsyncTask, write: Write, windows: Windows, dashboard: str
) -> None:
    """It was the answer to a form, and its address takes nothing but a form."""
    write(act_boxed, None, {"card": "73556"})
    watched = Watched(windows.open(dashboard), f"{dashboard}/jobs?show=all")
    page = watched.page
    page.check("td.tick input")
    page.click("text=Fail…")
    page.focus(".brand")
    assert watched.asked(9) == 0
    page.go_back()
    page.click("td a.open")
    page.click("summary >> text=Reveal")
    page.fill("#arguments input[name=reason]", "the customer asks")
    page.click("#arguments button")
    assert "73556" in page.inner_text("#arguments")
    assert watched.asked(9) == 0
    assert not page.locator("#live").count()


def test_a_page_says_how_old_its_figures_are_while_the_database_does_not_answer(
    app: AsyncTask, windows: Windows, dashboard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server answers, with the last figures that it has. Here those are of a minute before."""

    def of_before(value: Any, read_at: dt.datetime, problem: Exception | None = None) -> Answer:
        return Answer(value, read_at if problem else read_at - dt.timedelta(seconds=60), problem)

    def is_slow(*_: object, **__: object) -> None:
        raise ReadTimeout("too slow")

    monkeypatch.setattr(last_good, "Answer", of_before)
    watched = Watched(windows.open(dashboard), dashboard)
    assert watched.asked(3) == 1
    watched.wait("!isAsking && document.getElementById('live-words').textContent.startsWith('live, ')")
    with monkeypatch.context() as patch:
        patch.setattr(type(app), "_run", is_slow)
        for page in (watched.page, watched.page.context.new_page()):
            page.goto(dashboard) if page.url == "about:blank" else watched.asked(3)
            page.wait_for_selector("#banner >> text=The database is too slow now")
            page.wait_for_selector("#live.late >> text=/older figures, [67]/")
            page.wait_for_selector("#figures")
    watched.asked(3)
    watched.page.wait_for_selector("#live:not(.late) >> text=live, ")
    assert not watched.page.locator("#banner .banner").count()


def test_a_page_says_how_old_its_figures_are_when_nobody_answers(app: AsyncTask, windows: Windows) -> None:
    made: Any = app
    with serving(made.dashboard(authorize=lambda request: Access.full("anna@web"))) as address:
        watched = Watched(windows.open(address), address)
        assert watched.asked(3) == 1
        watched.wait("!isAsking")
        assert watched.says().startswith("live, ")
    assert watched.asked(3) == 1
    watched.wait("hasFailed")
    watched.asked(20)
    assert watched.says().startswith("no answer, 2")
    assert watched.page.locator("#figures").is_visible()
    refused, windows.errors = windows.errors, []
    assert refused
    assert all("ERR_CONNECTION_REFUSED" in one for one in refused)
