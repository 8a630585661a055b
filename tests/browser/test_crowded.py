"""Jobs with more than there is room for: long words, long names and many errors."""

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import Engine, insert, select, update

from async_task import AsyncTask, Attempt, JobEvent, Schedule
from async_task.asyncable.registration import register
from async_task.attempts.notes import add_note
from async_task.schema.audit import acting
from async_task.schema.tables import companion_tables
from claims import TABLE, claimed, seconds_from_now
from furnished import PAGES
from mess import LONG_AGO, changed, ended, erred, worker_runs
from outbox import Client, application
from reviews import Pair
from serving import apart
from windows import Windows, overflows

pytestmark = pytest.mark.only_on("postgresql")
Write = Callable[..., Attempt]
WORD = "t" * 200
NAME = "customer_account_reference_number_for_billing"
WIDTHS = "(name) => Array.from(document.querySelectorAll(name), (one) => one.getBoundingClientRect().width)"
OUTSIDE = """() => Array.from(document.querySelectorAll("main dd, main td, main li, main p"))
  .filter((one) => one.checkVisibility() && one.textContent.trim() && !one.closest("pre"))
  .filter((one) => one.getBoundingClientRect().right > innerWidth)
  .map((one) => one.outerHTML.slice(0, 90))"""


@pytest.fixture
def app(engine: Engine, async_engine_url: str, board: object, registered: None) -> Iterator[AsyncTask]:
    schedule = Schedule()
    schedule.every(minutes=15, call=Client.ping, key=WORD)
    register(Pair)
    made = apart(lambda: application(engine, "sync", async_engine_url, schedule=schedule))
    yield made
    apart(made.close)


@pytest.fixture
def paths(app: AsyncTask, engine: Engine, write: Write) -> tuple[str, ...]:
    """Of the pages on which each text is one long word."""
    return apart(lambda: long_words(app, engine, write))


def long_words(app: AsyncTask, engine: Engine, write: Write) -> tuple[str, ...]:
    unknown = write(Client, "ping", queue="q" * 64, idempotence_token=WORD, order_key=WORD)
    changed(engine, unknown, target=WORD, method_name="m" * 200, method_args=json.dumps({WORD: WORD}), due_at=LONG_AGO)
    claimed(engine, unknown.id, "w" * 128)
    failed = ended(engine, write(Client, "fail"), f"Broken{WORD}: {WORD}")
    changed(engine, failed, target=WORD, method_name="m" * 200)
    erred(engine, failed, "error", f"Broken{WORD}: {WORD}", "e" * 12)
    worker_runs(engine, name="w" * 128, queues=("q" * 64,), hostname=WORD)
    tables = companion_tables(TABLE)
    with engine.begin() as connection:
        run = {"job_type": TABLE.name, "job_id": "run-batch", "kind": "run", "actor": WORD, "message": WORD}
        report = dict.fromkeys(("claimed", "succeeded", "retried", "failed", "expired"), 0)
        values = {"detail": json.dumps({"report": report, "started_at": LONG_AGO.isoformat()})}
        connection.execute(insert(tables.events).values(run | values))
    with acting("a" * 200):
        app.pause("p" * 60, reason=WORD)
        app.write(lambda session: add_note(session, session.get(Attempt, failed.id), WORD))
        app.write(lambda session: session.get(Attempt, failed.id).retry_now(session, reason=WORD))
    changed(engine, failed, status="failed", completed_at=LONG_AGO)
    row = Pair(office="o" * 100, number=7)
    app.write(lambda session: (session.add(row), row.submit_for_processing(session)))
    return (*PAGES, *(f"/jobs/attempts/{one.id}" for one in (unknown, failed)), f"/jobs/test.review_pair/{'o' * 100},7")


@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "telephone"])
def test_a_long_word_pushes_nothing_out_of_the_window(
    windows: Windows, dashboard: str, paths: tuple[str, ...], narrow: bool
) -> None:
    page = windows.open(dashboard, narrow=narrow)
    found = {}
    for path in paths:
        page.goto(dashboard + path)
        for one in page.locator("main details").all():
            one.evaluate("one => one.open = true")
        found[path] = (overflows(page), page.evaluate(OUTSIDE))
    assert {path: one for path, one in found.items() if one != (False, [])} == {}


@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "telephone"])
def test_a_long_name_leaves_its_value_room(
    engine: Engine, write: Write, windows: Windows, dashboard: str, narrow: bool
) -> None:
    attempt = write(Client, "ping")
    changed(engine, attempt, method_args=json.dumps({NAME: "12-34567-890", WORD: "12-34567-890"}))
    page = windows.open(f"{dashboard}/jobs/attempts/{attempt.id}", narrow=narrow)
    assert min(page.evaluate(WIDTHS, "#arguments dd")) > 140
    changed(engine, attempt, target=WORD)
    page.goto(f"{dashboard}/jobs?show=all")
    page.check("td.tick input")
    page.click("text=Cancel…")
    assert page.inner_text("h1") == "Cancel 1 attempt?"
    assert min(page.evaluate(WIDTHS, "main .facts dd")) > 100
    assert page.evaluate(OUTSIDE) == []


def test_a_time_line_of_many_errors_shows_each_of_them(
    app: AsyncTask, engine: Engine, write: Write, windows: Windows, dashboard: str
) -> None:
    """The colour of each error is where it happened: no other mark hides it."""
    attempt = write(Client, "fail")
    for _ in range(300):
        erred(engine, attempt, "error", "Broken: order 7", None)
    changed(engine, attempt, created_at=seconds_from_now(-600))
    with engine.begin() as connection:
        ids = connection.scalars(select(JobEvent.id).order_by(JobEvent.id)).all()
        for number, one in enumerate(ids):
            at = seconds_from_now(-300 + number / 2)
            connection.execute(update(JobEvent).where(JobEvent.id == one).values(created_at=at))
    page = windows.open(f"{dashboard}/jobs/attempts/{attempt.id}")
    shot: Any = Image.open(io.BytesIO(page.locator("svg.line").screenshot())).convert("RGB")
    middle = [shot.getpixel((x, shot.height // 2)) for x in range(shot.width)]
    red = [place for place, (r, g, b) in enumerate(middle) if r > 1.5 * g and r > 1.5 * b]
    first, last = 0.52 * shot.width, 0.72 * shot.width
    assert len([one for one in red if first < one < last]) > 0.95 * (last - first)
