"""The files that `async-task install` writes into somebody's project: their texts, and that they do what they say."""

import contextlib
import os
import re
import subprocess
import threading
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from async_task_cli.faults import CONFIGURATION, UNEXPECTED, USAGE, Refusal
from async_task_cli.scaffold import Planned, Wish, Written, files, plan, plans, write
from elsewhere import Program

pytestmark = pytest.mark.long

GOLDEN = Path(__file__).parents[1] / "golden" / "scaffold"
MODEL, JOBS = Path("shop/attempt.py"), Path("shop/jobs.py")
BOTH: dict[str, Any] = {"model": MODEL, "jobs": JOBS}
BASE = "from sqlalchemy.orm import DeclarativeBase\n\n\nclass Base(DeclarativeBase):\n    pass\n"
PYTEST = '[dependency-groups]\ndev = ["pytest-xdist>=3"]\n[tool.pytest.ini_options]\npythonpath = ["."]\n'


class Project:
    """Somebody's project, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, path: str, text: str = "") -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text))

    def plan(self, **wish: Any) -> dict[str, str]:
        """The texts by their paths; the working directory is the project."""
        return {self._short(one.path): one.text for one in plan(Wish(self.folder, **wish))}

    def install(self, **wish: Any) -> dict[str, str]:
        """What became of each file."""
        return {self._short(one.path): one.outcome for one in write(plan(Wish(self.folder, **wish)))}

    def files(self) -> set[str]:
        return {self._short(one) for one in self.folder.rglob("*") if one.is_file() and "__pycache__" not in str(one)}

    def text(self, path: str | Path) -> str:
        return (self.folder / path).read_text()

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """A module of this interpreter, as the user of the project would run it."""
        theirs = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        with contextlib.closing(Program(*words, cwd=self.folder, env=theirs)) as begun:
            return begun.completed(120)

    def test(self, *words: str) -> str:
        """The last line of a run of its tests, in which warnings are errors and all pass."""
        ended = self.run("pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-p", "no:asyncio", *words)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout.splitlines()[-1]

    def _short(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A package `shop` with a base, and pytest."""
    monkeypatch.chdir(tmp_path)
    made = Project(tmp_path.resolve())
    made.put("pyproject.toml", PYTEST)
    made.put("shop/__init__.py")
    made.put("shop/models.py", BASE)
    return made


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A folder with nothing in it."""
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path.resolve())


# The texts


def golden(case: str) -> dict[str, str]:
    """The expected files of a case, by their paths."""
    folder = GOLDEN / case
    return {
        file.relative_to(folder).as_posix().removesuffix(".txt"): file.read_text() for file in folder.rglob("*.txt")
    }


def test_with_model_and_jobs_it_writes_both_and_their_tests_and_the_factory(project: Project) -> None:
    assert project.plan(**BOTH) == golden("both")


def test_without_a_base_the_model_brings_its_own_and_takes_the_table_and_schema_that_are_named(empty: Project) -> None:
    assert empty.plan(model=MODEL, table="Calls to make", schema="outbox") == golden("own_base")


def test_among_several_bases_it_does_not_guess_and_says_which_there_are(project: Project) -> None:
    project.put("pyproject.toml")
    project.put("shop/books.py", "from sqlalchemy import orm\nLedger: type = orm.declarative_base()\n")
    assert project.plan(model=MODEL) == golden("several_bases")


def test_with_jobs_alone_their_tests_take_the_ready_made_model(project: Project) -> None:
    assert project.plan(jobs=JOBS)["tests/test_jobs.py"] == golden("jobs_alone")["tests/test_jobs.py"]


def test_every_text_ends_its_lines_as_unix_does_and_is_utf_8(empty: Project) -> None:
    empty.install(model=MODEL, table="bücher")
    written = (empty.folder / MODEL).read_bytes()
    assert 'tablename__ = "bücher"'.encode() in written
    assert b"\r" not in written
    assert written.endswith(b"\n")
    assert not written.endswith(b"\n\n")


def test_a_name_of_a_table_is_a_text_and_never_code(empty: Project) -> None:
    empty.install(model=MODEL, table='x"\nraise SystemExit  # \\', schema='"}')
    names: dict[str, Any] = {"__name__": "shop.attempt"}
    exec(compile(empty.text(MODEL), "attempt.py", "exec"), names)  # noqa: S102
    assert names["Attempt"].__table__.name == 'x"\nraise SystemExit  # \\'
    assert names["Attempt"].__table__.schema == '"}'


# Where the base comes from


@pytest.mark.parametrize(
    ("base", "lines"),
    [
        ("shop.db:Model", ["from shop.db import Model", "class Attempt(BaseAttempt, Model):"]),
        ("shop.db:db.Model", ["from shop.db import db", "class Attempt(BaseAttempt, db.Model):"]),
    ],
)
def test_a_base_that_is_named_is_imported_and_not_looked_for(project: Project, base: str, lines: list[str]) -> None:
    project.put("shop/db.py")
    text = project.plan(model=MODEL, base=base)["shop/attempt.py"]
    assert set(lines) <= set(text.splitlines())


@pytest.mark.parametrize("base", ["shop.nothing:Base", "no_such_package:Base"])
def test_a_base_in_a_module_that_is_not_there_is_refused(project: Project, base: str) -> None:
    project.put("shop/__init__.py")
    with pytest.raises(Refusal, match="--base: there is no module") as refused:
        project.plan(model=MODEL, base=base)
    assert refused.value.exit_code == USAGE


@pytest.mark.parametrize("base", ["shop.models", "shop/models.py:Base", "shop.models:", "shop.models:Base)\nimport os"])
def test_a_base_that_is_not_written_module_name_is_refused(project: Project, base: str) -> None:
    with pytest.raises(Refusal, match=r"written module:Name, like shop\.models:Base") as refused:
        project.plan(model=MODEL, base=base)
    assert refused.value.exit_code == USAGE


@pytest.mark.parametrize(
    "text",
    [
        "import sqlalchemy.orm as so\nclass Base(so.DeclarativeBase): ...",
        "from sqlalchemy.ext.asyncio import AsyncAttrs\nclass Base(AsyncAttrs, DeclarativeBase): ...",
        "Base = declarative_base()\nDIGIT = '\\d'  # of which Python has something to say",
        "Base: Any = registry().generate_base()",
        "# coding: latin-1\nraise SystemExit('never imported')\nclass Base(DeclarativeBase): ...",
    ],
)
def test_a_base_is_found_however_it_is_made_and_nothing_is_imported_for_it(project: Project, text: str) -> None:
    project.put("shop/models.py", text)
    assert "from shop.models import Base" in project.plan(model=MODEL)["shop/attempt.py"].splitlines()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("shop/data.py", "class Data(MappedAsDataclass, DeclarativeBase): ..."),
        ("shop/broken.py", "class Broken(DeclarativeBase):"),
        ("shop/null.py", "class Null(DeclarativeBase): ...\0"),
        pytest.param("shop/deep.py", f"{BASE}DEPTH = {'-' * 5_000}1", id="deep"),
        pytest.param("shop/deeper.py", f"{BASE}DEPTH = {'-' * 50_000}1", id="deeper"),
        ("tests/models.py", BASE),
        (".tox/shop/models.py", BASE),
        ("site-packages/shop/models.py", BASE),
        ("env/lib/models.py", BASE),
        ("scripts/try-it.py", BASE),
    ],
)
def test_what_attempts_cannot_be_mapped_on_is_no_base(project: Project, path: str, text: str) -> None:
    project.put("env/pyvenv.cfg")
    project.put(str(Path(path).with_name("__init__.py")))
    project.put(path, text)
    assert "from shop.models import Base" in project.plan(model=MODEL)["shop/attempt.py"].splitlines()


# Where things lie, and what they are called


@pytest.mark.parametrize(
    ("there", "path", "module"),
    [
        ([], "shop/attempt.py", "shop.attempt"),
        ([], "attempt.py", "attempt"),
        ([], "src/shop/attempt.py", "shop.attempt"),
        (["src/__init__.py"], "src/shop/attempt.py", "src.shop.attempt"),
        (["lib/shop/__init__.py"], "lib/shop/outbox/attempt.py", "shop.outbox.attempt"),
        (["lib/shop/__init__.py", "lib/shop/outbox/__init__.py"], "lib/shop/outbox/attempt.py", "shop.outbox.attempt"),
        (["src/company/shop/__init__.py"], "src/company/shop/attempt.py", "shop.attempt"),
        ([], "shop/attempt/__init__.py", "shop.attempt"),
    ],
)
def test_a_module_is_imported_by_the_name_that_it_has_on_the_path(
    empty: Project, there: list[str], path: str, module: str
) -> None:
    empty.put("pyproject.toml", PYTEST)
    for one in there:
        empty.put(one)
    assert f"from {module} import Attempt" in empty.plan(model=Path(path))["tests/test_attempt.py"].splitlines()


def test_new_folders_become_packages_and_old_ones_stay_what_they_are(empty: Project) -> None:
    empty.put("src/company/notes.txt")
    written = empty.install(model=Path("src/company/shop/outbox/attempt.py"))
    made = ["src/company/shop/__init__.py", "src/company/shop/outbox/__init__.py"]
    assert list(written) == [*made, "src/company/shop/outbox/attempt.py"]
    assert [empty.text(one) for one in made] == ["", ""]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("shop/attempt", "is no Python file"),
        ("shop/attempt.txt", "is no Python file"),
        ("shop", "is no Python file"),
        ("folder.py", "is no Python file"),
        ("../attempt.py", "lies outside of the project"),
        ("/tmp/attempt.py", "lies outside of the project"),  # noqa: S108
        ("link/attempt.py", "lies outside of the project"),
        ("shop/my-attempt.py", "'my-attempt' is no name for a module"),
        ("shop/class.py", "'class' is no name for a module"),
        ("my shop/attempt.py", "'my shop' is no name for a module"),
        ("__init__.py", "cannot be imported"),
        ("async_task.py", "in place of this library"),
        ("async_task/attempt.py", "in place of this library"),
    ],
)
def test_a_path_that_is_no_module_of_the_project_is_refused(empty: Project, path: str, words: str) -> None:
    (empty.folder / "folder.py").mkdir()
    (empty.folder / "link").symlink_to(empty.folder.parent)
    for wish in ({"model": Path(path)}, {"jobs": Path(path)}):
        with pytest.raises(Refusal, match=words) as refused:
            empty.plan(**wish)
        assert refused.value.exit_code == USAGE


def test_one_path_cannot_hold_both(project: Project) -> None:
    with pytest.raises(Refusal, match="give each a path of its own") as refused:
        project.plan(model=MODEL, jobs=Path("shop/../shop/attempt.py"))
    assert refused.value.exit_code == USAGE


def test_two_modules_of_one_name_have_tests_of_two_names(empty: Project) -> None:
    empty.put("conftest.py")
    planned = empty.plan(model=Path("shop/outbox.py"), jobs=Path("jobs/outbox.py"))
    assert {"tests/test_outbox.py", "tests/test_outbox_jobs.py"} <= planned.keys()


# Whether there is pytest, and where its tests are


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("pyproject.toml", "[tool.pytest.ini_options]"),
        ("pyproject.toml", "[tool.pytest]"),
        ("pyproject.toml", '[project.optional-dependencies]\ndev = ["ruff", "pytest >= 8"]'),
        ("pyproject.toml", '[dependency-groups]\ntest = ["pytest-asyncio"]'),
        ("pyproject.toml", '[tool.poetry.group.dev.dependencies]\npytest = "^8"'),
        ("pytest.ini", ""),
        ("tox.ini", "[pytest]"),
        ("setup.cfg", "[tool:pytest]"),
        ("conftest.py", ""),
        ("tests/conftest.py", ""),
        ("dev-requirements.txt", "ruff\npytest==8.3"),
    ],
)
def test_pytest_is_seen_by_its_settings_its_traces_or_as_a_dependency(empty: Project, path: str, text: str) -> None:
    empty.put(path, text)
    assert {"tests/attempt_factory.py", "tests/test_attempt.py"} <= empty.plan(model=MODEL).keys()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("pyproject.toml", '[project]\ndependencies = ["sqlalchemy"]\ndescription = "no pytest here"'),
        ("tox.ini", "[tox]"),
        ("setup.cfg", "no = section"),
        ("tests/test_shop.py", "import unittest"),
    ],
)
def test_without_pytest_there_are_no_tests(empty: Project, path: str, text: str) -> None:
    empty.put(path, text)
    assert empty.plan(**BOTH).keys() == {"shop/__init__.py", "shop/attempt.py", "shop/jobs.py"}


@pytest.mark.parametrize(
    ("path", "text", "folder"),
    [
        ("pyproject.toml", '[tool.pytest.ini_options]\ntestpaths = ["checks/unit", "tests"]', "checks/unit"),
        ("pyproject.toml", '[tool.pytest]\ntestpaths = ["checks"]', "checks"),
        ("pyproject.toml", '[tool.pytest.ini_options]\ntestpaths = "checks more"', "checks"),
        ("pyproject.toml", '[tool.pytest.ini_options]\ntestpaths = [".", "*/tests", "../other", "README.md"]', "tests"),
        ("pytest.ini", "[pytest]\ntestpaths =\n  checks\n  more", "checks"),
        ("setup.cfg", "[tool:pytest]\ntestpaths = checks", "checks"),
        ("test/conftest.py", "", "test"),
    ],
)
def test_tests_lie_where_pytest_looks_for_them_first(empty: Project, path: str, text: str, folder: str) -> None:
    empty.put("README.md")
    empty.put(path, text)
    assert f"{folder}/test_attempt.py" in empty.plan(model=MODEL)


def test_pytest_ini_counts_before_pyproject_toml_as_for_pytest_itself(empty: Project) -> None:
    empty.put("pytest.ini", "[pytest]\ntestpaths = here")
    empty.put("pyproject.toml", '[tool.pytest.ini_options]\ntestpaths = ["there"]')
    assert "here/test_attempt.py" in empty.plan(model=MODEL)


def test_a_pyproject_that_cannot_be_read_is_refused(empty: Project) -> None:
    empty.put("pyproject.toml", "[tool")
    with pytest.raises(Refusal, match=r"pyproject\.toml cannot be read") as refused:
        empty.plan(model=MODEL)
    assert refused.value.exit_code == CONFIGURATION


# The written tests pass


def test_as_written_in_a_flat_project_also_by_several_processes(project: Project) -> None:
    project.install(**BOTH)
    assert project.test("-n", "2").startswith("10 passed")


def test_as_written_with_a_source_folder_tests_that_are_a_package_and_a_schema(empty: Project) -> None:
    empty.put("pyproject.toml", '[tool.pytest.ini_options]\npythonpath = ["src"]')
    empty.put("tests/__init__.py")
    empty.put("src/shop/models.py", BASE)
    empty.install(model=Path("src/shop/attempt.py"), jobs=Path("src/shop/jobs.py"), schema="out box")
    assert empty.test().startswith("10 passed")
    assert "from tests.attempt_factory import" in empty.text("tests/test_attempt.py")


def test_as_written_where_tests_are_imported_by_importlib(project: Project) -> None:
    project.put("pyproject.toml", f'{PYTEST}addopts = ["--import-mode=importlib"]')
    written = project.install(**BOTH)
    assert "shop/attempt_factory.py" in written
    assert project.test().startswith("10 passed")


def test_as_written_for_jobs_alone_and_then_for_a_model(project: Project) -> None:
    project.install(jobs=JOBS)
    assert project.test().startswith("3 passed")
    assert project.install(model=MODEL)["tests/attempt_factory.py"] == "kept"
    assert project.test().startswith("10 passed")


def test_renamed_by_their_user_in_every_file(project: Project) -> None:
    project.install(**BOTH)
    names = {"Attempt": "Call", "AttemptJob": "ShopJob", "AttemptBatchJob": "ShopBatch", "async_task_attempts": "calls"}
    for path in ("shop/attempt.py", "shop/jobs.py", "tests/test_attempt.py", "tests/test_jobs.py"):
        renamed = re.sub(rf"\b({'|'.join(names)})\b", lambda found: names[found[0]], project.text(path))
        project.put(path, renamed)
    assert "class Call(BaseAttempt, Base):" in project.text(MODEL)
    assert project.test().startswith("10 passed")


def test_renamed_classes_are_tested_under_the_names_that_they_have(project: Project) -> None:
    project.install(**BOTH)
    for path in (*BOTH.values(), Path("tests/test_attempt.py"), Path("tests/test_jobs.py")):
        text = project.text(path)
        (project.folder / path).unlink()
        if path in BOTH.values():
            renamed = text.replace("class Attempt", "class Shop").replace("async_task_attempts", "shop_calls")
            project.put(str(path), renamed)
    again = project.install(**BOTH)
    assert again["shop/attempt.py"] == "kept"
    assert again["tests/test_attempt.py"] == again["tests/test_jobs.py"] == "written"
    assert "from shop.attempt import Shop" in project.text("tests/test_attempt.py").splitlines()
    assert "from shop.jobs import ShopBatchJob, ShopJob" in project.text("tests/test_jobs.py").splitlines()
    assert project.test().startswith("10 passed")


def test_a_file_that_was_there_and_holds_no_attempts_is_not_tested(project: Project) -> None:
    project.put("shop/attempt.py", "TRIES = 3\n")
    project.put("shop/jobs.py", "class AttemptJob: ...\n")
    assert project.plan(**BOTH).keys() == {"shop/attempt.py", "shop/jobs.py"}


# Writing


def test_existing_files_are_kept_byte_by_byte(project: Project) -> None:
    mine = b"\xff\r\nnot even Python"
    theirs = ["shop/attempt.py", "shop/jobs.py", "tests/attempt_factory.py"]
    for path in theirs:
        project.put(path)
        (project.folder / path).write_bytes(mine)
    assert set(project.install(**BOTH).values()) == {"kept"}
    assert [(project.folder / path).read_bytes() for path in theirs] == [mine] * 3


def test_a_second_install_writes_nothing(project: Project) -> None:
    assert set(project.install(**BOTH).values()) == {"written"}
    before = {path: path.stat().st_mtime_ns for path in project.folder.rglob("*")}  # of the folders too
    assert set(project.install(**BOTH).values()) == {"kept"}
    assert {path: path.stat().st_mtime_ns for path in project.folder.rglob("*")} == before


def test_a_link_that_leads_nowhere_is_kept_too(project: Project) -> None:
    (project.folder / MODEL).symlink_to("nowhere.py")
    planned = Planned(project.folder / MODEL, "")
    assert planned.is_there
    assert write([planned]) == [Written(project.folder / MODEL, "kept")]
    assert not (project.folder / "shop/nowhere.py").exists()


def test_one_text_that_does_not_compile_and_nothing_is_written(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = project.files()
    monkeypatch.setattr(plans, "text_of", lambda name, **_: "def broken(:\n" if name == "jobs" else "ATTEMPTS = 1\n")
    with pytest.raises(Refusal, match=r"shop/jobs\.py would not compile .* nothing was written") as refused:
        project.install(**BOTH)
    assert refused.value.exit_code == UNEXPECTED
    assert project.files() == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_breaks_off_in_the_middle_leaves_whole_files_only(
    project: Project, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    whole, before = project.plan(**BOTH), project.files()
    synced = iter([None, None, error])

    def sync(_file: int) -> None:
        if (raised := next(synced)) is not None:
            raise raised

    monkeypatch.setattr(files.os, "fsync", sync)
    with pytest.raises((Refusal, KeyboardInterrupt)) as broken:
        project.install(**BOTH)
    if isinstance(broken.value, Refusal):
        assert str(broken.value).endswith("attempt_factory.py cannot be written: No space left on device")
    left = project.files() - before
    assert left == {"shop/attempt.py", "shop/jobs.py"}
    assert {path: project.text(path) for path in left} == {path: whole[path] for path in left}


@pytest.mark.parametrize("has_links", [True, False])
def test_of_many_installs_at_once_one_wins_each_file_and_the_others_keep_it(
    project: Project, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:
        monkeypatch.setattr(Path, "hardlink_to", _no_links)
    planned = plan(Wish(project.folder, **BOTH))
    # As if each had found nothing there.
    monkeypatch.setattr(Planned, "is_there", False)
    said: list[list[Written]] = []
    together = threading.Barrier(8)

    def install() -> None:
        together.wait()
        said.append(write(planned))

    threads = [threading.Thread(target=install) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outcomes in zip(*said, strict=True):
        assert sorted(one.outcome for one in outcomes) == ["kept"] * 7 + ["written"]
    assert {one.path: one.path.read_text() for one in planned} == {one.path: one.text for one in planned}
    assert not [one for one in project.files() if Path(one).name.startswith(".")]


def _no_links(self: Path, target: Path) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_a_written_file_may_be_read_by_whom_the_umask_says(empty: Project) -> None:
    before = os.umask(0o027)
    try:
        empty.install(model=MODEL)
    finally:
        os.umask(before)
    assert (empty.folder / MODEL).stat().st_mode & 0o777 == 0o640
    assert (empty.folder / MODEL).stat().st_nlink == 1


def test_a_folder_that_cannot_be_made_is_refused_with_a_sentence(empty: Project) -> None:
    empty.put("shop", "a file")
    with pytest.raises(Refusal, match=r"attempt\.py cannot be written: File exists"):
        empty.install(model=MODEL)
