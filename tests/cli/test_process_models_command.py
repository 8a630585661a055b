"""`async-task process-models`."""

import pytest
from sqlalchemy import Engine, delete
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt, Schedule, Status, process_models
from async_task.asyncable import sweep as sweep_module
from conftest import by_one_door
from reviews import HOUR, Board, Desk
from said import Run

pytestmark = [pytest.mark.usefixtures("alone"), by_one_door]


def test_it_dispatches_and_counts(run: Run, desk: Desk, engine: Engine) -> None:
    for _ in range(2):
        desk.submitted()
    with engine.begin() as connection:
        connection.execute(delete(Attempt))
    desk.pass_by(3 * HOUR)
    dry = run("process-models", "--limit", "1", "--dry-run")
    assert (dry.code, dry.err) == (0, "Nothing was done: this is a dry run.\n")
    assert [line.split() for line in dry.out.splitlines()] == [
        ["MODEL", "DISPATCHED", "OPEN", "LEFT", "ERRORS"], ["test.review", "1", "0", "1", "0"],
    ]  # fmt: skip
    assert desk.attempts() == []
    said = run("process-models", "--limit", "1", "--json")
    assert (said.code, said.err) == (0, "")
    assert said.json == {"model": "test.review", "dispatched": 1, "open": 0, "left": 1, "errors": []}
    quiet = run("process-models")
    assert (quiet.code, quiet.out, quiet.err, len(desk.attempts())) == (0, "", "", 2)
    assert run("process-models", "--limit", "-1").code == 2


def test_errors_are_named_and_end_with_1(run: Run, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("no such table")

    monkeypatch.setattr(sweep_module, "_required", broken)
    said = run("process-models")
    assert (said.code, said.out) == (1, "")
    assert "test.review: OSError: no such table\n" in said.err


@pytest.mark.slow
def test_an_entry_of_the_schedule_sweeps(desk: Desk, board: Board, engine: Engine) -> None:
    made = desk.submitted()
    with engine.begin() as connection:
        connection.execute(delete(Attempt))
    desk.pass_by(3 * HOUR)
    schedule = Schedule()
    schedule.every(hours=1, call=process_models, args={"limit": 10})
    app = AsyncTask(engine, schedule=schedule)
    app.schedule.run("async_task.process_models")
    for _ in range(2):
        app.run_batch()
    assert desk.status(made) == "processed"
    with Session(engine) as session:
        assert {one.status for one in session.query(Attempt)} == {Status.SUCCEEDED}
