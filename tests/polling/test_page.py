"""The examples of docs/polling.md run as they are printed, beside a provider that answers at once, and its tables name
what the library has."""

import inspect
import pathlib
import re
import subprocess
import sys

from async_task import Pollable, Polling
from async_task.polling.states import STATE

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "polling.md").read_text()
PROVIDER = """
asked = []
class Unavailable(Exception): ...
def refund_status(refund): asked.append("refund"); return "pending" if asked.count("refund") < 2 else "paid"
def create_batch(prompts, idempotency_key): return "b-1"
def batch_status(batch): return "ended"
def batch_results(batch): return "forty-two"
def cancel_batch(batch): ...
"""
PROGRAM = """
import batches, provider, refunds
from async_task import AsyncTask, Attempt
from batches import CompletionBatch
from sqlalchemy import create_engine, select
from sqlalchemy.orm import sessionmaker

engine = create_engine("sqlite:///shop.db")
SessionLocal = sessionmaker(engine)
batches.Base.metadata.create_all(engine)
outbox = AsyncTask(SessionLocal)
outbox.create_schema()
{submit}
with SessionLocal.begin() as session:
    refund = "r-1"
    for _ in range(2):
        {ensure}
for _ in range(5):
    outbox.run_batch()
    with SessionLocal.begin() as session:
        for attempt in session.scalars(select(Attempt).where(Attempt.status == "pending")):
            attempt.retry_now()
assert provider.asked == ["refund", "refund"], provider.asked
"""


def test_the_examples_of_the_page_run(tmp_path: pathlib.Path) -> None:
    refunds, batches, submit = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (ensure,) = re.findall(r"`(Attempt\.ensure\(.*?\))`", PAGE)
    files = {"refunds": refunds, "batches": batches, "provider": PROVIDER}
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "program.py").write_text(PROGRAM.format(submit=submit, ensure=ensure))
    command = [sys.executable, "-W", "error", "program.py"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "batch 1 is ended: forty-two\n"), ended.stderr


def test_the_plain_target_of_the_page_has_ten_lines() -> None:
    plain = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[0]
    assert len([line for line in plain.splitlines() if line and not line.startswith("#")]) <= 10


def test_the_tables_of_the_page_name_every_column_setting_and_method() -> None:
    cells = "\n".join(line.split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| "))
    named = set(re.findall(r"`(\w+)[=(`]", cells))
    methods = {"start", "check", "fetch", "handle", "stop", "secrets"}
    assert named - {"Polling"} == {*STATE, *methods, *inspect.signature(Polling).parameters}
    assert all(hasattr(Pollable, name) for name in methods)
