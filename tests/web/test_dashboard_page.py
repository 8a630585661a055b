"""docs/dashboard.md names what the dashboard has: pages, qualifiers, keys, gauges, rights and limits."""

import pathlib
import re
from importlib.resources import files

import pytest

from async_task import AsyncTask, Right
from async_task.web import last_good, site
from async_task.web.dashboard import PAGES
from async_task.web.forms import bulk
from async_task.web.pages import job_list, overview
from async_task.web.requests import search
from conftest import by_one_door
from dashboards import browser

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "dashboard.md").read_text()


def section(name: str) -> str:
    return PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def first_cells(name: str) -> list[str]:
    """What stands between backquotes in the first cells of the tables of a section."""
    cells = [line.split("|")[1] for line in section(name).splitlines() if line.startswith("|")]
    return [one for cell in cells for one in re.findall(r"`([^`]+)`", cell)]


def test_the_page_names_every_page_qualifier_key_and_right() -> None:
    paths = [one.path.replace("{kind}/{key:path}", "attempts/ID") for one in PAGES]
    assert {*first_cells("Pages")} == {*paths, "/jobs/MODEL/KEY"}
    assert {*first_cells("Search")} == {f"{one}:" for one in search.QUALIFIERS}
    for state in (*search.WORDS[5:], *search.ROW_STATES):
        assert f"`{state}`" in section("Search"), state
    script = (files("async_task.web") / "static" / "dashboard.js").read_text()
    keys = re.findall(r'^  "?([^\s"]+)"?: ', script.partition("const KEYS = {")[2].partition("};")[0], re.MULTILINE)
    assert {*first_cells("Keys")} == {*keys, "Enter"}
    assert {*re.findall(r"`(\w+)`", section("Who may see it"))} >= {one.value for one in Right}


def test_the_page_names_the_limits_that_are_in_the_code() -> None:
    many = section("Change many attempts")
    for number in (bulk.TYPED_FROM, bulk.AT_ONCE, bulk.MOST):
        assert f"{number:,}" in many
    for words in (f"{site.WITHIN:.0f} s", f"{job_list.LIMIT} rows", f"{overview.FIGURE_AGE:.0f} s"):
        assert words in section("Limits")
    assert f"after {overview.HISTORY_AGE:.0f} s" in section("Limits")
    script = (files("async_task.web") / "static" / "dashboard.js").read_text()
    assert ("EVERY = 3000;" in script, "every three seconds" in section("Live")) == (True, True)
    assert f"{last_good.MOST} answers" in section("While the database is away")


@by_one_door
@pytest.mark.only_on("sqlite")
def test_the_page_names_every_gauge_and_probe(app: AsyncTask) -> None:
    with browser(app) as client:
        found = client.get("/metrics").text
        probes = [path for path in first_cells("Probes and metrics") if path.startswith("/")]
        assert [client.get(path).status_code for path in probes] == [200, 200, 200]
    gauges = {one for one in first_cells("Probes and metrics") if one.startswith("async_task_")}
    assert gauges == set(re.findall(r"^# TYPE (\w+) gauge$", found, re.MULTILINE))
