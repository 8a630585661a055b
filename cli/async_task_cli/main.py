"""`async-task`: its commands by name, each imported when it is used; and how every run of it ends."""

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

import async_task
from async_task_cli.faults import USAGE, Refusal, near, one_line, trace_of, verdict
from async_task_cli.options import SETTINGS, WORDS, Wanted, reaching
from async_task_cli.signals import INTERRUPTED, Terminated, terminable
from async_task_cli.standard_output import close_output

NO_ARGUMENTS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""What a group without a command raises, from click 8.2 on."""
NAME, COMPLETE = "async-task", "_ASYNC_TASK_COMPLETE"
COMMANDS = {
    "run-batch": ("batch:run_batch", "Perform all calls that are due, once, and end."),
    "worker": ("worker:worker", "Perform all calls that become due, until stopped."),
    "clock": ("clock:clock", "Enqueue what the schedule says, until stopped."),
    "schedule": ("schedule:schedule", "List the schedule and its times; run or pause an entry."),
    "health": ("health:health", "Check whether all is well, for monitoring and probes."),
    "metrics": ("metrics:metrics", "Print the figures for Prometheus, or write them to a file."),
    "workers": ("workers:workers", "List the processes that perform attempts, and the clocks."),
    "stats": ("stats:stats", "Show what waits, runs, ends and fails, by queue and target."),
    "top": ("top:top", "Watch the same on the terminal."),
    "web": ("web:web", "Serve the dashboard to browsers, until stopped."),
    "stuck": ("stuck:stuck", "Say what is stuck, why, and what helps."),
    "explain": ("explain:explain", "Name everything that keeps one attempt from running."),
    "failures": ("failures:failures", "List errors that are alike; retry what failed by them."),
    "list": ("attempts:list_attempts", "List attempts, newest first, and count them."),
    "show": ("attempt:show", "Show one attempt: all its fields and what happened to it."),
    "retry": ("verbs:retry", "Make attempts due now; also failed and expired ones."),
    "run-now": ("run_now:run_now", "Make attempts due now, and perform them here."),
    "reschedule": ("verbs:reschedule", "Make pending attempts due at another time."),
    "expire": ("verbs:expire", "End pending attempts as expired: they are too late."),
    "fail": ("verbs:fail", "End pending attempts as failed for good."),
    "cancel": ("verbs:cancel", "End pending attempts as no longer wanted."),
    "note": ("note:note", "Add a note to an attempt or a row."),
    "enqueue": ("enqueue:enqueue", "Write a call down, for a worker to perform."),
    "pause": ("queues:pause", "Start no more calls of a queue or a target."),
    "resume": ("queues:resume", "Resume a queue or a target that was paused."),
    "queues": ("queues:queues", "List the queues that are paused or limited."),
    "sweep": ("sweep:sweep", "Recover attempts whose process died; expire late ones."),
    "restart": ("restart:restart", "Process rows of models (Asyncable) again."),
    "process-models": ("process_models:process_models", "Give rows of models (Asyncable) the job that they lack."),
    "summary": ("summary:summary", "Count stuck rows of models (Asyncable), or time the others."),
    "prune": ("prune:prune", "Delete attempts that ended long ago."),
    "install": ("install:install", "Write a revision that creates the tables; or create them."),
    "adopt": ("adopt:adopt", "Take over tables that autogenerate made."),
    "upgrade": ("upgrade:upgrade", "Upgrade tables of an earlier version."),
    "sql": ("sql:sql", "Print the SQL of install or upgrade."),
    "check": ("check:check", "Check that tables, migrations, targets and keys fit."),
    "rotate-keys": ("rotation:rotate_keys", "Encrypt again what is under an old key."),
    "keys": ("keys:keys", "Generate a key; list keys and what is under them."),
    "config": ("config:config", "Show each setting, and where it comes from."),
    "completion": ("completion:completion", "Print the script that completes commands in your shell."),
    "version": ("version:version", "Show the versions of the library and what it uses."),
    "demo": ("demo:demo", "Watch an outbox at work in this terminal."),
}


class Closed(Exception):
    """The reader of our standard output has closed it."""


class Commands(click.Group):
    """A group that knows its commands by name, so that `--help` imports no library that a command needs."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[WORDS] = (NAME, *args)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return _imported(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not ctx.resilient_parsing:
            ctx.fail(f"there is no command {args[0]!r}{near(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # click's own way imports every command for its help.
        named = [
            CompletionItem(name, help=words) for name, (_, words) in COMMANDS.items() if name.startswith(incomplete)
        ]
        return [*named, *click.Command.shell_complete(self, ctx, incomplete)]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise Closed from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in COMMANDS.items()])


@click.group(cls=Commands, invoke_without_command=True, context_settings=SETTINGS)
@click.version_option(async_task.__version__, prog_name=NAME, message="%(prog)s %(version)s")
@reaching
@click.pass_context
def cli(ctx: click.Context, wanted: Wanted) -> int:
    """A call that must happen because data changed, happens: a transactional outbox for SQLAlchemy.

    The application is found by --app, ASYNC_TASK_APP or [tool.async-task] in pyproject.toml; without one,
    --database-url or ASYNC_TASK_DATABASE_URL names the database. Put these options before or after the command.
    """
    ctx.obj = wanted
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        return USAGE
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (default: those of this process) name, and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _open_closed()
    _print_anything()
    try:
        with terminable(is_last=arguments is None):
            if arguments is None:
                _import_quickly(given)
            code = _run(given)
            sys.stdout.flush()
            return code
    except (BrokenPipeError, Closed):
        close_output()
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Terminated as stopped:
        return stopped.exit_code


def _import_quickly(given: Sequence[str]) -> None:
    """Import the named command without the garbage collector, and keep what is imported out of its sight.

    For a process of our own: half of the CPU time of a short command was spent on looking for garbage among modules.
    """
    gc.disable()
    for name in [word for word in given if word in COMMANDS][:1]:
        with contextlib.suppress(Exception):  # raised again when the command is called, and reported there
            _imported(name)
    gc.freeze()
    gc.enable()


def _imported(name: str) -> click.Command:
    module, _, function = COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(f"async_task_cli.commands.{module}"), function)
    assert isinstance(command, click.Command)
    return command


def _run(given: list[str]) -> int:
    try:
        return int(cli.main(given, prog_name=NAME, standalone_mode=False) or 0)
    except Closed:
        raise
    except click.Abort:
        return INTERRUPTED
    except click.UsageError as error:
        return _say_usage(error)
    except click.ClickException as error:
        return _say(error.format_message(), error.exit_code)
    except Refusal as refusal:
        _show_trace(refusal, given)
        return _say(str(refusal), refusal.exit_code)
    except Exception as error:
        _show_trace(error, given)
        code, words = verdict(error)
        return _say(words, code)


def _say_usage(error: click.UsageError) -> int:
    if isinstance(error, NO_ARGUMENTS):
        click.echo(error.format_message(), err=True)
        return USAGE
    path = error.ctx.command_path if error.ctx else NAME
    return _say(f"{error.format_message().rstrip('.')}; see `{path} --help`", USAGE)


def _show_trace(error: Exception, given: Sequence[str]) -> None:
    if "--debug" in given:
        click.echo(trace_of(error), err=True, nl=False)


def _say(words: str, code: int) -> int:
    click.echo(f"{NAME}: {one_line(words)}", err=True)
    return code


def _open_closed() -> None:
    """Open standard streams that are closed: the command then reads nothing, and what it prints is lost."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - open until the process ends


def _print_anything() -> None:
    """A character that this terminal cannot show is printed as an escape; it never ends a command."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            reconfigure: Callable[..., Any] = stream.reconfigure  # type: ignore[union-attr]
            reconfigure(errors="backslashreplace")
