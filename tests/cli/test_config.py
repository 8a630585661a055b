"""`async-task config`: each value, and where it comes from."""

import pathlib
import uuid
from typing import Any

import pytest

from said import Run

URL = "postgresql+psycopg://me:s3cret@127.0.0.1:1/shop?password=s3cret&sslpassword=s3cret"


@pytest.fixture
def project() -> str:
    """The name of a module with an application whose database is away."""
    name = f"configured_{uuid.uuid4().hex}"
    pathlib.Path(f"{name}.py").write_text(
        "from async_task import AsyncTask\n"
        "from outbox import HookedAttempt\n"
        f"app = AsyncTask({URL!r}, model=HookedAttempt, modules=['outbox'], lease=7)\n"
    )
    return f"{name}:app"


def settings(say: Run, *words: str) -> dict[str, Any]:
    said = say("config", "--json", *words)
    assert (said.code, said.err, "s3cret" in said.out) == (0, "", False)
    return {name: (one["value"], one["source"]) for name, one in said.json.items()}


def test_a_bare_database_is_shown_with_its_defaults_and_without_a_password(
    say: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = settings(say, "--database-url", URL, "--module", "outbox")
    assert found["database"] == ("postgresql+psycopg://me:***@127.0.0.1:1/shop", "--database-url")
    assert found["application"] == (None, None)
    assert found["modules"] == (["outbox"], "--module")
    assert found["model"] == ("async_task.attempts.attempt:Attempt", "default")
    assert found["table"] == ("async_task_attempts", "default")
    assert found["lease_seconds"] == (5.0, "default")
    assert found["concurrency"] == (4, "default")
    assert {"null", "test.box"} <= set(found["encryptors"][0])
    assert "test.client" in found["targets"][0]
    monkeypatch.setenv("ASYNC_TASK_DATABASE_URL", URL)
    assert settings(say)["database"][1] == "ASYNC_TASK_DATABASE_URL"


def test_an_application_is_shown_with_where_it_was_found(
    say: Run, project: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text(f'[tool.async-task]\napp = "{project}"\n')
    found = settings(say)
    assert found["application"] == (project, f"[tool.async-task] app in {file}")
    assert found["file"] == (str(file), "the nearest pyproject.toml")
    assert found["model"] == ("outbox:HookedAttempt", "the application")
    assert found["table"] == ("hooked_attempts", "the application")
    assert found["lease_seconds"] == (7.0, "the application")
    monkeypatch.setenv("ASYNC_TASK_DATABASE_URL", "sqlite:///other.sqlite")
    assert settings(say)["database"] == ("postgresql+psycopg://me:***@127.0.0.1:1/shop", "the application")
    monkeypatch.setenv("ASYNC_TASK_APP", project)
    assert settings(say)["application"] == (project, "ASYNC_TASK_APP")
    assert settings(say, "--app", project)["application"] == (project, "--app")


def test_the_actor_is_shown(say: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings(say, "--database-url", URL)["actor"][1] == "user@host"
    monkeypatch.setenv("ASYNC_TASK_ACTOR", "anna")
    assert settings(say, "--database-url", URL)["actor"] == ("anna", "ASYNC_TASK_ACTOR")


def test_an_invalid_actor_is_marked(say: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert say("config", "--json", "--database-url", URL).json["actor"]["problem"] is None
    monkeypatch.setenv("ASYNC_TASK_ACTOR", "anna\n")
    said = say("config", "--json", "--database-url", URL)
    words = "an actor is a printable text of 1 to 255 characters"
    assert (said.code, words in said.json["actor"]["problem"]) == (0, True)
    assert f"(ASYNC_TASK_ACTOR; {words}" in " ".join(say("config", "--database-url", URL).out.split())


def test_the_text_fits_80_columns(say: Run) -> None:
    said = say("config", "--database-url", URL, "--module", "outbox")
    assert (said.code, said.err, "s3cret" in said.out) == (0, "", False)
    assert max(map(len, said.out.splitlines())) <= 80
    assert " ".join(said.out.split()).startswith("file none application none modules outbox (--module) actor ")


def test_an_error_comes_after_the_settings_that_are_known(say: Run) -> None:
    said = say("config")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "no database is named" in said.err
    assert "application  none" in said.out
    said = say("config", "--json", "--app", "no_such_module:app")
    assert (said.code, said.json["application"]["value"]) == (78, "no_such_module:app")
    assert say("config", "--database-url", "nonsense s3cret").code == 78
