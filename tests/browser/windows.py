"""The browser, and its windows as different people have them."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("ASYNC_TASK_TEST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)

WIDE = {"width": 1280, "height": 900}
NARROW = {"width": 390, "height": 844}
PATIENCE_MS = 10_000


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Chromium without a window. From now on this thread runs Playwright's event loop: call verbs of an application on
    another one (`apart`)."""
    from playwright.sync_api import sync_playwright

    # Chromium has no sandbox for root. Nothing but this machine is resolved.
    flags = [
        "--disable-lcd-text",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        *["--no-sandbox"] * (os.geteuid() == 0),
    ]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


class Windows:
    """Opens pages. `errors`: what went wrong in any of them: exceptions of scripts, and errors and warnings of the
    console, such as a request that failed, or what the Content-Security-Policy has refused."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser
        self._contexts: list[Any] = []
        self.errors: list[str] = []

    def open(self, address: str, *, dark: bool = False, narrow: bool = False, scripts: bool = True) -> Any:
        """A page at this address, in a window of its own. `dark`: the person prefers it. `narrow`: a telephone, 390 px
        wide. `scripts`: whether JavaScript runs."""
        context = self._browser.new_context(
            color_scheme="dark" if dark else "light", viewport=NARROW if narrow else WIDE, has_touch=narrow,
            java_script_enabled=scripts, locale="en-GB", timezone_id="UTC", reduced_motion="reduce",
        )  # fmt: skip
        self._contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: self.errors.append(f"{page.url}: {error}"))
        page.on("console", lambda message: self._heard(page, message))
        page.goto(address)
        return page

    def _heard(self, page: Any, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"{page.url}: {message.text}")

    def close(self) -> None:
        for context in self._contexts:
            context.close()


def overflows(page: Any) -> bool:
    """Whether it is wider than its window, so that it must be scrolled sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


def focused(page: Any) -> str:
    """The text of what has the focus."""
    return str(page.evaluate("document.activeElement.innerText"))
