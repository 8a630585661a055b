"""`async-task install --asyncable`: what the table of a model that is its own job lacks, as a revision."""

import contextlib
import datetime as dt
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, DateTime, Engine, Integer, MetaData, Table, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import databases
from async_task import Asyncable, Processing, asyncable_schema
from async_task_cli.migrations.body import completing
from async_task_cli.migrations.execution import carry_out
from conftest import AVAILABLE
from databases import Database
from said import Run
from schemas import described
from trees import planter, revisions, runner

New = Callable[[], Engine]
MODEL = """
from async_task import Asyncable, Processing
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase): ...

class Claim(Asyncable, Base):
    __tablename__ = "claims"
    __asyncable_columns__ = {"submitted_at": "establishment_submitted_at"}
    id: Mapped[int] = mapped_column(primary_key=True)
    def process(self): ...

class Plain(Base):
    __tablename__ = "plain"
    id: Mapped[int] = mapped_column(primary_key=True)
"""


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


@pytest.mark.slow
@pytest.mark.usefixtures("registered")
def test_the_revision_makes_of_an_old_table_what_create_all_makes(new: New) -> None:
    class Base(DeclarativeBase): ...

    class Claim(Asyncable, Base):
        __tablename__ = "claims"
        __asyncable_columns__: ClassVar = {"submitted_at": "establishment_submitted_at"}
        processing = Processing(name="test.claim")
        id: Mapped[int] = mapped_column(primary_key=True)
        establishment_submitted_at: Mapped[dt.datetime | None] = mapped_column(DateTime)

    old, upgraded, fresh = MetaData(), new(), new()
    Table("claims", old, Column("id", Integer, primary_key=True), Column("establishment_submitted_at", DateTime))
    old.create_all(upgraded)
    before = described(upgraded)
    needed = asyncable_schema(Claim)
    body = completing(needed.table, [one for one in needed.columns if "establish" not in one.name], [needed.index])
    assert "establishment_submitted_at" not in body.downgrade
    with upgraded.begin() as connection:
        carry_out(body, connection)
    Base.metadata.create_all(fresh)
    assert described(upgraded) == described(fresh)
    with upgraded.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        carry_out(undoing(body), connection)
    assert described(upgraded) == before


def undoing(body: Any) -> Any:
    from dataclasses import replace

    return replace(body, upgrade=body.downgrade, downgrade="pass\n")


@pytest.mark.usefixtures("alone", "registered")
def test_install_writes_what_the_database_lacks_once(
    say: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrations = planter(tmp_path, monkeypatch)()
    (tmp_path / "claims_of_install.py").write_text(MODEL)
    database = ("--database-url", "sqlite:///shop.sqlite")
    install = ("install", "--asyncable", "claims_of_install:Claim", *database)
    engine = create_engine(database[1])
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE other (id INTEGER PRIMARY KEY)")
    missing = say(*install)
    assert (missing.code, missing.out) == (78, "")
    assert "the database has no table claims: let autogenerate make it" in missing.err
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE claims (id INTEGER PRIMARY KEY, error TEXT)")
    dry = say(*install, "--dry-run")
    assert 'op.add_column("claims"' in dry.out.replace("'", '"')
    assert revisions(migrations) == []
    written = say(*install)
    (path,) = revisions(migrations)
    assert (written.code, written.out) == (0, f"{path.relative_to(tmp_path)}\n")
    assert "Revision " in say(*install).err
    runner(tmp_path)("alembic", "upgrade", "head")  # not in this process, whose loggers its env.py would disable
    assert say(*install).err == "claims has all that Claim needs; no revision was written.\n"
    assert revisions(migrations) == [path]
    engine.dispose()


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["claims_of_refusals:Plain"], 2, "claims_of_refusals:Plain is no mapped class with the mixin Asyncable"),
        (["claims_of_refusals:Clain"], 78, "claims_of_refusals has no 'Clain'"),
        (["claims"], 2, "--asyncable is written module:name, like shop.models:Review, not 'claims'"),
        (["claims_of_refusals:Claim", "--table", "x"], 2, "leave the other options out"),
    ],
)
@pytest.mark.usefixtures("alone", "registered")
def test_install_refuses_what_is_no_model_of_its_own_job(
    say: Run, tmp_path: pathlib.Path, words: list[str], code: int, part: str
) -> None:
    (tmp_path / "claims_of_refusals.py").write_text(MODEL)
    said = say("install", "--asyncable", *words, "--database-url", "sqlite:///shop.sqlite")
    assert (said.code, said.out) == (code, "")
    assert part in said.err
