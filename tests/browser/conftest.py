"""Pages in a real browser: Chromium, driven by Playwright. Only `make test-browser` collects this folder."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from async_task import AsyncTask
from serving import serving
from windows import CHROMIUM, Windows, browser


@pytest.hookimpl(tryfirst=True)
def pytest_collection() -> None:
    if CHROMIUM is None:
        why = "there is no Chromium: install the package chromium, or set ASYNC_TASK_TEST_CHROMIUM to its path"
        pytest.exit(f"the tests in a browser DID NOT RUN: {why}", returncode=0)


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """One browser for all tests: see `browser`."""
    with browser() as made:
        yield made


@pytest.fixture
def serve() -> Iterator[Callable[[object], str]]:
    """`serve(app)`: the address on loopback at which this ASGI application answers, until the test ends."""
    with contextlib.ExitStack() as until:
        yield lambda app: until.enter_context(serving(app))


@pytest.fixture
def dashboard(app: AsyncTask, serve: Callable[[object], str]) -> str:
    """The address of the dashboard of `app`, for a person with every right."""
    from async_task.web.security.access import Access

    made: Any = app
    return serve(made.dashboard(authorize=lambda request: Access.full("anna@web")))


@pytest.fixture
def windows(serve: object, chromium: object) -> Iterator[Windows]:
    """Opens pages, each in a window of its own. When the test ends, no page may have met an error."""
    opened = Windows(chromium)
    yield opened
    opened.close()
    assert not opened.errors, "\n".join(opened.errors)
