"""`async-task metrics`: the figures of `/metrics`, on standard output or in a file for node_exporter."""

import os
import pathlib
from collections.abc import Callable, Iterator

import pytest

from async_task import AsyncTask, Attempt
from async_task_cli.commands import metrics
from conftest import by_one_door
from dashboards import browser
from databases import Database
from outbox import Client
from said import Run

Write = Callable[..., Attempt]


def without_ages(text: str) -> list[str]:
    return [line for line in text.splitlines() if "oldest_due_seconds" not in line or line.startswith("#")]


@pytest.mark.slow
@by_one_door
def test_it_prints_what_the_page_shows(run: Run, app: AsyncTask, write: Write) -> None:
    write(Client, "ping", queue="mail")
    said = run("metrics")
    with browser(app) as client:
        page = client.get("/metrics").text
    assert (said.code, said.err) == (0, "")
    assert without_ages(said.out) == without_ages(page)
    assert 'async_task_attempts_due{queue="mail"} 1' in said.out.splitlines()


@pytest.mark.parametrize(("given", "said"), [("0s", "at least 1ms"), ("2d", "at most 1d")])
def test_a_timeout_out_of_its_range_is_a_usage_error(say: Run, given: str, said: str) -> None:
    ended = say("metrics", "--timeout", given, "--database-url", "sqlite:///nowhere.sqlite")
    assert (ended.code, ended.out, said in ended.err, ended.err.count("\n")) == (2, "", True, 1)


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.only_on("sqlite", "postgresql")
def test_a_textfile_is_replaced_as_a_whole_and_everybody_may_read_it(
    run: Run, write: Write, tmp_path: pathlib.Path, umask: None
) -> None:
    file = tmp_path / "async_task.prom"
    file.write_text("old")
    inode = file.stat().st_ino
    with file.open() as opened:
        said = run("metrics", "--textfile", str(file))
        assert opened.read() == "old"  # whoever reads it now is not disturbed
    assert (said.code, said.out, said.err) == (0, "", "")
    assert file.read_text().startswith("# HELP async_task_up ")
    assert "async_task_up 1\n" in file.read_text()
    assert (file.stat().st_mode & 0o777, file.stat().st_ino != inode) == (0o644, True)
    assert [one.name for one in tmp_path.iterdir() if "prom" in one.name] == ["async_task.prom"]


@pytest.mark.only_on("sqlite")
def test_what_cannot_be_written_is_one_sentence_and_leaves_nothing_behind(
    run: Run, database: Database, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = run("metrics", "--textfile", str(tmp_path / "missing" / "x.prom"))
    assert (said.code, said.out) == (1, "")
    assert said.err == f"async-task: {tmp_path}/missing/x.prom cannot be written: No such file or directory\n"
    assert run("metrics", "--textfile", str(tmp_path)).code == 2
    file = tmp_path / "x.prom"
    file.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metrics.os, "fsync", full)
    said = run("metrics", "--textfile", str(file))
    assert (said.code, "No space left on device" in said.err) == (1, True)
    assert (file.read_text(), [one.name for one in tmp_path.iterdir() if "prom" in one.name]) == ("old", ["x.prom"])


@pytest.mark.only_on("sqlite")
def test_what_is_no_regular_file_is_refused_and_a_link_stays_one(
    run: Run, database: Database, tmp_path: pathlib.Path
) -> None:
    pipe, link, file = tmp_path / "pipe", tmp_path / "link.prom", tmp_path / "x.prom"
    os.mkfifo(pipe)
    said = run("metrics", "--textfile", str(pipe))
    assert (said.code, said.out, pipe.is_fifo()) == (2, "", True)
    assert f"{pipe} is no regular file, and would be replaced by one" in said.err
    link.symlink_to(file)
    assert run("metrics", "--textfile", str(link)).code == 0
    assert (link.is_symlink(), file.read_text().startswith("# HELP async_task_up ")) == (True, True)


def test_an_empty_path_of_a_textfile_is_said_to_be_empty(say: Run) -> None:
    said = say("metrics", "--textfile", "", "--database-url", "postgresql+psycopg://127.0.0.1:1/x")
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        "async-task: Invalid value for --textfile: the path is empty: name a file, like async_task.prom, or omit "
        "--textfile to print the figures; see `async-task metrics --help`\n"
    )


def test_without_the_database_the_file_stays_as_it_was(say: Run, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "x.prom"
    file.write_text("old")
    said = say("metrics", "--textfile", str(file), "--database-url", "postgresql+psycopg://127.0.0.1:1/x")
    assert (said.code, file.read_text()) == (69, "old")
