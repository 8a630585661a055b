"""`async-task install` in Alembic trees of every kind, as their owners have them."""

import contextlib
import io
import os
import pathlib
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable

import pytest
from alembic import command
from alembic.config import Config

from elsewhere import Program

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: pathlib.Path) -> Run:
    """`run("alembic", ...)` or `run("install", ...)`: a program in the project's folder, warnings are errors."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ASYNC_TASK", "ALEMBIC"))}

    def run(program: str, *words: str, code: int = 0, **variables: str) -> "subprocess.CompletedProcess[str]":
        module = ["alembic"] if program == "alembic" else ["async_task_cli", program]
        begun = Program(*module, *words, cwd=tmp_path, env=environment | variables, strict=True)
        with contextlib.closing(begun):
            ended = begun.completed()
        assert ended.returncode == code, ended.stderr
        return ended

    return run


@pytest.fixture
def tree(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pathlib.Path]:
    """`tree("async")`: a tree of that template on an SQLite file, whose env.py shows our tables."""

    def tree(template: str = "generic", url: str = "sqlite:///shop.sqlite") -> pathlib.Path:
        monkeypatch.chdir(tmp_path)
        command.init(Config("alembic.ini", toml_file="pyproject.toml", stdout=io.StringIO()), "migrations", template)
        replace(tmp_path / "alembic.ini", "driver://user:pass@localhost/dbname", url)
        return tmp_path / "migrations"

    return tree


def replace(file: pathlib.Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def show_ours(migrations: pathlib.Path) -> None:
    ours = "from async_task import metadata as target_metadata"
    replace(migrations / "env.py", "target_metadata = None", ours)


def revisions(migrations: pathlib.Path) -> list[pathlib.Path]:
    return sorted(one for one in migrations.rglob("*.py") if one.name != "env.py" and "__pycache__" not in one.parts)


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(one.relative_to(folder)): one.read_bytes()
        for one in folder.rglob("*")
        if one.is_file() and "__pycache__" not in one.parts
    }


DATABASE = ("--database-url", "sqlite:///shop.sqlite")


def works(run: Run, migrations: pathlib.Path, head: str = "head") -> None:
    """Upgrades, is checked by both, is found again, and goes."""
    show_ours(migrations)
    run("alembic", "upgrade", head)
    assert run("alembic", "check").stdout.strip() == "No new upgrade operations detected."
    assert "All fits." in run("check", *DATABASE).stderr
    before = files(migrations)
    assert "lready installed in revision" in run("install").stderr
    assert files(migrations) == before
    run("alembic", "downgrade", "base")
    assert "none is written down" in run("check", *DATABASE, code=1).stdout


@pytest.mark.parametrize(
    ("template", "url"),
    [
        ("generic", "sqlite:///shop.sqlite"),
        ("async", "sqlite+aiosqlite:///shop.sqlite"),
        ("pyproject", "sqlite:///shop.sqlite"),
        ("pyproject_async", "sqlite+aiosqlite:///shop.sqlite"),
    ],
)
def test_a_tree_without_a_revision_of_each_template(
    template: str, url: str, tree: Callable[..., pathlib.Path], run: Run
) -> None:
    migrations = tree(template, url)
    said = run("install")
    (path,) = revisions(migrations)
    assert said.stdout == f"{path.relative_to(migrations.parent)}\n"
    assert "target_metadata = [async_task_metadata]" in said.stderr
    works(run, migrations)


def test_behind_the_one_head(tree: Callable[..., pathlib.Path], run: Run) -> None:
    tree()
    run("alembic", "revision", "-m", "customers", "--rev-id", "aaa")
    run("install")
    assert "aaa -> " in run("alembic", "history").stdout


@pytest.fixture
def forked(tree: Callable[..., pathlib.Path], run: Run) -> pathlib.Path:
    migrations = tree()
    run("alembic", "revision", "-m", "customers", "--rev-id", "aaa")
    run("alembic", "revision", "-m", "orders", "--rev-id", "bbb", "--head", "base", "--splice")
    return migrations


def test_several_heads_stop_it_and_are_named(forked: pathlib.Path, run: Run) -> None:
    before = files(forked)
    said = run("install", code=2)
    assert said.stdout == ""
    for word in ("aaa", "bbb", "--head", "--branch"):
        assert word in said.stderr
    assert said.stderr.count("\n") == 1
    assert files(forked) == before


def test_behind_one_of_several_heads(forked: pathlib.Path, run: Run) -> None:
    assert "Then `alembic upgrade heads`" in run("install", "--head", "bbb").stderr
    assert "bbb -> " in run("alembic", "history").stdout


def test_as_a_branch_of_its_own(forked: pathlib.Path, run: Run) -> None:
    said = run("install", "--branch")
    assert "`alembic upgrade heads`" in said.stderr
    assert "(async_task)" in run("alembic", "heads").stdout
    works(run, forked, head="heads")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--head", "ccc"], "Can't locate revision identified by 'ccc'"),
        (["--head", "aaa", "--branch"], "leave --head out, or --branch"),
        (["--head", "aaa", "--version-path", "elsewhere"], "keeps its revisions in"),
        (["--config", "no.ini"], "there is no Alembic configuration no.ini"),
    ],
)
def test_a_wrong_place_is_one_sentence_and_nothing_is_written(
    words: list[str], part: str, forked: pathlib.Path, run: Run
) -> None:
    before = files(forked)
    said = run("install", *words, code=78 if "ccc" in words else 2)
    assert part in said.stderr
    assert said.stderr.count("\n") == 1
    assert files(forked) == before


def test_several_folders_of_versions(tree: Callable[..., pathlib.Path], run: Run) -> None:
    migrations = tree()
    ini = migrations.parent / "alembic.ini"
    replace(ini, "[alembic]\n", "[alembic]\nversion_locations = %(here)s/one:%(here)s/two\npath_separator = :\n")
    text = ini.read_text()
    ini.write_text(text.replace("path_separator = os\n", ""))
    for name in ("one", "two"):
        (migrations.parent / name).mkdir()
    said = run("install", code=2)
    assert "--version-path" in said.stderr
    run("install", "--version-path", "two")
    assert [one.parent.name for one in revisions(migrations.parent)] == ["two"]


def test_beside_the_head_where_there_are_several_folders(tree: Callable[..., pathlib.Path], run: Run) -> None:
    migrations = tree()
    ini = migrations.parent / "alembic.ini"
    replace(ini, "[alembic]\n", "[alembic]\nversion_locations = %(here)s/one:%(here)s/two\npath_separator = :\n")
    ini.write_text(ini.read_text().replace("path_separator = os\n", ""))
    run("alembic", "revision", "-m", "customers", "--version-path", str(migrations.parent / "two"))
    run("install")
    assert [one.parent.name for one in revisions(migrations.parent)] == ["two", "two"]


def test_under_its_own_template_naming_and_folders_by_date(tree: Callable[..., pathlib.Path], run: Run) -> None:
    migrations = tree()
    ini = migrations.parent / "alembic.ini"
    replace(ini, "[alembic]\n", "[alembic]\nrecursive_version_locations = true\ntimezone = UTC\n")
    replace(ini, "[alembic]\n", "[alembic]\nfile_template = %%(year)d/rev_%%(rev)s__%%(slug)s\n")
    replace(migrations / "script.py.mako", '"""${message}', '# Owned by the data team.\n"""${message}')
    run("install")
    (path,) = revisions(migrations)
    assert path.parent.name.isdigit()
    assert path.name.startswith("rev_")
    assert path.name.endswith("__async_task_tables.py")
    assert path.read_text().startswith("# Owned by the data team.\n")
    works(run, migrations)


def test_a_tree_of_several_databases(tree: Callable[..., pathlib.Path], run: Run, tmp_path: pathlib.Path) -> None:
    run("alembic", "init", "-t", "multidb", "migrations")
    ini = tmp_path / "alembic.ini"
    for number in ("", "2"):
        replace(ini, f"driver://user:pass@localhost/dbname{number}\n", f"sqlite:///shop{number}.sqlite\n")
    before = files(tmp_path)
    said = run("install", code=78)
    assert "say which with --engine NAME" in said.stderr
    assert files(tmp_path) == before
    run("install", "--engine", "engine2")
    run("alembic", "upgrade", "head")
    assert "All fits." in run("check", "--database-url", "sqlite:///shop2.sqlite").stderr
    run("alembic", "downgrade", "base")


def test_a_revision_that_somebody_renamed_is_found_again(tree: Callable[..., pathlib.Path], run: Run) -> None:
    migrations = tree()
    run("install")
    (path,) = revisions(migrations)
    path.rename(path.with_name("outbox.py"))
    assert "lready installed" in run("install").stderr


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("${upgrades if upgrades else", "${nonsense(", "script.py.mako cannot be rendered: Expected"),
        ("${message}", "${nonsense}", "Alembic: Template rendering failed"),
        ("import sqlalchemy as sa", "import sqlalchemy", "lacks the usual"),
        ("def upgrade()", "def upgrade(", "script.py.mako does not render to Python"),
        (
            "${upgrades if upgrades else",
            "${'' if upgrades else",
            "has no place for what a revision does",
        ),
        ("${imports if imports", "${'' if imports", "has no place for what a revision does"),
    ],
)
def test_a_template_that_cannot_do_it_leaves_nothing_behind(
    old: str, new: str, part: str, tree: Callable[..., pathlib.Path], run: Run
) -> None:
    migrations = tree()
    replace(migrations / "script.py.mako", old, new)
    before = files(migrations.parent)
    said = run("install", code=78)
    assert part in said.stderr
    assert said.stderr.count("\n") == 1
    assert files(migrations.parent) == before
    assert [one.name for one in migrations.iterdir() if one.name.startswith(".")] == []


def test_a_broken_revision_is_named(tree: Callable[..., pathlib.Path], run: Run) -> None:
    migrations = tree()
    (migrations / "versions" / "broken.py").write_text("revision = 'x\n")
    said = run("install", code=78)
    assert "broken.py, line 1, is no Python" in said.stderr
    assert said.stderr.count("\n") == 1


def test_without_a_tree_it_says_what_there_is_instead(run: Run, tmp_path: pathlib.Path) -> None:
    said = run("install", code=78)
    for word in ("alembic init", "--apply", "async-task sql"):
        assert word in said.stderr
    assert files(tmp_path) == {}


def test_a_dry_run_prints_the_revision_and_writes_nothing(tree: Callable[..., pathlib.Path], run: Run) -> None:
    migrations = tree()
    before = files(migrations.parent)
    said = run("install", "--dry-run", "--model", "shop/attempt.py")
    assert "op.create_table('async_task_attempts'," in said.stdout
    compile(said.stdout, "revision", "exec")
    assert "shop/attempt.py: would be written" in said.stderr
    assert files(migrations.parent) == before


def test_a_model_of_ones_own_and_its_jobs(tree: Callable[..., pathlib.Path], run: Run) -> None:
    migrations = tree()
    project = migrations.parent
    said = run("install", "--model", "shop/attempt.py", "--jobs", "shop/jobs.py", "--table", "shop_calls")
    assert "target_metadata = Attempt.metadata" in said.stderr
    (revision,) = revisions(migrations)
    assert "op.create_table('shop_calls'," in revision.read_text()
    replace(
        migrations / "env.py",
        "target_metadata = None",
        "from shop.attempt import Attempt\ntarget_metadata = Attempt.metadata",
    )
    (project / "app.py").write_text(
        "from async_task import AsyncTask\nfrom shop.attempt import Attempt\n"
        "from shop.jobs import AttemptBatchJob, AttemptJob\n"
        "app = AsyncTask('sqlite:///shop.sqlite', model=Attempt, attempt_job=AttemptJob, batch_job=AttemptBatchJob)\n"
    )
    run("alembic", "upgrade", "head")
    assert run("alembic", "check").stdout.strip() == "No new upgrade operations detected."
    assert "All fits." in run("check", "--app", "app:app").stderr
    run("run-batch", "--app", "app:app")
    model = (project / "shop" / "attempt.py").read_bytes()
    again = run("install", "--model", "shop/attempt.py")
    assert "shop/attempt.py was there, and stays as it is." in again.stderr
    assert (project / "shop" / "attempt.py").read_bytes() == model


def test_the_model_of_the_application_is_the_one_that_is_installed(tree: Callable[..., pathlib.Path], run: Run) -> None:
    migrations = tree()
    (migrations.parent / "shop.py").write_text(
        "from sqlalchemy.orm import DeclarativeBase\nfrom async_task import AsyncTask, BaseAttempt\n"
        "class Base(DeclarativeBase): ...\n"
        "class Call(BaseAttempt, Base):\n    __tablename__ = 'calls'\n"
        "app = AsyncTask('sqlite:///shop.sqlite', model=Call)\n"
    )
    (migrations.parent / "pyproject.toml").write_text('[tool.async-task]\napp = "shop:app"\n')
    said = run("install")
    assert "    from shop import Call\n    target_metadata = Call.metadata\n" in said.stderr
    run("alembic", "upgrade", "head")
    shown = run("check", code=1)
    assert "lacks calls, async_task_job_events" in shown.stdout
    replace(migrations / "env.py", "target_metadata = None", "from shop import Call\ntarget_metadata = Call.metadata")
    assert "All fits." in run("check").stderr


def test_check_says_of_an_env_that_it_could_not_be_run(tree: Callable[..., pathlib.Path], run: Run) -> None:
    migrations = tree()
    run("install")
    run("alembic", "upgrade", "head")
    replace(migrations / "env.py", "target_metadata = None", "import os\ntarget_metadata = os.environ['METADATA']")
    said = run("check", *DATABASE, code=1)
    assert "env.py could not be run: KeyError: 'METADATA'" in said.stdout


def test_check_finds_what_waits_for_a_target_or_key_that_is_not_known(run: Run, tmp_path: pathlib.Path) -> None:
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


def test_check_finds_calls_under_a_missing_key_and_what_lies_in_plain_text(run: Run, tmp_path: pathlib.Path) -> None:
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
    assert "NOT  keys        calls wait that are parked: they are under the key 'k1' of 'aes-gcm'" in said
    assert "which this process does not have: it has k2" in said
    assert "plain text" not in said
    write("encryptor='null'")
    advice = ": `async-task rotate-keys --to-policy`"
    assert f"ok   plain text  1 attempt in plain text whose target names an encryptor{advice}" in check("OLD", False)
    said = check("OLD", True, code=1)
    assert "NOT  plain text  1 attempt in plain text whose target names an encryptor, 1 of them waiting and" in said


def test_the_revision_of_this_repository_is_the_one_that_install_writes(run: Run, tmp_path: pathlib.Path) -> None:
    root = pathlib.Path(__file__).parents[2]
    shutil.copytree(root / "alembic", tmp_path / "alembic", ignore=shutil.ignore_patterns("versions", "__pycache__"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    run("install")
    (made,), (kept,) = revisions(tmp_path / "alembic"), revisions(root / "alembic")
    assert anonymous(made) == anonymous(kept)


def anonymous(revision: pathlib.Path) -> str:
    """Its text, without the id and the date that each has for itself."""
    identifier = revision.stem.partition("_")[0]
    return re.sub(r"of \d{4}-\d\d-\d\d [\d:.]+\.", "", revision.read_text().replace(identifier, "ID"))


def test_alembic_s_own_variable_names_the_configuration(tree: Callable[..., pathlib.Path], run: Run) -> None:
    migrations = tree()
    (migrations.parent / "alembic.ini").rename(migrations.parent / "other.ini")
    run("install", code=78)
    run("install", ALEMBIC_CONFIG="other.ini")
    assert len(revisions(migrations)) == 1


def test_a_table_or_schema_by_name_asks_for_a_model_of_that_name(tree: Callable[..., pathlib.Path], run: Run) -> None:
    migrations = tree()
    said = run("install", "--table", "letters", "--schema", "post")
    assert "op.create_table('letters'," in revisions(migrations)[0].read_text()
    assert "__tablename__ = 'letters'" in said.stderr
    assert "'schema': 'post'" in said.stderr
    assert "async_task_cli" not in said.stderr


def test_what_is_in_the_tree_and_not_in_the_database_is_told(tree: Callable[..., pathlib.Path], run: Run) -> None:
    tree()
    run("install")
    run("install", "--apply", *DATABASE)
    with contextlib.closing(sqlite3.connect("shop.sqlite")) as connection:
        connection.execute("UPDATE async_task_schema SET version = 1")
        connection.commit()
    said = run("upgrade").stderr
    assert "`alembic upgrade head` brings the database there" in said


def test_a_base_that_is_not_there_is_refused_and_nothing_is_written(
    tree: Callable[..., pathlib.Path], run: Run
) -> None:
    migrations = tree()
    before = files(migrations.parent)
    said = run("install", "--model", "shop/attempt.py", "--base", "nope:Base", code=2)
    assert "--base: there is no module nope" in said.stderr
    assert files(migrations.parent) == before


def test_a_second_table_of_attempts_gets_a_revision_of_its_own(tree: Callable[..., pathlib.Path], run: Run) -> None:
    migrations = tree()
    run("install")
    run("install", "--table", "letters")
    assert "lready installed" in run("install", "--table", "letters").stderr
    second = next(one for one in revisions(migrations) if "'letters'" in one.read_text())
    assert "async_task_job_events" not in second.read_text()
    run("alembic", "upgrade", "head")
    run("alembic", "downgrade", "-1")
    assert "NOT  metadata" in run("check", *DATABASE, code=1).stdout


def test_check_neither_opens_files_of_a_tree_of_several_databases_nor_ends_with_its_env(
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


def test_the_lines_for_env_take_up_what_it_shows_already(tree: Callable[..., pathlib.Path], run: Run) -> None:
    migrations = tree()
    assert "target_metadata = [async_task_metadata]  # and that of your own tables" in run("install").stderr
    for one in revisions(migrations):
        one.unlink()
    replace(migrations / "env.py", "target_metadata = None", "import models\ntarget_metadata = models.Base.metadata")
    assert "    target_metadata = [models.Base.metadata, async_task_metadata]\n" in run("install").stderr
