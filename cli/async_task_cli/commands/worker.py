"""`async-task worker`."""

import contextlib
import dataclasses
import datetime as dt
import gc
import json
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

import async_task
from async_task import AsyncTask, AttemptWorker, Outcome
from async_task.targets.registry import registered_targets
from async_task_cli.application import existing
from async_task_cli.faults import USAGE, Refusal
from async_task_cli.link import STOP, Link, obey
from async_task_cli.logs import JSON, TEXT, Lines, log_lines
from async_task_cli.moments import Length
from async_task_cli.options import SETTINGS, WORDS, Wanted, as_json, reaching
from async_task_cli.signals import Leave
from async_task_cli.supervisor import Supervisor, program
from async_task_cli.terminal import counted, is_watched

logger = logging.getLogger("async_task")
ENDED = {
    "Succeeded": "succeeded", "Retried": "retried", "Failed": "failed", "Expired": "expired",
    "Canceled": "canceled", "Parked": "parked", "Superseded": "superseded",
}  # fmt: skip
"""By the kind of an outcome: the word that programs read. What is not here was no performing."""


class QueueLanes(click.ParamType):  # type: ignore[type-arg]
    """The name of a queue, and how many lanes at most may serve it: `mail`, `mail:2`."""

    name = "queue"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int | None]:
        if isinstance(value, tuple):
            return value
        name, colon, number = str(value).rpartition(":")
        if not colon:
            name, number = number, ""
        if not name:
            self.fail("a name has at least one character", param, ctx)
        if not colon:
            return name, None
        if not (number.isascii() and number.isdigit() and int(number)):
            self.fail(f"{value!r}: behind the colon stands how many lanes, at least 1: mail:2", param, ctx)
        return name, int(number)


@dataclasses.dataclass(frozen=True, slots=True)
class Manner:
    """How the command works, beside what the worker itself is told."""

    is_json: bool
    is_top: bool
    processes: int | None
    link: int | None
    log_format: str | None


@click.command("worker", context_settings=SETTINGS)
@click.option(
    "--concurrency", type=click.IntRange(min=1), default=4, show_default=True, metavar="N",
    help="Lanes of each process: threads, each with a connection, that make calls.",
)  # fmt: skip
@click.option(
    "--queue", "queues", type=QueueLanes(), metavar="NAME[:N]", multiple=True,
    help="Only this queue, by at most N of the lanes; may be repeated.",
)  # fmt: skip
@click.option(
    "--processes", type=click.IntRange(min=1), metavar="P",
    help="So many processes, under a supervisor that starts one again that died, and gives back what it had in hand.",
)  # fmt: skip
@click.option(
    "--async-concurrency", type=click.IntRange(min=1), default=100, show_default=True, metavar="N",
    help="Calls of `async def` targets at a time, in each process.",
)  # fmt: skip
@click.option(
    "--settle-within", type=Length(), default="5ms", show_default=True, metavar="TIME",
    help="How long an outcome may wait to be committed with others; 0s: each has a commit of its own.",
)  # fmt: skip
@click.option("--poll", type=Length(), default="1s", show_default=True, metavar="TIME", help="Between two looks, idle.")
@click.option(
    "--grace", type=Length(), default="30s", show_default=True, metavar="TIME",
    help="How long calls may still take after SIGTERM; then they are abandoned.",
)  # fmt: skip
@click.option(
    "--listen/--no-listen", default=True, show_default=True,
    help="Hear of new attempts by PostgreSQL's LISTEN; not behind a pooler in transaction mode.",
)  # fmt: skip
@click.option(
    "--log-format", type=click.Choice([TEXT, JSON]),
    help="How standard error is written; text, unless the application has set up logging itself.",
)  # fmt: skip
@click.option("--top", "is_top", is_flag=True, help="Watch it at work, on a terminal; for one process.")
@click.option("--link", type=int, hidden=True, help="By which a supervisor speaks to this process.")
@as_json
@reaching
def worker(
    wanted: Wanted, is_json: bool, is_top: bool, processes: int | None, link: int | None, log_format: str | None,
    queues: Sequence[tuple[str, int | None]], **options: Any,
) -> int:  # fmt: skip
    """Make all calls that become due, until SIGTERM or SIGINT.

    At the first signal nothing further is started, and what is in hand is finished, within --grace. The second one, or
    the end of the grace, abandons it: it is given back, uncharged, for others to make the call again. It ends with 143
    (SIGTERM) or 130 (SIGINT); with 69 when the database is not there at the start, 78 when tables, keys or settings do
    not fit. A database that goes away later is waited for.

    TIME is like 5ms, 1s, 2min. Logs go to standard error; what targets print, too.

    \b
    --json writes one object at the end:
      seconds     how long it worked
      succeeded, retried, failed, expired, canceled, parked, superseded
                  how many attempts ended so
    --log-format json writes one object a line:
      time (ISO 8601, UTC), level, message, worker, logger, maybe trace
    Fields may be added, and are not renamed.
    """
    manner = Manner(is_json, is_top, processes, link, log_format)
    _check(manner)
    lines = log_lines(log_format)
    with existing(wanted) as app:
        # What cannot be meant is refused here, also by a supervisor.
        made = app.worker(queues=dict(queues), **options)
        if processes is not None and link is None:
            return _supervise(app, made, manner, lines)
        return _work(app, made, manner, lines)


def _check(manner: Manner) -> None:
    if manner.is_top and manner.processes is not None:
        raise Refusal("--top watches one process: leave --processes out, or ask `async-task workers`", USAGE)
    if manner.is_top and not is_watched():
        raise Refusal("--top wants a terminal, and standard error is none: leave it out, and read the logs", USAGE)


def _work(app: AsyncTask, made: AttemptWorker, manner: Manner, lines: Lines) -> int:
    """Be a worker, in this process."""
    link = None if manner.link is None else Link(manner.link)
    begun = time.monotonic()

    def begin(name: str) -> None:
        lines.worker = name
        if link is None:
            logger.info("%s: worker %s %s", _version(), name, _described(app, made))
            watch()
        else:
            logger.info("worker %s is at work", name)
            link.serve(made, lambda: _in_words(made.tally))

    stop = made.stop if link is None else lambda: obey(made, STOP)
    leave = Leave(stop, lines.said, is_patient=link is not None)
    _freeze()
    with leave.listening(), contextlib.redirect_stdout(sys.stderr), _watched(app, made, manner, lines) as watch:
        tally = _in_words(made.run(began=begin))
    if link is not None:
        link.report(tally)
    else:
        _tell(tally, time.monotonic() - begun, manner)
    return _end(leave.exit_code or 0)


def _freeze() -> None:
    """What this process has begun with stays, and is looked through for garbage no more: else a seventh of what a quick
    call costs it."""
    gc.collect()
    gc.freeze()


def _supervise(app: AsyncTask, made: AttemptWorker, manner: Manner, lines: Lines) -> int:
    """Be the supervisor of workers in processes of their own."""
    number = manner.processes or 1
    words = list(click.get_current_context().meta[WORDS])[1:]
    begun = time.monotonic()
    lines.worker = f"{lines.worker}:supervisor"
    logger.info("%s: %s %s", _version(), counted(number, "process", "processes"), _described(app, made))
    supervisor = Supervisor(program(words), number, bury=app.bury, grace=made.settings.grace)
    code = supervisor.run()
    if code in (0, 130, 143):
        _tell(supervisor.tally, time.monotonic() - begun, manner)
    return code


@contextlib.contextmanager
def _watched(app: AsyncTask, made: AttemptWorker, manner: Manner, lines: Lines) -> Iterator[Callable[[], object]]:
    """A live view, where one is wanted; what begins it."""
    if not manner.is_top:
        yield lambda: None
        return
    from async_task_cli.top import Top

    with Top(app, lambda: (lines.worker, _in_words(made.tally))) as top:
        yield top.begin


def _version() -> str:
    return f"async-task {async_task.__version__}"


def _described(app: AsyncTask, made: AttemptWorker) -> str:
    """`on postgresql+psycopg:///shop, all queues, 12 targets, 4 lanes, 100 coroutines`."""
    s = made.settings
    queues = ", ".join(name if number is None else f"{name}:{number}" for name, number in s.queues.items())
    return (
        f"on {app.address}, {f'queues {queues}' if queues else 'all queues'}, "
        f"{counted(len(registered_targets()), 'target')}, {counted(s.concurrency, 'lane')}, "
        f"{counted(s.async_concurrency, 'coroutine')}"
    )


def _in_words(tally: Counter[type[Outcome]]) -> dict[str, int]:
    return {ENDED[kind.__name__]: number for kind, number in tally.items() if kind.__name__ in ENDED}


def _tell(tally: Mapping[str, int], seconds: float, manner: Manner) -> None:
    """What it has done, at the end."""
    if manner.is_json:
        numbers = {word: tally.get(word, 0) for word in ENDED.values()}
        click.echo(json.dumps({"seconds": round(seconds, 3), **numbers}))
    ended = ", ".join(f"{tally[word]:,} {word}" for word in ENDED.values() if tally.get(word))
    logger.info("ended after %s: %s", dt.timedelta(seconds=round(seconds)), ended or "nothing was due")


def _end(code: int) -> int:
    """End this process now, if calls that were abandoned still go on in it: nobody else can end their threads."""
    left = [one for one in threading.enumerate() if one.name.startswith(("async-task-lane", "async-task-call"))]
    if not left:
        return code
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
