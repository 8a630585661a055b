"""The reference pages in docs/ name what the library has: no option and no column is missing or invented."""

import inspect
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from sqlalchemy import Column, Table
from sqlalchemy.dialects import postgresql

from async_task import Attempt, target
from async_task.attempts.options import CallOptions
from async_task.schema.tables import companion_tables, table_of
from async_task.targets.policies import Settings

TREE = pathlib.Path(__file__).parents[2]
DOCS = TREE / "docs"
SPELLED = {"TIMESTAMP WITH TIME ZONE": "timestamptz"}


def rows_of(page: str, section: str) -> dict[str, list[str]]:
    """The table below the heading that begins with `section`: its cells, by the name that stands in its first one."""
    text = (DOCS / page).read_text().partition(f"\n## {section}")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return {found[1]: row for row in rows for found in re.finditer(r"`(\w+)=?`", row[0])}


def test_every_option_of_a_target_is_in_the_table_of_its_page() -> None:
    assert set(rows_of("targets.md", "Options")) == set(Settings.__annotations__)
    named = {name for name, one in inspect.signature(target).parameters.items() if one.kind is one.KEYWORD_ONLY}
    assert set(rows_of("targets.md", "Names")) == named


def test_every_argument_of_a_call_is_in_the_table_of_its_page() -> None:
    taken = set(inspect.signature(Attempt.create).parameters) - {"target", "method_name", "method_args"}
    assert set(rows_of("calls.md", "Arguments")) == taken == set(CallOptions.__annotations__)


def tables() -> list[Table]:
    companions = companion_tables(table_of(Attempt))
    return [table_of(Attempt), *(getattr(companions, field.name) for field in fields(companions))]


@pytest.mark.parametrize("table", tables(), ids=lambda table: str(table.name))
def test_every_column_of_a_table_is_in_the_table_of_its_page_with_its_type(table: Table) -> None:
    rows = rows_of("columns.md", f"`{table.name}`")
    assert {name: row[1] for name, row in rows.items()} == {column.name: _type_of(column) for column in table.columns}


def _type_of(column: Column[Any]) -> str:
    spelled = column.type.compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]
    return SPELLED.get(spelled, spelled.lower()) + (", null" if column.nullable else "")


@pytest.mark.parametrize("page", ["targets.md", "calls.md"])
def test_the_examples_of_the_pages_on_targets_and_calls_run(page: str, tmp_path: pathlib.Path) -> None:
    example = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "shop.py").write_text("\n".join(example))
    command = [sys.executable, "-W", "error", "-c", "import shop"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr


def _links() -> Iterator[tuple[str, str]]:
    for page in [*TREE.glob("*.md"), *DOCS.glob("*.md")]:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" not in link:
                yield str(page.relative_to(TREE)), link


def test_every_link_between_pages_leads_to_a_file_and_a_heading() -> None:
    broken = [(page, link) for page, link in _links() if not _leads_somewhere(TREE / page, link)]
    assert not broken


def _leads_somewhere(page: pathlib.Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    file = (page.parent / path) if path else page
    if not file.exists():
        return False
    return not anchor or anchor in _anchors(file.read_text())


def _anchors(text: str) -> set[str]:
    """The anchors of its headings, as Markdown renderers make them: small letters, hyphens, no other signs."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
