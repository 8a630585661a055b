"""`async-task completion`, in the shells that this machine has."""

import functools
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from async_task_cli.commands.completion import SHELLS
from async_task_cli.main import COMMANDS
from said import Run

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("alone")]
BIN = pathlib.Path(sys.executable).parent


def in_shell(*words: str, **environment: str) -> str:
    """What a shell prints, with the command on its path."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "PATH": path, **environment}, check=False, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


@functools.cache
def bash_script() -> str:
    """What a user of bash evaluates."""
    return in_shell("async-task", "completion", "bash")


def in_bash(*line: str) -> list[str]:
    """The completions of the last word of `line`."""
    words = " ".join(f"'{word}'" for word in line)
    script = (
        f"{bash_script()}\ncomplete -p async-task > /dev/null;"
        f"COMP_WORDS=({words}); COMP_CWORD={len(line) - 1}; _async_task_completion async-task;"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    return in_shell("bash", "--norc", "-c", script).split()


def test_bash_completes_commands_options_and_choices() -> None:
    assert in_bash("async-task", "re") == ["retry", "reschedule", "resume", "restart"]
    assert in_bash("async-task", "") == list(COMMANDS)
    assert in_bash("async-task", "list", "--st") == ["--status"]
    assert in_bash("async-task", "list", "--status", "p") == ["pending", "performing"]
    assert in_bash("async-task", "completion", "") == list(SHELLS)
    assert in_bash("async-task", "--database-url", "postgresql://127.0.0.1:1/x", "list", "--or") == ["--order"]


def test_bash_completes_nothing_after_an_unknown_command() -> None:
    assert in_bash("async-task", "lst", "--st") == []
    assert in_bash("async-task", "show", "0199") == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_zsh_and_fish_accept_their_scripts(say: Run, shell: str) -> None:
    said = say("completion", shell)
    assert (said.code, said.err) == (0, "")
    assert f"_ASYNC_TASK_COMPLETE={shell}_complete" in said.out
    if shutil.which(shell):
        pathlib.Path("script").write_text(said.out)
        in_shell(shell, "-n", "script")


@pytest.mark.parametrize("shell", list(SHELLS))
def test_help_shows_how_to_have_completion_in_every_session(say: Run, shell: str) -> None:
    said = say("completion", "--help").out
    assert f"{shell:<6} {SHELLS[shell]}" in said
    assert max(map(len, said.splitlines())) <= 100


def test_an_unknown_shell_is_a_usage_error(say: Run) -> None:
    for words in ((), ("tcsh",), ("bash", "zsh")):
        said = say("completion", *words)
        assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)


def test_completing_a_command_imports_neither_sqlalchemy_nor_alembic() -> None:
    script = (
        "import sys, atexit; from async_task_cli.main import main;"
        "atexit.register(lambda: print([name for name in sys.modules if name.partition('.')[0] in "
        "('sqlalchemy', 'alembic', 'async_task_cli.commands')], file=sys.stdout)); main()"
    )
    said = in_shell(
        sys.executable, "-c", script, _ASYNC_TASK_COMPLETE="bash_complete", COMP_WORDS="async-task s", COMP_CWORD="1"
    )
    *names, loaded = said.splitlines()
    assert {"plain,schedule", "plain,show", "plain,stuck", "plain,sql"} <= set(names)
    assert loaded == "[]"
