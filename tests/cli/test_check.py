"""`async-task check`."""

import contextlib
import os
import pathlib
from collections.abc import Callable

import pytest

from elsewhere import Program
from trees import DATABASE, Run, planter, replace, runner


@pytest.fixture
def run(tmp_path: pathlib.Path) -> Run:
    return runner(tmp_path)


@pytest.fixture
def tree(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pathlib.Path]:
    return planter(tmp_path, monkeypatch)


SAFE = """
import sys
from sqlalchemy.orm import Session
from sqlalchemy import create_engine
from async_task import AesGcmEncryptor, AsyncTask, Attempt, Key, target
OLD, NEW = (Key(id, "aes-gcm", id.encode() * 16) for id in ("k1", "k2"))
app = AsyncTask("sqlite:///shop.sqlite", encryptors=[AesGcmEncryptor([KEYS])])
@target("safe.call", encryptor="aes-gcm", only_encrypted=STRICT)
def call() -> None: ...
def write(**options):
    app.create_schema()
    engine = create_engine("sqlite:///shop.sqlite")
    with Session(engine) as session, session.begin():
        Attempt.options(session=session, **options).call(call)
    engine.dispose()
"""


MODELS = """
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from async_task import Asyncable, AsyncTask, Pollable
class Base(DeclarativeBase): ...
class Review(Asyncable, Base):
    __tablename__ = "reviews"
    id: Mapped[int] = mapped_column(primary_key=True)
    def process(self) -> None: ...
class Export(Pollable, Base):
    __tablename__ = "exports"
    id: Mapped[int] = mapped_column(primary_key=True)
app = AsyncTask("sqlite:///shop.sqlite")
app.create_schema()
engine = create_engine("sqlite:///shop.sqlite")
lacking, whole = MetaData(), Review.__table__
Table("reviews", lacking, *(Column(c.name, c.type, primary_key=c.primary_key) for c in whole.c if c.name != "error"))
lacking.create_all(engine)
engine.dispose()
"""
MENDED = """
import models
from sqlalchemy import create_engine, text
engine = create_engine("sqlite:///shop.sqlite")
with engine.begin() as connection:
    connection.execute(text("ALTER TABLE reviews ADD error TEXT"))
    connection.execute(text("CREATE INDEX mine ON reviews (processed_at, canceled_at, last_submitted_at, id)"))
models.Base.metadata.tables["exports"].create(engine)
engine.dispose()
"""


@pytest.mark.long
def test_check_reports_an_env_that_cannot_be_run(tree: Callable[..., pathlib.Path], run: Run) -> None:
    migrations = tree()
    run("install")
    run("alembic", "upgrade", "head")
    replace(migrations / "env.py", "target_metadata = None", "import os\ntarget_metadata = os.environ['METADATA']")
    said = run("check", *DATABASE, code=1)
    assert "env.py could not be run: KeyError: 'METADATA'" in said.stdout


def test_check_finds_calls_that_wait_for_an_unknown_target_or_key(run: Run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "lonely.py").write_text(
        "from sqlalchemy.orm import Session\nfrom async_task import AsyncTask, Attempt, target\n"
        "@target('lonely.call')\ndef call() -> None: ...\n"
        "app = AsyncTask('sqlite:///shop.sqlite')\napp.create_schema()\n"
        "from sqlalchemy import create_engine\n"
        "engine = create_engine('sqlite:///shop.sqlite')\n"
        "with Session(engine) as session, session.begin():\n    Attempt.options(session=session).call(call)\n"
        "engine.dispose()\n"
    )
    assert "All fits." in run("check", "--app", "lonely:app").stderr
    said = run("check", *DATABASE, "--json", code=1)
    assert '"about": "targets", "ok": false' in said.stdout
    assert "lonely.call" in said.stdout


def test_check_finds_targets_that_name_an_encryptor_that_nobody_has(run: Run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "misspelled.py").write_text(
        "from async_task import AsyncTask, target\n"
        "@target('misspelled.call', encryptor='aes-gmc')\ndef call(card: str) -> None: ...\n"
        "app = AsyncTask('sqlite:///shop.sqlite')\napp.create_schema()\n"
    )
    said = run("check", "--app", "misspelled:app", code=1).stdout
    assert "NOT  encryptors  calls of misspelled.call cannot be written: no encryptor is named 'aes-gmc'" in said


def test_check_finds_what_the_tables_of_models_lack(run: Run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    said = run("check", "--app", "models:app", code=1).stdout
    assert "ok   targets     all known\n" in said
    assert [line.partition("models      ")[2] for line in said.splitlines() if "  models  " in line] == [
        "Review: reviews lacks the column error",
        "Review: reviews lacks the index ix_reviews_asyncable, on processed_at, canceled_at, last_submitted_at",
        "Export: the table exports is missing",
    ]
    (tmp_path / "mend.py").write_text(MENDED)
    with contextlib.closing(Program("mend", cwd=tmp_path, env=os.environ)) as begun:
        assert begun.wait() == 0
    assert "ok   models      their tables have all columns and indexes\n" in run("check", "--app", "models:app").stdout


def test_check_finds_calls_under_a_missing_key_and_in_plain_text(run: Run, tmp_path: pathlib.Path) -> None:
    def check(keys: str, strict: bool, code: int = 0) -> str:
        (tmp_path / "safe.py").write_text(SAFE.replace("KEYS", keys).replace("STRICT", str(strict)))
        return run("check", "--app", "safe:app", code=code).stdout

    def write(options: str = "") -> None:
        (tmp_path / "writing.py").write_text(f"import safe\nsafe.write({options})\n")
        with contextlib.closing(Program("writing", cwd=tmp_path, env=os.environ)) as begun:
            assert begun.wait() == 0

    (tmp_path / "safe.py").write_text(SAFE.replace("KEYS", "OLD").replace("STRICT", "False"))
    write()
    assert "ok   keys        all known" in check("OLD", False)
    said = check("NEW", False, code=1)
    assert "NOT  keys        calls wait that this process cannot make: they are under the key 'k1' of 'aes-gcm'" in said
    assert "which this process does not have: it has k2" in said
    assert "plain text" not in said
    write("encryptor='null'")
    advice = ": `async-task rotate-keys --to-policy`"
    assert f"ok   plain text  1 attempt in plain text whose target names an encryptor{advice}" in check("OLD", False)
    said = check("OLD", True, code=1)
    assert "NOT  plain text  1 attempt in plain text whose target names an encryptor, 1 of them waiting and" in said


def test_check_runs_no_env_of_a_tree_of_several_databases(
    tree: Callable[..., pathlib.Path], run: Run, tmp_path: pathlib.Path
) -> None:
    migrations = tree("multidb")  # which replaces both URLs
    (tmp_path / "engine1.sql").write_text("-- precious\n")
    run("install", "--engine", "engine1")
    run("install", "--apply", *DATABASE)
    assert "ok   metadata    a tree of several databases" in run("check", *DATABASE).stdout
    assert (tmp_path / "engine1.sql").read_text() == "-- precious\n"
    (tmp_path / "alembic.ini").write_text((tmp_path / "alembic.ini").read_text().replace("databases = ", "bases = "))
    (migrations / "env.py").write_text("import sys\nsys.exit('not offline')\n")
    assert "env.py could not be run: SystemExit: not offline" in run("check", *DATABASE, code=1).stdout
