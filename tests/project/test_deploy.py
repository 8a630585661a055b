"""The crontab and the systemd units in examples/deploy work as they are, in another folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt, Status, target
from async_task.worker.supervisor_process import MARGIN
from elsewhere import await_

pytestmark = pytest.mark.long

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
HOME = "/srv/shop"
OUTBOX = """
from async_task import AsyncTask, target

outbox = AsyncTask("sqlite:///shop.sqlite")


@target("test_deploy.ring")
def ring() -> None: ...
"""
ANALYZE = shutil.which("systemd-analyze")


@target("test_deploy.ring")
def ring() -> None:
    """The target of these tests."""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """An application with one due call, in a folder like that of the examples."""
    place = tmp_path / "shop"
    (place / ".venv" / "bin").mkdir(parents=True)
    (place / ".venv" / "bin" / "async-task").symlink_to(Path(sys.executable).parent / "async-task")
    (place / "outbox.py").write_text(OUTBOX)
    (place / "pyproject.toml").write_text('[tool.async-task]\napp = "outbox:outbox"\n')
    engine = create_engine(f"sqlite:///{place / 'shop.sqlite'}")
    app = AsyncTask(engine)
    app.create_schema()
    with Session(engine) as session, session.begin():
        Attempt.options(session=session).call(ring)
    engine.dispose()
    return place


def status_of(shop: Path) -> Status:
    engine = create_engine(f"sqlite:///{shop / 'shop.sqlite'}")
    with Session(engine) as session:
        found = session.scalars(select(Attempt.status)).one()
    engine.dispose()
    return found


def lines(name: str) -> list[str]:
    """The lines of a file without comments and empty lines."""
    text = (DEPLOY / name).read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_crontab_line_makes_the_due_call_and_prints_nothing(shop: Path) -> None:
    setting, line = lines("async-task.cron")
    assert setting.startswith("MAILTO=")
    *stars, command = line.split(maxsplit=5)
    assert stars == ["*"] * 5
    assert "%" not in command  # cron reads % as a new line
    ended = subprocess.run(
        ["/bin/sh", "-c", command.replace(HOME, str(shop))],
        capture_output=True, text=True, timeout=60, check=False, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert status_of(shop) is Status.SUCCEEDED


def test_the_command_of_the_batch_service_makes_the_due_call_and_prints_nothing(shop: Path) -> None:
    settings = dict(line.split("=", 1) for line in lines("async-task-batch.service") if "=" in line)
    assert settings["WorkingDirectory"] == HOME
    ended = subprocess.run(
        settings["ExecStart"].replace(HOME, str(shop)).split(),
        cwd=shop, capture_output=True, text=True, timeout=60, check=False, env={},
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert status_of(shop) is Status.SUCCEEDED


def test_the_command_of_the_worker_service_runs_until_sigterm_and_has_time_for_its_grace(shop: Path) -> None:
    settings = dict(line.split("=", 1) for line in lines("async-task-worker.service") if "=" in line)
    words = settings["ExecStart"].replace(HOME, str(shop)).split()
    grace = int(words[words.index("--grace") + 1].removesuffix("s"))
    assert int(settings["TimeoutStopSec"]) >= grace + MARGIN
    assert (settings["KillSignal"], settings["KillMode"]) == ("SIGTERM", "mixed")
    working = subprocess.Popen(words, cwd=shop, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={})
    await_(lambda: status_of(shop) is Status.SUCCEEDED, "the due call is made")
    working.terminate()
    out, err = working.communicate(timeout=60)
    assert (working.returncode, out) == (int(settings["SuccessExitStatus"]), "")
    assert all(json.loads(line)["message"] for line in err.splitlines())


if ANALYZE is not None:  # only where systemd is installed

    def test_systemd_accepts_the_units(shop: Path) -> None:
        for file in [*DEPLOY.glob("*.service"), *DEPLOY.glob("*.timer")]:
            (shop / file.name).write_text(file.read_text().replace(HOME, str(shop)))
        assert ANALYZE is not None
        begun = [
            shop / f"async-task-{name}" for name in ("batch.timer", "clock.service", "web.service", "worker.service")
        ]
        ended = subprocess.run(
            [ANALYZE, "verify", "--man=no", *map(str, begun)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
