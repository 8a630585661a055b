"""Every page can be read and used: in light and dark, on a telephone, without scripts, and with a screen reader."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine

from async_task import AsyncTask, Attempt
from furnished import Furnished, furnished
from legibility import barriers, disorder, faint, small, thin
from serving import apart
from windows import Windows, overflows

pytestmark = pytest.mark.only_on("postgresql")


@pytest.fixture
def full(
    engine: Engine,
    async_engine_url: str,
    write: Callable[..., Attempt],
    own_encryptors: None,
    registered: None,
    board: object,
) -> Any:
    made = apart(lambda: furnished(engine, async_engine_url, write))
    yield made
    apart(made.app.close)


@pytest.fixture
def app(full: Furnished) -> AsyncTask:
    return full.app


def test_every_page_is_legible_and_in_order_in_both_themes(windows: Windows, dashboard: str, full: Furnished) -> None:
    for page in (windows.open(dashboard), windows.open(dashboard, dark=True)):
        for path in full.paths:
            page.goto(dashboard + path)
            for one in page.locator("main details").all():
                one.evaluate("one => one.open = true")
            assert (faint(page), disorder(page), barriers(page), overflows(page)) == ([], [], [], False), path


def test_every_page_is_there_without_scripts(windows: Windows, dashboard: str, full: Furnished) -> None:
    page = windows.open(dashboard, scripts=False)
    for path in full.paths:
        page.goto(dashboard + path)
        assert page.inner_text("h1")
        assert page.inner_text("main [data-live] >> nth=-1")
        assert not page.locator("#live").is_visible()
    page.fill("#search", "target:test.client status:failed")
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs?q=*")
    assert page.locator("td[data-name=State]").all_inner_texts() == ["✕failed"] * 3


def test_on_a_telephone_no_page_is_scrolled_sideways_and_what_is_touched_is_large(
    windows: Windows, dashboard: str, full: Furnished
) -> None:
    page = windows.open(dashboard, narrow=True)
    for path in full.paths:
        page.goto(dashboard + path)
        assert (page.evaluate("document.scrollingElement.scrollWidth"), small(page), thin(page)) == (390, [], []), path
        for one in page.locator("main details").all():
            one.evaluate("one => one.open = true")
        assert (page.evaluate("document.scrollingElement.scrollWidth"), small(page)) == (390, []), path
