"""`async-task worker --reload`: what it notices, how the worker before ends, and how the next one begins."""

import contextlib
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine

from async_task import Attempt, Status
from async_task_cli.reloading import Reload
from clockwork import row_of
from databases import Database
from elsewhere import PATIENCE, await_
from said import Run

pytestmark = pytest.mark.long

SHOP = """
import pathlib, threading
from async_task import AsyncTask, target

@target("reloaded.shop")
class Shop:
    @staticmethod
    def say(text: str) -> None:
        {body}

outbox = AsyncTask({url!r})
"""
SAY = "print({!r} + text)"
Write = Callable[..., Attempt]


class Working:
    """`python -m async_task worker --reload` in a folder, and the lines that it logs and prints."""

    def __init__(self, folder: pathlib.Path, *words: str, app: str | None = "shop:outbox") -> None:
        command = [sys.executable, "-m", "async_task", "worker", "--reload", "--poll", "50ms"]
        named = [] if app is None else ["--app", app]
        self.process = subprocess.Popen([*command, *named, *words], cwd=folder, stderr=subprocess.PIPE, text=True)
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line.rstrip("\n"))

    def line_with(self, part: str) -> str:
        """The next line with these words."""
        while True:
            line = self._lines.get(timeout=PATIENCE)
            if part in line:
                return line

    def code_after(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE)
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def shop(alone: None, database: Database, engine: Engine, tmp_path: pathlib.Path) -> Callable[[str], None]:
    """`shop("print(text)")`: save the module with this body of its target."""

    def save(body: str) -> None:
        beside = tmp_path / "shop.new"
        beside.write_text(SHOP.format(body=body, url=database.sync_url))
        beside.replace(tmp_path / "shop.py")  # as editors do: it is there at any moment

    return save


@pytest.fixture
def start(tmp_path: pathlib.Path) -> Iterator[Callable[..., Working]]:
    with contextlib.ExitStack() as until:

        def start(*words: str, **app: str | None) -> Working:
            working = Working(tmp_path, *words, **app)
            until.callback(working.close)
            return working

        yield start


@pytest.fixture
def call(registered: None, write: Write) -> Callable[[str], Attempt]:
    """Write a call of the shop down."""
    from async_task import target

    class Shop:
        @staticmethod
        def say(text: str) -> None:
            raise AssertionError("the worker has its own")

    target(name="reloaded.shop")(Shop)
    return lambda text: write(Shop, "say", {"text": text})


@pytest.mark.only_on("postgresql", "sqlite")
def test_after_a_change_calls_are_made_by_the_new_code_and_one_signal_ends_it(
    shop: Callable[[str], None], start: Callable[..., Working], call: Callable[[str], Attempt], engine: Engine
) -> None:
    shop(SAY.format("old "))
    working = start()
    working.line_with(": worker ")
    call("call")
    working.line_with("old call")
    shop(SAY.format("new "))
    assert working.line_with(" has changed: starting again").endswith("shop.py has changed: starting again")
    attempt = call("call")
    working.line_with("new call")
    await_(lambda: row_of(engine, attempt.id).status is Status.SUCCEEDED, "its outcome is written")
    assert working.code_after(signal.SIGINT) == 130


@pytest.mark.only_on("sqlite")
def test_a_module_that_does_not_import_is_said_in_one_line_and_the_next_change_tries_again(
    shop: Callable[[str], None], start: Callable[..., Working], call: Callable[[str], Attempt]
) -> None:
    shop("print('here'")
    working = start()
    said = working.line_with("waiting for a change")
    assert "--app: importing shop raised SyntaxError: '(' was never closed (" in said
    assert "shop.py, line 9); waiting for a change" in said
    shop("1 /")
    working.line_with("raised SyntaxError: invalid syntax")
    shop(SAY.format("mended "))
    call("call")
    working.line_with("mended call")
    shop("import")
    working.line_with("raised SyntaxError")
    assert working.code_after(signal.SIGTERM) == 143


@pytest.mark.only_on("sqlite")
def test_a_module_that_is_missing_is_awaited(shop: Callable[[str], None], start: Callable[..., Working]) -> None:
    working = start()
    working.line_with("there is no module 'shop' on the path")
    shop(SAY.format(""))
    working.line_with(": worker ")
    assert working.code_after(signal.SIGINT) == 130


OLD = 1_000_000_000
"""The time of a file that `git checkout`, `mv` or `rsync` brought, in seconds."""


def moved_in(file: pathlib.Path, text: str) -> None:
    """`file` is there from one moment to the next, and its time is long past."""
    beside = file.with_suffix(".new")
    beside.write_text(text)
    os.utime(beside, (OLD, OLD))
    beside.replace(file)


@pytest.mark.only_on("sqlite")
def test_a_module_of_a_package_that_goes_away_and_returns_is_imported_again(
    shop: Callable[[str], None], start: Callable[..., Working], tmp_path: pathlib.Path
) -> None:
    shop(SAY.format(""))
    outbox, away = tmp_path / "own" / "outbox.py", tmp_path / "away"
    outbox.parent.mkdir()
    (tmp_path / "shop.py").rename(outbox)
    os.utime(outbox, (OLD, OLD))
    working = start(app="own.outbox:outbox")
    working.line_with(": worker ")
    outbox.rename(away)
    working.line_with("there is no module 'own.outbox' on the path")
    away.rename(outbox)
    working.line_with(": worker ")
    assert working.code_after(signal.SIGINT) == 130


@pytest.mark.only_on("sqlite")
def test_a_module_that_the_application_imports_is_awaited_wherever_its_package_is(
    shop: Callable[[str], None],
    start: Callable[..., Working],
    tmp_path: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv("PYTHONPATH", str(elsewhere))
    things = [folder / "sub" / "thing.py" for folder in (tmp_path / "own_here", elsewhere / "own_there")]
    for thing in things:
        thing.parent.mkdir(parents=True)
    shop("pass\n\nimport own_here.sub.thing\nimport own_there.sub.thing\n")
    working = start()
    for thing in things:
        module = f"{thing.parent.parent.name}.sub.thing"
        assert f"the module '{module}', which is not installed ({tmp_path}/shop.py, line " in working.line_with(module)
        moved_in(thing, "")
    working.line_with(": worker ")
    assert working.code_after(signal.SIGINT) == 130


@pytest.mark.only_on("sqlite")
def test_what_a_target_or_a_missing_file_raises_is_said_with_its_line_and_awaited(
    shop: Callable[[str], None], start: Callable[..., Working], tmp_path: pathlib.Path
) -> None:
    shop("pass\n\ntarget(17)\n")
    working = start()
    assert f"({tmp_path}/shop.py, line 11); waiting for a change" in working.line_with("waiting for a change")
    shop("pass\n\nopen('missing.txt')\n")
    said = working.line_with("waiting for a change")
    assert "importing the application raised FileNotFoundError: [Errno 2] No such file or directory" in said
    assert f"({tmp_path}/shop.py, line 11)" in said
    shop(SAY.format(""))
    working.line_with(": worker ")
    assert working.code_after(signal.SIGINT) == 130


@pytest.mark.only_on("sqlite")
def test_a_wrong_name_in_pyproject_is_awaited_too(
    shop: Callable[[str], None], start: Callable[..., Working], tmp_path: pathlib.Path
) -> None:
    shop(SAY.format(""))
    project = tmp_path / "pyproject.toml"
    project.write_text("[tool.async-task]\napp = 'shop:box'\n")
    working = start(app=None)
    working.line_with("shop has no 'box'; write shop:outbox; waiting for a change")
    project.write_text("[tool.async-task]\napp = 'shop:outbox'\n")
    working.line_with(": worker ")
    assert working.code_after(signal.SIGINT) == 130


@pytest.mark.only_on("postgresql")
def test_a_call_that_outlasts_the_short_grace_is_released_uncharged_and_made_by_the_new_code(
    shop: Callable[[str], None], start: Callable[..., Working], call: Callable[[str], Attempt], engine: Engine
) -> None:
    shop("print('stuck'); threading.Event().wait()")
    working = start()
    attempt = call("call")
    working.line_with("stuck")
    shop(SAY.format("new "))
    working.line_with("new call")
    await_(lambda: row_of(engine, attempt.id).status is Status.SUCCEEDED, "its outcome is written")
    row = row_of(engine, attempt.id)
    assert (row.num_errors, row.num_crashes, row.num_losses) == (0, 0, 0)
    assert working.code_after(signal.SIGINT) == 130


@pytest.mark.only_on("postgresql")
def test_a_running_call_is_finished_before_the_new_code_begins(
    shop: Callable[[str], None],
    start: Callable[..., Working],
    call: Callable[[str], Attempt],
    engine: Engine,
    tmp_path: pathlib.Path,
) -> None:
    os.mkfifo(tmp_path / "gate")
    shop("print('begun'); pathlib.Path('gate').read_text(); print('finished')")
    working = start()
    attempt = call("call")
    working.line_with("begun")
    shop(SAY.format("new "))
    working.line_with("starting again")
    (tmp_path / "gate").write_text("open")
    working.line_with("finished")
    working.line_with(": worker ")
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts) == (Status.SUCCEEDED, 1)


WAIT = "print({!r}, file=sys.stderr, flush=True); open('gate').readline()"
"""Say this, and wait for a line in the pipe `gate`."""


@pytest.fixture
def gate(tmp_path: pathlib.Path) -> Iterator[Callable[[], object]]:
    """`gate()` opens the pipe `gate` for who waits there, whether anybody does or not."""
    os.mkfifo(tmp_path / "gate")
    number = os.open(tmp_path / "gate", os.O_RDWR)
    yield lambda: os.write(number, b"open\n")
    os.close(number)


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_new_interpreter_starts_ends_it_with_its_code(
    shop: Callable[[str], None],
    start: Callable[..., Working],
    gate: Callable[[], object],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
) -> None:
    shop(SAY.format(""))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    working = start()
    working.line_with(": worker ")
    # Python imports this before all else.
    (tmp_path / "sitecustomize.py").write_text(f"import sys\n{WAIT.format('starting')}\n")
    shop(SAY.format("new "))
    working.line_with("starting again")
    working.line_with("starting")
    working.process.send_signal(number)
    gate()
    assert working.process.wait(PATIENCE) == code


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_the_exit_functions_of_the_application_ends_it_too(
    shop: Callable[[str], None],
    start: Callable[..., Working],
    gate: Callable[[], object],
    number: signal.Signals,
    code: int,
) -> None:
    shop(f"pass\n\nimport atexit, sys\natexit.register(lambda: ({WAIT.format('exiting').replace('; ', ', ')}))\n")
    working = start()
    working.line_with(": worker ")
    shop(SAY.format("new "))
    working.line_with("exiting")
    working.process.send_signal(number)
    gate()
    assert working.process.wait(PATIENCE) == code


@pytest.mark.only_on("sqlite")
def test_a_second_signal_ends_an_exit_function_that_never_returns(
    shop: Callable[[str], None], start: Callable[..., Working]
) -> None:
    never = "signal.signal(signal.SIGUSR1, lambda *_: print('alive', file=sys.stderr, flush=True))"
    wait = f"({never}, print('exiting', file=sys.stderr, flush=True), [signal.pause() for _ in iter(int, 1)])"
    shop(f"pass\n\nimport atexit, signal, sys\natexit.register(lambda: {wait})\n")
    working = start()
    working.line_with(": worker ")
    shop(SAY.format("new "))
    working.line_with("exiting")
    working.process.send_signal(signal.SIGINT)
    working.process.send_signal(signal.SIGUSR1)
    working.line_with("alive")  # the first signal has been seen, for Python handles them by number
    assert working.code_after(signal.SIGINT) == 130


@pytest.mark.parametrize(
    ("words", "other"), [("--processes 2", "--processes"), ("--top", "--top"), ("--json", "--json")]
)
def test_it_is_refused_beside_what_it_cannot_do(say: Run, words: str, other: str) -> None:
    said = say("worker", "--reload", *words.split())
    assert (said.code, said.out) == (2, "")
    assert f"omit {other}, or --reload" in said.err


def changed_by(change: Callable[[], object], reload: Reload) -> pathlib.Path | None:
    """What it calls stop for, and notes, after a change."""
    stopped = threading.Event()
    reload.watch(stopped.set)
    change()
    assert stopped.wait(PATIENCE)
    return reload.changed


@pytest.fixture
def module(alone: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    file = tmp_path / "reloaded_module.py"
    file.write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield file
    sys.modules.pop("reloaded_module", None)


def test_what_a_target_imports_later_is_watched_too(module: pathlib.Path) -> None:
    def change() -> None:
        __import__("reloaded_module")
        module.write_text("changed = True")

    assert changed_by(change, Reload()) == module


def test_a_file_that_changed_between_its_import_and_the_first_look_has_changed(module: pathlib.Path) -> None:
    reload = Reload()
    __import__("reloaded_module")
    module.write_text("changed = True")
    assert changed_by(lambda: None, reload) == module


def test_an_older_file_in_its_place_and_a_deleted_one_are_changes(module: pathlib.Path) -> None:
    for change in (lambda: os.utime(module, (1, 1)), module.unlink):
        reload = Reload()
        __import__("reloaded_module")
        assert reload._look() is None
        assert changed_by(change, reload) == module
        sys.modules.pop("reloaded_module")


def test_a_file_that_went_away_or_was_replaced_by_an_older_one_before_the_first_look_has_changed(
    module: pathlib.Path,
) -> None:
    for change in (lambda: moved_in(module, "changed = True"), module.unlink):
        reload = Reload()
        __import__("reloaded_module")
        change()
        assert reload._look() == module
        sys.modules.pop("reloaded_module")


def test_a_module_of_a_zip_file_is_no_file_that_went_away(
    alone: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "reloaded.zip", "w") as zipped:
        zipped.writestr("reloaded_module.py", "")
    monkeypatch.syspath_prepend(str(tmp_path / "reloaded.zip"))
    reload = Reload()
    __import__("reloaded_module")
    assert (reload._look(), sys.modules.pop("reloaded_module").__file__) == (
        None,
        str(tmp_path / "reloaded.zip" / "reloaded_module.py"),
    )


def test_a_time_that_is_yet_to_come_is_no_change(module: pathlib.Path) -> None:
    os.utime(module, (2**32, 2**32))
    reload = Reload()
    __import__("reloaded_module")
    assert reload._look() is None


def test_installed_modules_and_those_of_python_are_not_watched() -> None:
    reload = Reload()
    assert reload._look() is None
    watched = {str(file) for file in reload._known}
    assert any(file.endswith("async_task/errors.py") for file in watched)  # of this tree
    assert not any("/sqlalchemy/" in file or file.endswith("/threading.py") for file in watched)
