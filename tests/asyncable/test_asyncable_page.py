"""The examples of docs/asyncable.md are those of examples/reviews, which runs; its tables name what the library has."""

import inspect
import pathlib
import re
import subprocess
import sys

from async_task import Asyncable, Processing
from async_task.asyncable.columns import NAMES
from async_task.asyncable.selects import AsyncableScopes

TREE = pathlib.Path(__file__).parents[2]
PAGE = (TREE / "docs" / "asyncable.md").read_text()
EXAMPLE = TREE / "examples" / "reviews"


def test_the_examples_of_the_page_are_those_of_the_application() -> None:
    written = "\n".join(file.read_text() for file in EXAMPLE.glob("*.py"))
    blocks = re.findall(r"^```python\n# .*?\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    assert [block for block in blocks if block not in written] == []


def test_the_application_runs(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "reviews"]
    ended = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(EXAMPLE.parent)}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    said = [line.split() for line in ended.stdout.splitlines() if line.startswith("  ")]
    assert said == [
        ["C-1", "attempted", "Unavailable"], ["C-2", "submitted", "-"], ["C-3", "attempted", "Unavailable"],
        ["C-1", "processed", "-"], ["C-2", "submitted", "-"], ["C-3", "attempted", "Unavailable"],
        ["C-1", "processed", "-"], ["C-2", "submitted", "-"], ["C-3", "processed", "-"],
        ["C-1", "processed", "-"], ["C-2", "canceled", "-"], ["C-3", "processed", "-"],
    ]  # fmt: skip
    assert "dispatches 1 row\n" in ended.stdout


def test_the_tables_of_the_page_name_every_column_scope_verb_and_setting() -> None:
    cells = "\n".join(line.split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| "))
    named = set(re.findall(r"`(\w+)[=(`]", cells)) - {"Processing"}
    scopes = {name for name, one in vars(AsyncableScopes).items() if isinstance(one, classmethod)} | {"processed"}
    verbs = {"submit_for_processing", "restart", "cancel", "attempted", "update_error", "clear_error"}
    assert named == {*NAMES, *scopes, *verbs, *inspect.signature(Processing).parameters}
    predicates = {name for name in vars(Asyncable) if name.startswith("is_")}
    assert {*re.findall(r"`(is_\w+)`", PAGE)} == predicates
