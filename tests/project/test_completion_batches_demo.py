"""The demo and the README of the example `completion_batches`."""

import pathlib
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.long

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "completion_batches"
README = (EXAMPLE / "README.md").read_text()


def without_numbers(line: str) -> str:
    return re.sub(r"\d+(\.\d+)?", "0", line).strip()


def test_the_demo_prints_what_its_readme_says() -> None:
    """But for the steps of the batches, whose order and number depend on the machine."""
    (block,) = re.findall(r"^\$ python -m completion_batches\.demo\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    command = [sys.executable, "-W", "error", "-m", "completion_batches.demo"]
    ended = subprocess.run(command, cwd=EXAMPLE.parent, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    printed = [without_numbers(line) for line in ended.stdout.splitlines()]
    told = [without_numbers(line) for line in block.splitlines()]
    assert [one for one in printed if " batch 0 is " not in one] == [one for one in told if " batch 0 is " not in one]
    assert any("failed and handled: it had not ended after its maximal age" in one for one in printed)


def test_the_readme_names_settings_that_there_are() -> None:
    text = (EXAMPLE / "settings.py").read_text()
    named = {one.lower() for one in re.findall(r"COMPLETIONS_([A-Z_]+)", README)}
    assert named <= set(re.findall(r"^    (\w+): ", text, re.MULTILINE))
