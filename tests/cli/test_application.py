"""How the command line finds the application."""

import pathlib
import uuid
from collections.abc import Callable

import pytest

from async_task import Attempt
from async_task_cli.main import main
from said import Run

Write = Callable[..., Attempt]


pytestmark = pytest.mark.usefixtures("alone")


UNREACHABLE = "postgresql+psycopg://me:s3cret@127.0.0.1:1/shop?connect_timeout=2"


@pytest.fixture
def project() -> str:
    """The name of a module in the working directory, with an application `app` in which one attempt waits."""
    name = f"project_{uuid.uuid4().hex}"
    pathlib.Path(f"{name}.py").write_text(
        "from async_task import AsyncTask\n"
        f"app = AsyncTask('sqlite:///{pathlib.Path.cwd()}/project.sqlite', modules=['outbox'])\n"
        "number = 7\n"
    )
    assert main(["install", "--apply", "--app", f"{name}:app"]) == 0
    return name


def test_the_application_is_found_by_option_environment_and_pyproject(
    say: Run, project: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    name = f"{project}:app"
    assert say("--app", name, "list").err == say("list", "--app", name).err == "No attempts.\n"
    monkeypatch.setenv("ASYNC_TASK_APP", name)
    assert say("list").err == "No attempts.\n"
    monkeypatch.setenv("ASYNC_TASK_APP", "")
    pathlib.Path("pyproject.toml").write_text(f'[tool.async-task]\napp = "{name}"\n')
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert say("list").err == "No attempts.\n"


def test_an_unknown_key_of_the_project_is_refused(say: Run) -> None:
    pathlib.Path("pyproject.toml").write_text('[tool.async-task]\napplication = "shop:outbox"\n')
    said = say("list")
    assert (said.code, said.err.count("\n")) == (78, 1)
    assert "has 'application', and knows app alone" in said.err


def test_an_option_wins_over_the_environment_and_that_over_pyproject(
    say: Run, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pathlib.Path("pyproject.toml").write_text('[tool.async-task]\napp = "nowhere:app"\n')
    monkeypatch.setenv("ASYNC_TASK_APP", f"{project}:app")
    monkeypatch.setenv("ASYNC_TASK_DATABASE_URL", UNREACHABLE)
    assert say("list").code == 0
    assert "there is no database other.sqlite" in say("list", "--database-url", "sqlite:///other.sqlite").err


@pytest.mark.slow
def test_modules_are_imported_with_a_bare_database(run: Run, write: Write) -> None:
    pathlib.Path("greetings_of_cli.py").write_text(
        "from async_task import target\n@target('test.hi')\ndef hi() -> None: ...\n"
    )
    assert run("list", "--module", "greetings_of_cli").code == 0
    write("test.hi")
    assert run("run-batch", "--module", "greetings_of_cli", "--json").json["succeeded"] == 1
