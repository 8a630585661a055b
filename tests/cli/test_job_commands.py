"""`async-task show --model` and `explain --model`: a row that is its own job."""

import shlex

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from async_task.asyncable.registration import register
from conftest import by_one_door
from mess import worker_runs
from operations import World
from reviews import HOUR, Board, Desk, Pair
from said import Run

NAME = "test.review"


@by_one_door
def test_explain_names_the_reasons_of_the_row_and_the_remedy_works(
    run: Run, desk: Desk, board: Board, engine: Engine
) -> None:
    worker_runs(engine)
    made = desk.by_hand(error="Broken: Ada")
    said = run("explain", "--model", NAME, str(made))
    assert (said.code, said.err) == (0, "")
    assert f"{NAME} {made}" in said.out
    assert "it was never submitted: a restart submits it" in " ".join(said.out.split())
    told = run("explain", "--model", NAME, str(made), "--json").json
    (reason,) = told["reasons"]
    assert (told["state"], told["error"], told["attempt"], told["read_at"][10]) == (
        "not_submitted",
        "Broken",
        None,
        "T",
    )
    assert (reason["kind"], reason["until"]) == ("not_submitted", None)
    assert told["refused"]["cancel"] is None
    assert "not_yet_submitted" in told["refused"]["restart"]
    assert run(*shlex.split(reason["remedy"])[1:]).code == 0
    assert [one["kind"] for one in run("explain", "--model", NAME, str(made), "--json").json["reasons"]] == ["next"]


@pytest.mark.slow
@by_one_door
def test_show_prints_the_row_its_attempt_its_notes_and_what_happened_to_both(
    run: Run, desk: Desk, board: Board
) -> None:
    board.will_raise(RuntimeError("Ada's pension"), None)
    made = desk.submitted()
    desk.go_on()
    run("note", "--model", NAME, str(made), "The board **knows**.\n\nAll of it.", "--actor", "anna")
    desk.pass_by(3 * HOUR)
    run("restart", NAME, str(made), "--reason", "mended", "--actor", "bert")
    (attempt,) = desk.attempts()
    shown = run("show", "--model", NAME, str(made))
    words = " ".join(shown.out.split())
    assert (shown.code, shown.err) == (0, "")
    for part in (
        "state queued", "last submitted ", f"attempt {attempt.id}, pending", "cancel allowed",
        "by anna: The board **knows**. ...", f"async-task show --model {NAME} {made} --history",
        "restart, by bert mended", "error of try 1 RuntimeError: Ada's pension", "no worker is running",
    ):  # fmt: skip
        assert part in words
    assert "All of it" not in words
    found = run("show", "--model", NAME, str(made), "--json").json
    assert (found["state"], found["attempt"]) == ("queued", str(attempt.id))
    of = {event["kind"]: event["attempt"] for event in found["events"]}
    assert (of["note"], of["restart"], of["error"]) == (None, None, str(attempt.id))
    history = run("show", "--model", NAME, str(made), "--history")
    assert "All of it." in history.out
    lines = run("show", "--model", NAME, str(made), "--history", "--json").lines
    assert lines == found["events"]
    assert "error" in run("show", "--model", NAME, str(made), "--history", "--traceback").out


@pytest.mark.slow
@by_one_door
def test_an_operation_and_a_row_with_two_keys_are_shown_too(run: Run, world: World, engine: Engine) -> None:
    made = world.submitted()
    assert run("show", "--model", "test.batch", str(made), "--json").json["job_type"] == "batches"
    assert "never submitted" in run("explain", "--model", "test.batch", str(world.by_hand())).out
    register(Pair)
    with Session(engine) as session, session.begin():
        Pair(office="a b", number=7).submit_for_processing(session)
    assert run("show", "--model", "test.review_pair", "a b,7", "--json").json["key"] == "a b,7"


@by_one_door
def test_what_is_not_there_is_one_sentence(run: Run, desk: Desk) -> None:
    for command in ("show", "explain"):
        for words, code, part in (
            (("--model", NAME, "999"), 1, "there is no Review 999 (looked in "),
            (("--model", NAME, "x"), 2, "'x' is no key of Review"),
            (("--model", "test.reviw", "7"), 78, "did you mean 'test.review'"),
            (("17",), 2, "'17' is not a valid id"),
        ):
            said = run(command, *words)
            assert (said.code, said.out, said.err.count("\n")) == (code, "", 1)
            assert part in said.err
