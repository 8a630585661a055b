"""`async-task install` in Alembic trees of every kind."""

import contextlib
import pathlib
import re
import shutil
import sqlite3
from collections.abc import Callable

import pytest

from said import Said
from trees import DATABASE, Run, files, planter, replace, revisions, runner, show_ours


@pytest.fixture
def run(tmp_path: pathlib.Path) -> Run:
    return runner(tmp_path)


@pytest.fixture
def tree(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pathlib.Path]:
    return planter(tmp_path, monkeypatch)


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
    assert "the database has none" in run("check", *DATABASE, code=1).stdout


@pytest.mark.long
@pytest.mark.parametrize(
    ("template", "url"),
    [
        ("generic", "sqlite:///shop.sqlite"),
        ("async", "sqlite+aiosqlite:///shop.sqlite"),
        ("pyproject", "sqlite:///shop.sqlite"),
        ("pyproject_async", "sqlite+aiosqlite:///shop.sqlite"),
    ],
)
def test_install_writes_a_revision_into_a_tree_of_each_template(
    template: str, url: str, tree: Callable[..., pathlib.Path], run: Run
) -> None:
    migrations = tree(template, url)
    said = run("install")
    (path,) = revisions(migrations)
    assert said.stdout == f"{path.relative_to(migrations.parent)}\n"
    assert "target_metadata = [async_task_metadata]" in said.stderr
    works(run, migrations)


def test_a_revision_follows_the_only_head(tree: Callable[..., pathlib.Path], run: Run) -> None:
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


def test_several_heads_are_an_error_that_names_them(forked: pathlib.Path, run: Run) -> None:
    before = files(forked)
    said = run("install", code=2)
    assert said.stdout == ""
    for word in ("aaa", "bbb", "--head", "--branch"):
        assert word in said.stderr
    assert said.stderr.count("\n") == 1
    assert files(forked) == before


def test_a_revision_follows_a_named_one_of_several_heads(forked: pathlib.Path, run: Run) -> None:
    assert "Then `alembic upgrade heads`" in run("install", "--head", "bbb").stderr
    assert "bbb -> " in run("alembic", "history").stdout


def test_a_revision_can_be_a_branch_of_its_own(forked: pathlib.Path, run: Run) -> None:
    said = run("install", "--branch")
    assert "`alembic upgrade heads`" in said.stderr
    assert "(async_task)" in run("alembic", "heads").stdout
    works(run, forked, head="heads")


def test_an_upgrade_follows_the_head_that_makes_the_tables(forked: pathlib.Path, run: Run) -> None:
    run("install", "--head", "bbb")
    (made,) = [one for one in revisions(forked) if "async_task_schema = 7" in one.read_text()]
    replace(made, "async_task_schema = 7", "async_task_schema = 6")
    before = files(forked)
    assert "--branch begins at the base, where revision " in run("upgrade", "--branch", code=2).stderr
    assert "--head: aaa does not have revision " in run("upgrade", "--head", "aaa", code=2).stderr
    assert files(forked) == before
    assert "`alembic upgrade heads`" in run("upgrade").stderr
    assert f"{made.name.partition('_')[0]} -> " in run("alembic", "history").stdout


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--head", "ccc"], "Can't locate revision identified by 'ccc'"),
        (["--head", "aaa", "--branch"], "leave --head out, or --branch"),
        (["--head", "aaa", "--version-path", "elsewhere"], "keeps its revisions in"),
        (["--config", "no.ini"], "there is no Alembic configuration no.ini"),
    ],
)
def test_an_invalid_place_is_one_sentence_and_nothing_is_written(
    words: list[str], part: str, forked: pathlib.Path, run: Run
) -> None:
    before = files(forked)
    said = run("install", *words, code=78 if "ccc" in words else 2)
    assert part in said.stderr
    assert said.stderr.count("\n") == 1
    assert files(forked) == before


def test_a_tree_may_have_several_folders_of_versions(tree: Callable[..., pathlib.Path], run: Run) -> None:
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


@pytest.mark.long
def test_of_several_folders_the_one_of_the_head_is_taken(tree: Callable[..., pathlib.Path], run: Run) -> None:
    migrations = tree()
    ini = migrations.parent / "alembic.ini"
    replace(ini, "[alembic]\n", "[alembic]\nversion_locations = %(here)s/one:%(here)s/two\npath_separator = :\n")
    ini.write_text(ini.read_text().replace("path_separator = os\n", ""))
    run("alembic", "revision", "-m", "customers", "--version-path", str(migrations.parent / "two"))
    run("install")
    assert [one.parent.name for one in revisions(migrations.parent)] == ["two", "two"]


def test_a_revision_uses_the_trees_template_names_and_folders_by_date(
    tree: Callable[..., pathlib.Path], run: Run
) -> None:
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


def test_a_tree_may_be_for_several_databases(
    tree: Callable[..., pathlib.Path], run: Run, tmp_path: pathlib.Path
) -> None:
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


def test_a_renamed_revision_is_found_again(tree: Callable[..., pathlib.Path], run: Run) -> None:
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
def test_an_unusable_template_leaves_nothing_behind(
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


def test_a_revision_in_another_encoding_is_read(tree: Callable[..., pathlib.Path], run: Run) -> None:
    text = "# -*- coding: latin-1 -*-\n# Stra\N{LATIN SMALL LETTER SHARP S}e\nrevision, down_revision = 'x', None\n"
    (tree() / "versions" / "x_orders.py").write_bytes(text.encode("latin-1"))
    run("install")


def test_a_broken_revision_is_named(tree: Callable[..., pathlib.Path], run: Run) -> None:
    migrations = tree()
    (migrations / "versions" / "broken.py").write_text("revision = 'x\n")
    said = run("install", code=78)
    assert "broken.py, line 1, is no Python" in said.stderr
    assert said.stderr.count("\n") == 1


def test_without_a_tree_the_error_names_the_alternatives(run: Run, tmp_path: pathlib.Path) -> None:
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


def test_install_writes_a_model_and_its_jobs(tree: Callable[..., pathlib.Path], run: Run) -> None:
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
    assert "shop/attempt.py existed, and stays as it is." in again.stderr
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


def test_install_after_autogenerate_writes_no_second_revision_and_says_what_to_do(
    tree: Callable[..., pathlib.Path], run: Run
) -> None:
    migrations = tree()
    show_ours(migrations)
    run("alembic", "revision", "--autogenerate", "-m", "orders")
    (made,) = revisions(migrations)
    said = run("install", code=78)
    assert f"{made.relative_to(migrations.parent)} names these tables already" in said.stderr
    assert "`async-task adopt`" in said.stderr
    assert revisions(migrations) == [made]
    run("alembic", "upgrade", "head")
    assert "NOT  version" in run("check", *DATABASE, code=1).stdout
    run("adopt", *DATABASE)
    assert "All fits." in run("check", *DATABASE).stderr
    assert "`async-task upgrade --apply` upgrades them" in run("upgrade", code=78).stderr


@pytest.mark.long
def test_no_lines_are_printed_for_an_env_that_names_the_metadata_already(
    tree: Callable[..., pathlib.Path], run: Run
) -> None:
    migrations = tree()
    lines = "from async_task import metadata as async_task_metadata\ntarget_metadata = [async_task_metadata]"
    replace(migrations / "env.py", "target_metadata = None", lines)
    assert "target_metadata" not in run("install").stderr
    run("alembic", "upgrade", "head")
    assert "All fits." in run("check", *DATABASE).stderr


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


def test_alembics_own_variable_names_the_configuration(tree: Callable[..., pathlib.Path], run: Run) -> None:
    migrations = tree()
    (migrations.parent / "alembic.ini").rename(migrations.parent / "other.ini")
    run("install", code=78)
    run("install", ALEMBIC_CONFIG="other.ini")
    assert len(revisions(migrations)) == 1


def test_with_another_table_or_schema_install_prints_the_model_to_write(
    tree: Callable[..., pathlib.Path], run: Run
) -> None:
    migrations = tree()
    said = run("install", "--table", "letters", "--schema", "post")
    assert "op.create_table('letters'," in revisions(migrations)[0].read_text()
    assert "__tablename__ = 'letters'" in said.stderr
    assert "'schema': 'post'" in said.stderr
    assert "async_task_cli" not in said.stderr


def test_check_reports_a_revision_that_the_database_lacks(tree: Callable[..., pathlib.Path], run: Run) -> None:
    tree()
    run("install")
    run("install", "--apply", *DATABASE)
    with contextlib.closing(sqlite3.connect("shop.sqlite")) as connection:
        connection.execute("UPDATE async_task_schema SET version = 1")
        connection.commit()
    said = run("upgrade").stderr
    assert "`alembic upgrade head` brings the database there" in said


def test_an_unknown_base_is_refused_and_nothing_is_written(tree: Callable[..., pathlib.Path], run: Run) -> None:
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


def test_the_lines_for_env_keep_the_metadata_that_it_has(tree: Callable[..., pathlib.Path], run: Run) -> None:
    migrations = tree()
    assert "target_metadata = [async_task_metadata]  # and that of your own tables" in run("install").stderr
    for one in revisions(migrations):
        one.unlink()
    replace(migrations / "env.py", "target_metadata = None", "import models\ntarget_metadata = models.Base.metadata")
    assert "    target_metadata = [models.Base.metadata, async_task_metadata]\n" in run("install").stderr
    for one in revisions(migrations):
        one.unlink()
    listed = "target_metadata = [\n    models.Base.metadata,  # ours\n]"
    replace(migrations / "env.py", "target_metadata = models.Base.metadata", listed)
    assert "    target_metadata = [*[models.Base.metadata], async_task_metadata]\n" in run("install").stderr


BASES = {
    "one base, which the model shares": "class Base(DeclarativeBase): ...",
    "a base that no attempt can have": "class Base(MappedAsDataclass, DeclarativeBase): ...",
    "a base beside the application": "class Base(DeclarativeBase): ...\napp = AsyncTask('sqlite:///shop.sqlite')",
}


@pytest.mark.parametrize("bases", BASES)
def test_the_lines_for_a_model_keep_the_tables_of_the_user(
    tree: Callable[..., pathlib.Path], run: Run, bases: str
) -> None:
    migrations = tree()
    (migrations.parent / "models.py").write_text(
        "from async_task import AsyncTask\n"
        "from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column\n"
        f"{BASES[bases]}\n"
        "class Order(Base):\n    __tablename__ = 'orders'\n"
        "    number: Mapped[int] = mapped_column(primary_key=True)\n"
    )
    env = migrations / "env.py"
    replace(env, "target_metadata = None", "from models import Base\ntarget_metadata = Base.metadata")
    run("alembic", "revision", "--autogenerate", "-m", "orders")
    said = run("install", "--model", "attempt.py").stderr
    shown = [line.strip() for line in said.splitlines() if line.startswith("    ")]
    assert shown[2:] == ["from attempt import Attempt", "outbox = AsyncTask(..., model=Attempt)"]
    replace(env, "target_metadata = Base.metadata", "\n".join(shown[:2]))
    run("alembic", "upgrade", "head")
    assert run("alembic", "check").stdout.strip() == "No new upgrade operations detected."


def test_a_model_never_imports_the_module_of_the_application(
    tree: Callable[..., pathlib.Path], say: Callable[..., Said], tmp_path: pathlib.Path
) -> None:
    tree()
    base = "from sqlalchemy.orm import DeclarativeBase\nclass Base(DeclarativeBase): ...\n"
    (tmp_path / "bazaar.py").write_text(f"{base}from stall import Attempt\napp = AsyncTask('...', model=Attempt)\n")
    assert say("install", "--model", "stall.py").code == 0
    assert "import bazaar" not in (text := (tmp_path / "stall.py").read_text())
    assert "bazaar makes the application, which imports this module" in text
    said = say("install", "--model", "booth.py", "--base", "bazaar:Base")
    assert (said.code, "move Base to a module of its own" in said.err) == (2, True)


def test_install_apply_makes_the_tables_and_may_be_repeated(say: Callable[..., Said]) -> None:
    url = "--database-url=sqlite:///new.sqlite"
    for _ in range(2):
        said = say("install", "--apply", url)
        assert (said.code, said.out, said.err) == (0, "", "The tables of async-task are in sqlite:///new.sqlite.\n")
    assert say("list", url).err == "No attempts.\n"
