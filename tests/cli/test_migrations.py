"""What a revision does: rendered from the model, carried out on every database, as a file, as SQL, at once."""

import contextlib
import copy
import os
import pathlib
import pickle
import re
import subprocess
import textwrap
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, ForeignKey, MetaData, String, TypeDecorator, create_engine, inspect, text
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import databases
from async_task import AsyncTask, Attempt, BaseAttempt, metadata
from async_task.queue.claim_statements import Shape, lock_due
from async_task.reading import call_problems
from async_task.schema.tables import SCHEMA_VERSION, table_of
from async_task.schema.versions import tables_of
from async_task_cli.main import main
from async_task_cli.migrations.body import installing, upgrading
from async_task_cli.migrations.comparison import differences
from async_task_cli.migrations.execution import DIALECTS, as_sql, carry_out
from conftest import AVAILABLE
from databases import Database
from elsewhere import Program
from outbox import Client
from schemas import described, execute_script

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def _no_targets_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, other tests have registered some that name encryptors of theirs, which `check` would find."""
    monkeypatch.setattr(call_problems, "registered_targets", lambda: [])


GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
OLD = range(1, SCHEMA_VERSION)
New = Callable[[], Engine]


@pytest.fixture
def new(database: Database, pytestconfig: pytest.Config) -> Iterator[New]:
    """`new()`: an empty database of this kind."""
    with contextlib.ExitStack() as until:

        def new() -> Engine:
            made = until.enter_context(databases.own(pytestconfig.stash[AVAILABLE].named(database.name)))
            engine = create_engine(made.sync_url)
            until.callback(engine.dispose)
            return engine

        yield new


@pytest.fixture(scope="session")
def created(database: Database, pytestconfig: pytest.Config) -> list[str]:
    """A database as `create_all` makes it."""
    with databases.own(pytestconfig.stash[AVAILABLE].named(database.name)) as made:
        engine = create_engine(made.sync_url)
        metadata.create_all(engine)
        lines = described(engine)
        engine.dispose()
    return lines


def carried_out(engine: Engine, body: Any) -> list[str]:
    with engine.begin() as connection:
        carry_out(body, connection)
    return described(engine)


def dialect_of(engine: Engine) -> str:
    with engine.connect() as connection:
        return "mariadb" if getattr(connection.dialect, "is_mariadb", False) else connection.dialect.name


def body_of(model: type[BaseAttempt]) -> Any:
    return installing(tables_of(model), table_of(model))


def version(number: int, engine: Engine) -> str:
    return (GOLDEN / f"version_{number}.{dialect_of(engine)}.sql").read_text()


def test_a_revision_creates_what_create_all_creates(new: New, created: list[str]) -> None:
    assert carried_out(new(), body_of(Attempt)) == created


def test_the_printed_sql_creates_the_same(new: New, created: list[str]) -> None:
    engine = new()
    execute_script(engine, as_sql(body_of(Attempt), dialect_of(engine)))
    assert described(engine) == created
    assert AsyncTask(engine).schema_version() == SCHEMA_VERSION


@pytest.mark.parametrize("since", OLD)
def test_old_tables_are_upgraded_to_those_of_a_new_installation(new: New, created: list[str], since: int) -> None:
    engine = new()
    execute_script(engine, version(since, engine))
    assert carried_out(engine, upgrading(table_of(Attempt), since)) == created
    assert AsyncTask(engine).schema_version() == SCHEMA_VERSION


@pytest.mark.parametrize("since", OLD)
def test_the_printed_sql_of_an_upgrade_does_the_same(new: New, created: list[str], since: int) -> None:
    engine = new()
    execute_script(engine, version(since, engine))
    execute_script(engine, as_sql(upgrading(table_of(Attempt), since), dialect_of(engine)))
    assert described(engine) == created


@pytest.mark.parametrize("since", OLD)
def test_an_upgrade_keeps_every_call(new: New, since: int) -> None:
    engine = new()
    execute_script(engine, version(since, engine))
    app = AsyncTask(engine)
    with engine.begin() as connection:
        for _ in range(3):
            write_as_old(connection)
        carry_out(upgrading(table_of(Attempt), since), connection)
    app.check_schema()
    assert app.run_batch().succeeded == 3


def write_as_old(connection: Connection, status: str = "pending", crashes: int = 0) -> str:
    """Insert a due call into the columns that every version has. Returns its id."""
    made = uuid.uuid4().hex
    completed = "NULL" if status == "pending" else "'2026-01-01 00:00:00.000000'"
    instant = "'2026-01-01 00:00:00.000000'"
    connection.exec_driver_sql(
        "INSERT INTO async_task_attempts (id, status, target, method_name, method_args, encryptor, queue, priority, "
        "released, num_attempts, num_errors, num_crashes, due_at, created_at, updated_at, completed_at) VALUES "
        f"('{made}', '{status}', 'test.client', 'ping', '{{}}', 'null', 'default', 0, "
        f"TRUE, {crashes}, 0, {crashes}, {instant}, {instant}, {instant}, {completed})"
    )
    return made


def test_an_upgrade_counts_earlier_crashes_of_pending_attempts_as_losses_and_a_downgrade_as_crashes(new: New) -> None:
    engine = new()
    execute_script(engine, version(3, engine))
    body = upgrading(table_of(Attempt), 3)
    counted = text("SELECT status, num_crashes, num_losses FROM async_task_attempts ORDER BY status, num_attempts")
    with engine.begin() as connection:
        for status, crashes in (("pending", 0), ("pending", 2), ("failed", 3)):
            write_as_old(connection, status, crashes)
        carry_out(body, connection)
        found = [tuple(row) for row in connection.execute(counted)]
        carry_out(replace(body, upgrade=body.downgrade), connection)
        kept = connection.scalars(text("SELECT num_crashes FROM async_task_attempts ORDER BY num_attempts")).all()
    assert found == [("failed", 3, 0), ("pending", 0, 0), ("pending", 0, 2)]
    assert kept == [0, 2, 3]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("verb", ["install", "upgrade"])
def test_the_sql_is_the_golden_one_every_time(
    verb: str, dialect: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ASYNC_TASK_APP", raising=False)
    for _ in range(2):
        assert main(["sql", verb, "--dialect", dialect]) == 0
        said = capsys.readouterr()
        assert said.err == ""
        assert said.out == golden(f"{verb}.{dialect}.sql", said.out)


def test_the_revision_is_the_golden_one() -> None:
    body = body_of(Attempt)
    whole = f"{body.imports}\n\n{body.upgrade}\n\n# downgrade\n\n{body.downgrade}"
    assert whole == golden("revision.py.txt", whole)


def golden(name: str, now: str) -> str:
    """The text that was looked at and kept; to renew it, delete the file, run, and look at what `git diff` shows."""
    file = GOLDEN / name
    if not file.exists():
        file.write_text(now)
        pytest.fail(f"{file} was not there, and is now: look at it")
    return file.read_text()


class Money(TypeDecorator[str]):
    """A type of the user's."""

    impl = String(20)
    cache_ok = True


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention={"pk": "pk_%(table_name)s", "ix": "ix_%(column_0_label)s"})


class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)


class OwnAttempt(BaseAttempt, Base):
    """With columns, an index and a foreign key of the user's."""

    __tablename__ = "shop_attempts"

    tenant: Mapped[str] = mapped_column(String(20), index=True, server_default="it's 100% ours")
    price: Mapped[str | None] = mapped_column(Money())
    customer_id: Mapped[int | None] = mapped_column(ForeignKey("customers.id"))


def test_an_own_model_is_migrated_with_all_its_columns_beside_other_tables(new: New) -> None:
    made, migrated = new(), new()
    Base.metadata.create_all(made)
    Base.metadata.create_all(migrated, tables=[Base.metadata.tables["customers"]])
    assert carried_out(migrated, body_of(OwnAttempt)) == described(made)
    with migrated.connect() as connection:
        assert differences(connection, tables_of(OwnAttempt)) == []


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize(
    ("inherited", "name", "table"), [("Acme outbox", None, "Attempts"), (None, "shop", "order"), (None, "public", "a")]
)
def test_a_schema_is_created_and_its_names_are_quoted(
    new: New, inherited: str | None, name: str | None, table: str
) -> None:
    class Elsewhere(DeclarativeBase):
        metadata = MetaData(schema=inherited)

    class There(BaseAttempt, Elsewhere):
        __tablename__ = table
        __table_args__ = {"schema": name} if name else {}

    engine = new()
    carried_out(engine, body_of(There))
    app = AsyncTask(engine, model=There)
    app.check_schema()
    assert app.schema_version() == SCHEMA_VERSION
    with engine.begin() as connection:
        There.create_many(connection, [{"target": Client, "method_name": "ping"}])
        assert differences(connection, tables_of(There)) == []
    assert app.run_batch().succeeded == 1
    assert inspect(engine).has_table(table) == (name == "public")
    with engine.begin() as connection:
        quoted = connection.dialect.identifier_preparer.format_table(table_of(There))
        connection.exec_driver_sql(f"ALTER TABLE {quoted} DROP COLUMN call_settings")
        connection.exec_driver_sql(f'DROP INDEX {quoted.rpartition(".")[0]}."ix_{table}_waiting"')
        assert differences(connection, tables_of(There)) == [
            f"{table} lacks the column call_settings", f"{table} lacks the index ix_{table}_waiting",
        ]  # fmt: skip
    with engine.connect() as connection:
        stored = connection.scalar(text(f"SELECT reloptions FROM pg_class WHERE relname = '{table}'"))
    assert "autovacuum_vacuum_scale_factor=0.01" in stored


@pytest.mark.only_on("postgresql")
def test_install_apply_creates_the_schema_too(new: New) -> None:
    class Elsewhere(DeclarativeBase):
        metadata = MetaData(schema="shop")

    class There(BaseAttempt, Elsewhere):
        __tablename__ = "calls"

    app = AsyncTask(new(), model=There)
    app.create_schema()
    app.check_schema()


@pytest.mark.only_on("mysql")
@pytest.mark.parametrize("done", range(1, 24))
def test_an_interrupted_upgrade_can_be_repeated_where_each_step_is_committed(
    new: New, created: list[str], done: int
) -> None:
    engine = new()
    if dialect_of(engine) != "mariadb":
        return  # MySQL cannot say IF NOT EXISTS
    execute_script(engine, version(1, engine))
    body = upgrading(table_of(Attempt), 1)
    first = as_sql(body, "mariadb").split(";\n\n")[:done]
    execute_script(engine, ";\n\n".join(first))
    assert carried_out(engine, body) == created


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "DROP INDEX ix_async_task_attempts_waiting",
            "async_task_attempts lacks the index ix_async_task_attempts_waiting",
        ),
        ("ALTER TABLE async_task_job_events DROP COLUMN actor", "async_task_job_events lacks the column actor"),
        ("DROP TABLE async_task_workers", "the table async_task_workers is missing"),
    ],
)
def test_a_difference_is_one_sentence(new: New, change: str, words: str) -> None:
    engine = new()
    metadata.create_all(engine)
    with engine.begin() as connection:
        on = " ON async_task_attempts" if "INDEX" in change and engine.dialect.name == "mysql" else ""
        connection.exec_driver_sql(change + on)
        assert differences(connection, tables_of(Attempt)) == [words]


@pytest.mark.only_on("postgresql")
def test_a_sequence_whose_name_the_server_cuts_is_found(new: New) -> None:
    class Elsewhere(DeclarativeBase): ...

    class Long(BaseAttempt, Elsewhere):
        __tablename__ = "attempts_" + 49 * "x"

    engine = new()
    AsyncTask(engine, model=Long).create_schema()
    with engine.begin() as connection:
        assert differences(connection, tables_of(Long)) == []


@pytest.mark.only_on("postgresql")
def test_a_missing_sequence_is_a_difference(new: New) -> None:
    engine = new()
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SEQUENCE sq_async_task_attempts_order")
        missing = ["the sequence sq_async_task_attempts_order is missing"]
        assert differences(connection, tables_of(Attempt)) == missing


def test_columns_and_indexes_that_the_user_added_are_no_difference(new: New) -> None:
    engine = new()
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE async_task_attempts ADD COLUMN shop INTEGER")
        connection.exec_driver_sql("CREATE INDEX shops ON async_task_attempts (shop)")
        assert differences(connection, tables_of(Attempt)) == []


def test_alembic_upgrades_checks_and_downgrades_without_a_warning(
    new: New, tmp_path: pathlib.Path, created: list[str]
) -> None:
    engine = new()
    url = engine.url.render_as_string(hide_password=False)
    alembic = Alembic(tmp_path, url)
    assert alembic("async_task_cli", "install").returncode == 0
    assert alembic("alembic", "upgrade", "head").returncode == 0
    assert described(engine) == created
    checked = alembic("alembic", "check")
    assert (checked.returncode, checked.stdout.strip()) == (0, "No new upgrade operations detected.")
    assert alembic("async_task_cli", "check", "--database-url", url).returncode == 0
    assert alembic("alembic", "downgrade", "base").returncode == 0
    assert described(engine) == []


@pytest.mark.parametrize("since", OLD)
def test_a_revision_from_an_old_version_goes_up_and_down_in_a_tree(
    new: New, tmp_path: pathlib.Path, created: list[str], since: int
) -> None:
    engine = new()
    execute_script(engine, version(since, engine))
    before = described(engine)
    alembic = Alembic(tmp_path, engine.url.render_as_string(hide_password=False))
    alembic("alembic", "revision", "-m", "async-task tables", "--rev-id", "one")
    (first,) = (tmp_path / "migrations" / "versions").glob("*.py")
    first.write_text(f"{first.read_text()}\nasync_task_schema = {since}\nasync_task_tables = ['async_task_attempts']\n")
    assert alembic("alembic", "stamp", "one").returncode == 0
    said = alembic("async_task_cli", "upgrade")
    assert said.returncode == 0, said.stderr
    assert alembic("alembic", "upgrade", "head").returncode == 0
    assert described(engine) == created
    assert "This tree is at version 7" in alembic("async_task_cli", "upgrade").stderr
    assert alembic("alembic", "downgrade", "-1").returncode == 0
    assert besides_version(described(engine)) == besides_version(before)
    assert ("installed_at" in str(described(engine))) == (since == 1)


def besides_version(lines: list[str]) -> list[str]:
    """Without the table of the version, whose dropped column comes back without its values; and without two spellings
    of one type of PostgreSQL's."""
    return [line.replace("character varying 0", "text 0") for line in lines if "async_task_schema" not in line]


class Alembic:
    """A tree in a folder, whose env.py has our metadata; `alembic(module, *words)` runs a program in it."""

    def __init__(self, folder: pathlib.Path, url: str) -> None:
        self.folder = folder
        assert self("alembic", "init", "migrations").returncode == 0
        self._replace("alembic.ini", "sqlalchemy.url = driver://user:pass@localhost/dbname", f"sqlalchemy.url = {url}")
        ours = "from async_task import metadata as target_metadata"
        self._replace("migrations/env.py", "target_metadata = None", ours)
        online = "connection=connection, target_metadata=target_metadata"
        self._replace("migrations/env.py", online, f"{online}, compare_server_default=True")

    def _replace(self, name: str, old: str, new: str) -> None:
        file = self.folder / name
        before = file.read_text()
        assert old in before
        file.write_text(before.replace(old, new.replace("%", "%%")))

    def __call__(self, module: str, *words: str) -> "subprocess.CompletedProcess[str]":
        with contextlib.closing(Program(module, *words, cwd=self.folder, env=os.environ, strict=True)) as begun:
            return begun.completed()


def test_check_schema_and_upgrade_apply_find_old_tables_and_upgrade_them(
    new: New, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    engine = new()
    at = ["--database-url", engine.url.render_as_string(hide_password=False)]
    if engine.dialect.name != "sqlite":
        assert main(["upgrade", "--apply", *at]) == 78
        assert "the database has no table 'async_task_attempts'" in capsys.readouterr().err
    execute_script(engine, version(1, engine))
    assert main(["run-batch", *at]) == 78
    assert "the tables are of version 1, and this library needs 7: `async-task upgrade`" in capsys.readouterr().err
    assert main(["check", *at]) == 1
    assert (
        "NOT  version     1 is old: this library needs 7, and `async-task upgrade` brings it there"
        in capsys.readouterr().out
    )
    collation = {"mysql": "utf8mb4_nopad_bin" if getattr(engine.dialect, "is_mariadb", False) else "utf8mb4_0900_bin"}
    assert main(["install", "--apply", "--dry-run", *at]) == 0
    assert collation.get(engine.dialect.name, "CREATE TABLE") in capsys.readouterr().out
    assert main(["upgrade", "--apply", "--dry-run", *at]) == 0
    assert re.search("DROP INDEX (IF EXISTS )?ix_async_task_attempts_waiting", capsys.readouterr().out)
    assert main(["upgrade", "--apply", *at]) == 0
    assert main(["upgrade", "--apply", *at]) == 0
    assert "Already at version 7" in capsys.readouterr().err
    assert main(["check", *at]) == 0
    assert main(["run-batch", *at]) == 0
    engine.dispose()  # SQLite alters by what a connection has read of the tables
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE async_task_attempts DROP COLUMN call_settings")
    assert main(["upgrade", "--apply", *at]) == 78
    assert "version 7, and async_task_attempts lacks the column call_settings; " in capsys.readouterr().err
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE async_task_schema SET version = 8")
    capsys.readouterr()
    assert main(["check", *at]) == 1
    assert "8 is newer than this library" in capsys.readouterr().out
    for command in (["adopt"], ["upgrade", "--apply"], ["run-batch"]):
        assert main([*command, *at]) == 78
        assert capsys.readouterr().err.endswith(": upgrade the library\n")


def test_the_claim_index_is_used_after_a_migration_too(new: New) -> None:
    engine = new()
    carried_out(engine, body_of(Attempt))
    with engine.begin() as connection:
        Attempt.create_many(connection, [{"target": Client, "method_name": "ping"}] * 500)
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SET enable_seqscan = off")
        statement = lock_due(table_of(Attempt), Shape()).params(a_queue="default", a_priority=0, a_number=1)
        sql = str(statement.compile(engine, compile_kwargs={"literal_binds": True, "render_postcompile": True}))
        word = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
        plan = str(connection.exec_driver_sql(f"{word} {sql}").all())
    assert "ix_async_task_attempts_waiting" in plan


def autogenerated(engine: Engine) -> str:
    """What Alembic's autogenerate writes for our tables; it is carried out."""
    with engine.begin() as connection:
        context = MigrationContext.configure(connection)
        script = produce_migrations(context, metadata)
        assert script.upgrade_ops is not None
        shown = render_python_code(script.upgrade_ops, migration_context=context)
        text_of = f"def upgrade():\n{textwrap.indent(shown, '    ')}"
        names: dict[str, Any] = {"sa": sa, "mysql": mysql, "op": Operations(context)}
        exec(text_of, names)  # noqa: S102 - it is what Alembic has just written
        names["upgrade"]()
    return text_of


def test_tables_that_autogenerate_made_are_adopted(
    new: New, created: list[str], capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    engine = new()
    assert "async_task." not in autogenerated(engine)
    at = ["--database-url", engine.url.render_as_string(hide_password=False)]
    for command in (["run-batch"], ["install", "--apply"]):
        assert main([*command, *at]) == 78
        assert "there without a version" in (said := capsys.readouterr().err)
        assert "`async-task adopt` takes them over" in said
    assert main(["check", *at]) == 1
    assert "NOT  version     the tables are there without a version: `async-task adopt`" in capsys.readouterr().out
    assert main(["upgrade", "--apply", *at]) == 78
    assert "`async-task adopt` takes them over" in capsys.readouterr().err
    assert main(["adopt", "--dry-run", *at]) == 0
    assert "INSERT INTO async_task_schema (version) VALUES (7)" in capsys.readouterr().out
    assert main(["run-batch", *at]) == 78
    for words in ("are adopted, as version 7", "Already at version 7"):
        assert main(["adopt", *at]) == 0
        said = capsys.readouterr()
        assert (said.out, words in said.err) == ("", True)
    assert main(["check", *at]) == 0
    with Session(engine) as session, session.begin():
        for _ in range(2):
            Attempt.options(session=session, order_key="one").call(Client.ping)
    with contextlib.closing(AsyncTask(engine)) as app:
        assert app.run_batch().succeeded == 2
    assert autogenerated(engine).count("op.") == 0
    assert described(engine) == created


def test_tables_that_lack_something_are_not_adopted(
    new: New, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    engine = new()
    at = ["--database-url", engine.url.render_as_string(hide_password=False)]
    if engine.dialect.name != "sqlite":
        assert main(["adopt", *at]) == 78
        assert "no tables of async-task: `async-task install` creates them" in capsys.readouterr().err
    autogenerated(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE async_task_job_events DROP COLUMN actor")
        connection.exec_driver_sql("DROP TABLE async_task_schema")
    assert main(["adopt", *at]) == 78
    assert capsys.readouterr().err.endswith("not adopted: async_task_job_events lacks the column actor\n")
    with engine.begin() as connection:
        column = metadata.tables["async_task_job_events"].c.actor.type.compile(engine.dialect)
        connection.exec_driver_sql(f"ALTER TABLE async_task_job_events ADD COLUMN actor {column}")
    assert main(["adopt", *at]) == 0
    assert main(["check", *at]) == 0


def test_our_types_can_be_pickled_and_copied() -> None:
    for column in (Attempt.__table__.c[name] for name in ("method_args", "queue", "due_at", "last_error", "id")):
        pickled = pickle.loads(pickle.dumps(column.type))  # noqa: S301 - our own
        for made in (pickled, copy.deepcopy(column.type)):
            assert (type(made), repr(made)) == (type(column.type), repr(column.type))
