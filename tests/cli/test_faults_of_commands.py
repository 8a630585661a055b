"""Errors of databases: their exit codes, and what is printed of them."""

import pathlib
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, String, make_url, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapped, mapped_column

from async_task import Attempt
from async_task.database.driver_errors import is_transient
from async_task_cli.faults import trace_of, verdict
from databases import Database
from outbox import Client, Rows
from said import Run

Write = Callable[..., Attempt]


pytestmark = pytest.mark.usefixtures("alone")


UNREACHABLE = "postgresql+psycopg://me:s3cret@127.0.0.1:1/shop?connect_timeout=2"


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT no_such_column FROM async_task_attempts",
        "SELECT 1 FROM no_such_table",
        "ALTER TABLE async_task_attempts DROP COLUMN no_such_column",
    ],
)
def test_a_refused_statement_is_not_reported_as_an_unreachable_database(engine: Engine, statement: str) -> None:
    with engine.connect() as connection, pytest.raises(DBAPIError) as refused:
        connection.execute(text(statement))
    code, words = verdict(refused.value)
    assert (code, words.startswith("the database refused: ")) == (1, True)


@pytest.mark.only_on("mysql")
def test_a_lock_timeout_is_transient_also_where_the_driver_gives_a_state(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(DBAPIError) as refused:
        connection.execute(text("SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1205, MESSAGE_TEXT = 'Lock wait timeout'"))
    assert is_transient(refused.value.orig)


@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.parametrize("wrong", [{"database": "no_such_database"}, {"username": "nobody", "password": "s3cret"}])
def test_a_missing_database_and_a_refused_login_end_69(say: Run, database: Database, wrong: dict[str, str]) -> None:
    url = make_url(database.sync_url).set(**wrong).render_as_string(hide_password=False)  # type: ignore[arg-type]
    said = say("list", "--database-url", url)
    assert (said.code, said.out, said.err.count("\n")) == (69, "", 1)
    assert said.err.startswith("async-task: the database cannot be used: ")


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("command", ["worker", pytest.param("run-batch", marks=pytest.mark.long)])
def test_a_database_that_is_read_only_ends_69(
    say: Run, write: Callable[..., Attempt], database: Database, command: str
) -> None:
    write(Client, "ping")
    url = f"{database.sync_url}&options=-c%20default_transaction_read_only%3Don"
    said = say(command, "--module", "outbox", "--database-url", url)
    assert (said.code, said.out, said.err.count("\n")) == (69, "", 1)
    assert "the database cannot be used: cannot execute" in said.err


class Noted(Rows):
    """A user's own table, whose database quotes what it refuses."""

    __tablename__ = "noted"

    id: Mapped[int] = mapped_column(primary_key=True)
    word: Mapped[str] = mapped_column(String(40), unique=True)
    number: Mapped[int]


@pytest.mark.parametrize("values", ["(1, 'hush', 1), (2, 'hush', 2)", "(1, 'a', 'hush')", "(1, 'hush', NULL)"])
def test_what_a_database_quotes_of_a_row_is_not_printed(engine: Engine, values: str) -> None:
    try:
        with engine.begin() as connection:
            connection.execute(text(f"INSERT INTO noted (id, word, number) VALUES {values}"))
            connection.execute(text("DELETE FROM noted"))  # SQLite takes a text for a number
    except DBAPIError as error:
        said = verdict(error)[1] + trace_of(error)
        assert "Traceback" in said
        assert "hush" not in said
    else:
        assert engine.dialect.name == "sqlite"


def test_tables_of_another_version_end_78(say: Run) -> None:
    from sqlalchemy import create_engine

    from async_task.schema.tables import SchemaVersion

    assert say("install", "--apply", "--database-url", "sqlite:///old.sqlite").code == 0
    engine = create_engine("sqlite:///old.sqlite")
    with engine.begin() as connection:
        connection.execute(update(SchemaVersion).values(version=99))
    engine.dispose()
    for command in (["list"], ["run-batch"], ["install", "--apply"]):
        said = say(*command, "--database-url", "sqlite:///old.sqlite")
        assert (said.code, said.out, said.err.count("\n")) == (78, "", 1)
        assert "version 99" in said.err


VERBS = ("retry", "run-now", "reschedule", "expire", "fail", "cancel")


NOBODY = "0199f3a0-0000-7000-8000-000000000000"


IN = {"reschedule": ("--in", "1h"), **dict.fromkeys(("expire", "fail", "cancel"), ("--reason", "so"))}


REACHING = {
    **{verb: [verb, *IN.get(verb, ()), NOBODY] for verb in VERBS},
    "list": ["list"],
    "show": ["show", NOBODY],
    "history": ["show", NOBODY, "--history"],
    "note": ["note", NOBODY, "seen"],
    "enqueue": ["enqueue", "test.client.ping"],
    "sweep": ["sweep"],
}


@pytest.mark.parametrize("command", REACHING)
def test_without_its_database_or_tables_a_command_ends_69_or_78(say: Run, command: str) -> None:
    pathlib.Path("bare.sqlite").touch()
    for url, code in ((UNREACHABLE, 69), ("sqlite:///missing.sqlite", 69), ("sqlite:///bare.sqlite", 78)):
        said = say(*REACHING[command], "--json", "--database-url", url)
        assert (said.code, said.out, said.err.count("\n")) == (code, "", 1)
        assert "s3cret" not in said.err
