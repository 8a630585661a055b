"""`async-task note`, `show --history`, and the reasons that verbs require."""

import io
import sys
import uuid
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, delete
from sqlalchemy.orm import Session

from async_task import Attempt
from conftest import by_one_door
from outbox import Client, events_of
from reviews import Desk
from said import Run

Write = Callable[..., Attempt]
NOBODY = "0199f3a0-0000-7000-8000-000000000000"


@pytest.mark.slow
def test_a_note_is_added_by_the_actor_and_show_prints_the_newest_ones_briefly(run: Run, write: Write) -> None:
    attempt = write(Client, "ping")
    said = run("note", str(attempt.id), "The **card** has expired.", "--actor", "anna")
    assert (said.code, said.out, said.err) == (0, f"{attempt.id}  noted\n", "")
    shown = " ".join(run("show", attempt.id.hex[-8:]).out.split())
    assert "by anna: The **card** has expired." in shown
    assert "--history" not in shown
    assert "Events: none" in shown
    for number in range(3):
        made = run("note", attempt.id.hex[-8:], f"note {number}\n\nand more", "--json", "--actor", "bert").json
        assert made.keys() == {"id", "note", "author", "text", "created_at"}
        assert (made["id"], made["author"], made["text"]) == (str(attempt.id), "bert", f"note {number}\n\nand more")
    shown = run("show", str(attempt.id)).out
    places = [shown.index(f"by bert: note {number} ...") for number in (2, 1, 0)]
    assert places == sorted(places)
    assert "card" not in shown
    assert f"async-task show {attempt.id} --history" in " ".join(shown.split())


def test_a_note_is_read_from_standard_input(
    run: Run, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = write(Client, "ping")
    monkeypatch.setattr(sys, "stdin", io.StringIO("# Seen\n\n- by me\n"))
    assert run("note", str(attempt.id), "-").code == 0
    assert [event.message for event in events_of(engine, attempt.id)] == ["# Seen\n\n- by me\n"]


def test_a_note_that_is_refused_adds_nothing(run: Run, engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping")
    for words, code, part in (
        ((str(attempt.id), " "), 2, "the note is empty"),
        ((str(attempt.id), "a" * 65_537), 2, "a note has at most 65,536 bytes, and this one has 65,537"),
        ((str(attempt.id),), 2, "Missing argument 'TEXT'"),
        (("17", "x"), 2, "'17' is not a valid id"),
        ((NOBODY, "x"), 1, f"there is no attempt {NOBODY}"),
        ((str(attempt.id), "x", "--actor="), 2, "an actor is a printable text"),
    ):
        said = run("note", *words)
        assert (said.code, said.out, said.err.count("\n")) == (code, "", 1)
        assert part in said.err
    dry = run("note", str(attempt.id), "x", "--dry-run", "--json").json
    assert (dry["id"], dry["note"], dry["text"]) == (str(attempt.id), None, "x")
    assert run("note", str(attempt.id), "x", "--dry-run").out == f"{attempt.id}  would be noted\n"
    assert events_of(engine, attempt.id) == []


@pytest.mark.slow
def test_the_history_has_tries_verbs_with_their_changes_and_notes_in_order(run: Run, write: Write) -> None:
    attempt = write(Client, "fail", {"message": "no such order"})
    run("run-batch")
    run("fail", str(attempt.id), "--reason", "no use", "--actor", "anna")
    run("note", str(attempt.id), "Asked the shop.\n\n- *it waits*", "--actor", "bert")
    run("retry", str(attempt.id), "--actor", "carl")
    lines = run("show", str(attempt.id), "--history", "--json").lines
    assert [(line["kind"], line["num_attempt"], line["actor"], line["message"]) for line in lines] == [
        ("error", 1, None, "Broken: no such order"),
        ("fail", None, "anna", "no use"),
        ("note", None, "bert", "Asked the shop.\n\n- *it waits*"),
        ("retry_now", None, "carl", None),
    ]
    assert all({"created_at", "before", "after"} < line.keys() and "detail" not in line for line in lines)
    assert [line["before"] and line["before"]["status"] for line in lines] == [None, "pending", None, "failed"]
    assert [line["after"] and line["after"]["status"] for line in lines] == [None, "failed", None, "pending"]
    assert (lines[3]["before"]["num_errors"], lines[3]["after"]["num_errors"]) == (1, 0)
    traced = run("show", attempt.id.hex[-8:], "--history", "--json", "--traceback").lines
    assert ["Traceback" in (line["detail"] or "") for line in traced] == [True, False, False, False]
    said = run("show", str(attempt.id), "--history")
    words = " ".join(said.out.split())
    for part in (
        f"History of attempt {attempt.id}",
        "error of try 1 Broken: no such order",
        "fail, by anna no use status pending -> failed",
        "note, by bert Asked the shop. - *it waits*",
        "retry_now, by carl (no message) status failed -> pending, due ",
        "errors 1 -> 0",
    ):
        assert part in words
    assert "arguments" not in words
    traced_page = run("show", str(attempt.id), "--history", "--traceback").out
    assert "raise Broken(message)" in traced_page
    assert '"before"' not in traced_page


@pytest.mark.slow
def test_the_history_of_an_attempt_that_is_gone_has_its_notes(run: Run, engine: Engine, write: Write) -> None:
    attempt, plain = write(Client, "ping"), write(Client, "ping")
    run("note", str(attempt.id), "remember me")
    with engine.begin() as connection:
        connection.execute(delete(Attempt))
    assert "remember me" in run("show", str(attempt.id), "--history").out
    assert run("show", str(attempt.id)).code == 1
    for gone in (str(plain.id), str(uuid.uuid4()), attempt.id.hex[-8:]):
        said = run("show", gone, "--history")
        assert (said.code, said.out, said.err.count("\n")) == (1, "", 1)


ONE, TWO = ["{one}"], ["{one}", "{two}"]


@pytest.mark.in_turns
@pytest.mark.parametrize(
    ("verb", "words"),
    [
        *((verb, words) for verb in ("expire", "fail", "cancel") for words in (ONE, TWO, ["--all", "--yes"])),
        *((verb, words) for verb in ("retry", "run-now") for words in (TWO, ["--all", "--yes"])),
        ("cancel", [*ONE, "--reason", " "]),
    ],
)
def test_a_verb_that_ends_and_one_for_several_need_a_reason(
    run: Run, engine: Engine, write: Write, verb: str, words: list[str]
) -> None:
    one, two = write(Client, "ping"), write(Client, "ping")
    given = [word.format(one=one.id, two=two.id) for word in words]
    said = run(verb, *given)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith(f"async-task: {verb} ")
    assert "needs a reason: --reason TEXT, which the events keep" in said.err
    assert events_of(engine, one.id) == events_of(engine, two.id) == []
    assert run(verb, *given, "--dry-run").code == 0
    assert run(verb, *[word for word in given if word not in {" ", "--reason"}], "--reason", "so").code == 0


@pytest.mark.parametrize("verb", ["retry", "run-now"])
def test_a_retry_of_one_attempt_needs_no_reason(run: Run, write: Write, verb: str) -> None:
    attempt = write(Client, "ping")
    assert run(verb, str(attempt.id), str(attempt.id)).code == 0


@by_one_door
def test_a_row_of_a_model_gets_a_note_by_its_key(run: Run, desk: Desk) -> None:
    made = desk.submitted()
    said = run("note", "--model", "test.review", str(made), "The board **knows**.", "--actor", "anna")
    assert (said.code, said.out, said.err) == (0, f"{made}  noted\n", "")
    with Session(desk.engine) as session:
        (one,) = session.get_one(desk.model, made).job_notes
        assert (one.author, one.text) == ("anna", "The board **knows**.")
    assert run("note", "--model", "test.review", "999", "x").code == 1
    assert run("note", "--model", "test.reviw", "1", "x").code == 78
    assert run("note", "--model", "test.review", "x", "x").code == 2
