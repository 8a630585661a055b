"""`async-task prune`."""

import pathlib
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, select, update

from async_task import Attempt
from claims import TABLE
from databases import Database
from elsewhere import Program
from ended import ended, ids_in
from outbox import act
from said import Run
from terminals import Terminal

Write = Callable[..., Attempt]

pytestmark = pytest.mark.usefixtures("alone")
LONG = "shop.orders.fulfilment-" + "".join(chr(97 + n * n % 26) + str(n) for n in range(72))[:177]


@pytest.mark.slow
def test_prune_deletes_counts_and_says_nothing_without_a_terminal(run: Run, engine: Engine, write: Write) -> None:
    rows = {ended(engine, write, 31, events=2), ended(engine, write, 31, idempotence_token="a")}
    dry = run("prune", "--older-than", "30d", "--dry-run")
    assert (dry.code, dry.out) == (0, "")
    assert dry.err == (
        "1 attempt would be deleted, with 2 events; 1 would be emptied, for their tokens are remembered.\n"
    )
    assert ids_in(engine) == rows
    said = run("prune", "--older-than", "30d", "--json").json
    assert said.pop("seconds") >= 0
    assert said == {"deleted": 1, "emptied": 1, "events": 2, "left": 0, "refused": [], "dry_run": False}
    again = run("prune", "--older-than", "30d")
    assert (again.code, again.out, again.err) == (0, "", "")
    assert run("prune", "--older-than", "4w", "--keep-tokens", "1w", "--json").json["deleted"] == 1


def test_prune_takes_statuses_a_target_and_a_queue(run: Run, engine: Engine, write: Write) -> None:
    failed, canceled = ended(engine, write, 31, "failed"), ended(engine, write, 31, "canceled")
    acted = ended(engine, write, 31, target=act, queue="mail")
    words = ("prune", "--older-than", "30d", "--json")
    assert run(*words, "--queue", "mail", "--target", "test.act", "--keep-events").json["deleted"] == 1
    assert acted not in ids_in(engine)
    assert run(*words, "--status", "failed", "--status", "expired").json["deleted"] == 1
    assert ids_in(engine) == {canceled}
    assert failed != canceled


@pytest.mark.slow
def test_prune_takes_a_call_as_list_prints_it(run: Run, engine: Engine, write: Write) -> None:
    ping, poll = ended(engine, write, 31), ended(engine, write, 31)
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == poll).values(method_name="poll"))
    words = ("prune", "--older-than", "30d", "--json", "--target")
    assert run(*words, "test.client.ping").json["deleted"] == 1
    assert ids_in(engine) == {poll}
    assert run(*words, "test.cl…t.poll").json["deleted"] == 1
    assert ping != poll


def test_prune_asks_for_an_age(run: Run) -> None:
    for words in ((), ("--status", "failed"), ("--target", "test.client")):
        said = run("prune", *words)
        assert (said.code, said.out) == (2, "")
        assert "how old? --older-than 30d deletes what ended longer ago than 30 days" in said.err
    said = run("prune", "--older-than", "30d", "--status", "faild")
    assert (said.code, "(did you mean 'failed'?)" in said.err) == (2, True)
    said = run("prune", "--older-than", "soon")
    assert said.code == 2
    assert "'soon' is not a length of time" in said.err


def test_prune_on_an_empty_table_counts_nothing(run: Run) -> None:
    said = run("prune", "--older-than", "1y", "--dry-run")
    assert (said.code, said.out, said.err) == (0, "", "0 attempts would be deleted, with 0 events.\n")


def test_long_names_are_found_and_unknown_ones_refused_in_one_line(run: Run, engine: Engine, write: Write) -> None:
    ended(engine, write, 31)
    with engine.begin() as connection:
        connection.execute(update(TABLE).values(target=LONG))
    said = run("prune", "--older-than", "30d", "--target", f"{LONG[:-1]}y")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert f"did you mean '{LONG[:60]}" in said.err, said.err
    assert run("prune", "--older-than", "30d", "--target", LONG, "--json").json["deleted"] == 1


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("colour", [True, False])
def test_on_a_terminal_prune_says_what_it_did_in_plain_words(
    process: Callable[..., Program], engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch, colour: bool
) -> None:
    ended(engine, write, 31, events=1)
    if not colour:
        monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    program = process("prune", "--older-than", "30d", stdout=terminal.theirs, stderr=terminal.theirs)
    assert program.wait() == 0
    said = terminal.close()
    assert "1 attempt deleted, with 1 event; 0." in said
    assert "\x1b" not in said
    assert all(len(line) <= 80 for line in said.splitlines())
    with engine.connect() as connection:
        assert connection.execute(select(TABLE.c.id)).all() == []


@pytest.mark.only_on("postgresql")
def test_an_attempt_that_cannot_be_deleted_is_named_without_what_the_database_said(
    run: Run, engine: Engine, write: Write
) -> None:
    attempt = ended(engine, write, 31)
    with engine.begin() as connection:
        connection.exec_driver_sql(KEEPING)
    try:
        said, as_data = run("prune", "--older-than", "30d"), run("prune", "--older-than", "30d", "--json")
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE receipts")
    assert (said.code, as_data.code) == (1, 1)
    assert "1 cannot be deleted" in said.err
    assert str(attempt) in said.err
    assert "Traceback" not in said.err
    assert as_data.json["refused"][0]["id"] == str(attempt)


KEEPING = (
    "CREATE TABLE receipts AS SELECT id AS job FROM async_task_attempts; "
    "ALTER TABLE receipts ADD FOREIGN KEY (job) REFERENCES async_task_attempts (id)"
)


def test_a_password_is_never_printed(say: Run, tmp_path: pathlib.Path) -> None:
    url = "postgresql+psycopg://shop:hunter2@127.0.0.1:1/shop"
    for words in (("--older-than", "30d"), ()):
        said = say("prune", *words, "--database-url", url)
        assert said.code in (2, 69)
        assert "hunter2" not in said.err
        assert "Traceback" not in said.err


def test_an_application_that_keeps_needs_no_age(
    say: Run, engine: Engine, write: Write, database: Database, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, young = ended(engine, write, 31), ended(engine, write, 29)
    folder = tmp_path / "apps"
    folder.mkdir()
    text = f"from async_task import AsyncTask\nimport outbox\napp = AsyncTask({database.sync_url!r}, keep='30d')\n"
    name = f"keeping_{database.name}"
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    assert say("prune", "--app", f"{name}:app", "--json").json["deleted"] == 1
    assert ids_in(engine) == {young}
    assert old != young
