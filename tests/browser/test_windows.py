"""The windows are what they say, and the server answers in them."""

from collections.abc import Callable
from typing import Any

import pytest

from windows import Windows, focused, overflows

PAGE = b"""<!doctype html><meta name=viewport content="width=device-width"><link rel=icon href=data:,>
<style>body { background: white } @media (prefers-color-scheme: dark) { body { background: black } }</style>
<a href=#one>first</a> <a href=#two>second</a> <p>plain</p>
<script>document.querySelector("p").textContent = "live"</script>
"""
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


async def site(scope: Any, receive: Any, send: Any) -> None:
    """One page, with a script that raises below /broken, and a place that answers nothing below /gone."""
    is_there = scope["path"] != "/gone.js"
    body = {"/broken": b"<script>nobody()</script>", "/lacking": b"<script src=/gone.js></script>"}
    headers = [(b"content-type", b"text/html")]
    await send({"type": "http.response.start", "status": 200 if is_there else 404, "headers": headers})
    await send({"type": "http.response.body", "body": PAGE + body.get(scope["path"], b"")})


def test_a_window_is_light_or_dark_wide_or_narrow_and_with_scripts_or_without(
    serve: Callable[[object], str], windows: Windows
) -> None:
    address = serve(site)
    light, dark = windows.open(address), windows.open(address, dark=True)
    assert (light.evaluate(BACKGROUND), dark.evaluate(BACKGROUND)) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
    narrow, without = windows.open(address, narrow=True), windows.open(address, scripts=False)
    assert (light.evaluate("innerWidth"), narrow.evaluate("innerWidth")) == (1280, 390)
    assert (light.inner_text("p"), without.inner_text("p")) == ("live", "plain")
    light.keyboard.press("Tab")
    light.keyboard.press("Tab")
    assert focused(light) == "second"
    assert not overflows(narrow)
    narrow.evaluate("document.querySelector('p').style.width = '400px'")
    assert overflows(narrow)


@pytest.mark.parametrize(("path", "said"), [("/broken", "nobody is not defined"), ("/lacking", "404")])
def test_what_goes_wrong_in_a_page_is_an_error_of_the_windows(
    serve: Callable[[object], str], windows: Windows, path: str, said: str
) -> None:
    windows.open(serve(site) + path)
    errors, windows.errors = windows.errors, []
    assert len(errors) == 1
    assert said in errors[0]
