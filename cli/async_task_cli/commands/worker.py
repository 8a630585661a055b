"""`async-task worker`."""

import contextlib
import dataclasses
import datetime as dt
import gc
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

import async_task
from async_task import AsyncTask, AttemptWorker, Outcome, Supervisor
from async_task_cli.application import existing, find_app
from async_task_cli.faults import USAGE, Refusal, one_line
from async_task_cli.logs import Lines, log_lines, logged
from async_task_cli.moments import Length
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.queue_names import why_unknown
from async_task_cli.reloading import Reload
from async_task_cli.signals import Leave, end
from async_task_cli.terminal import counted, is_watched

logger = logging.getLogger("async_task")
ENDED = {
    "Succeeded": "succeeded", "Retried": "retried", "Failed": "failed", "Expired": "expired",
    "Canceled": "canceled", "Parked": "parked", "Superseded": "superseded",
}  # fmt: skip
"""The key in the JSON report of each outcome that counts as performed."""
QUICK_GRACE = dt.timedelta(seconds=5)
"""Of a worker that begins anew when a file changes: a person waits for it."""


class QueueThreads(click.ParamType):  # type: ignore[type-arg]
    """The name of a queue, and the maximum of threads that serve it: `mail`, `mail:2`. What is no number belongs to the
    name: the queue of a target is named as its target, `shop.outbox:Mail`."""

    name = "queue"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int | None]:
        if isinstance(value, tuple):
            return value
        name, _, number = str(value).rpartition(":")
        if not str(value) or (not name and value != number):
            self.fail("the name of a queue is missing", param, ctx)
        if not name or number[:1].isalpha() or number[:1] == "_":
            return str(value), None
        if not (number.isascii() and number.isdigit() and int(number)):
            self.fail(f"{value!r}: write the number of threads after the colon, at least 1: mail:2", param, ctx)
        return name, int(number)


@dataclasses.dataclass(frozen=True, slots=True)
class Manner:
    """How the command reports."""

    is_json: bool
    is_top: bool
    reload: Reload | None


@click.command("worker", context_settings=SETTINGS)
@click.option(
    "--concurrency", type=click.IntRange(min=1), default=4, show_default=True, metavar="N",
    help="Threads of each process; each has a connection and makes calls.",
)  # fmt: skip
@click.option(
    "--queue", "queues", type=QueueThreads(), metavar="NAME[:N]", multiple=True,
    help="Serve only this queue, with at most N threads; may be repeated.",
)  # fmt: skip
@click.option(
    "--processes", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
    help="Worker processes. With 2 or more, a supervisor replaces one that dies, and recovers its attempts at once.",
)  # fmt: skip
@click.option(
    "--async-concurrency", type=click.IntRange(min=1), default=100, show_default=True, metavar="N",
    help="Maximum of running `async def` calls, in each process.",
)  # fmt: skip
@click.option(
    "--settle-within", type=Length(), default="5ms", show_default=True, metavar="TIME",
    help="A finished call is committed within this time, together with others; 0s: each has its own commit.",
)  # fmt: skip
@click.option(
    "--poll", type=Length(least="10ms", most="1h"), default="1s", show_default=True, metavar="TIME",
    help="Time between two polls when idle.",
)  # fmt: skip
@click.option(
    "--grace", type=Length(), default="30s", show_default=True, metavar="TIME",
    help="Time that running calls may take after SIGTERM; then they are abandoned.",
)  # fmt: skip
@click.option(
    "--listen/--no-listen", default=True, show_default=True,
    help="LISTEN for new attempts on PostgreSQL; not possible behind a pooler in transaction mode.",
)  # fmt: skip
@logged
@click.option(
    "--name", metavar="NAME",
    help="Take over from a dead worker of this name, on whatever machine it ran: its attempts are recovered at once.",
)  # fmt: skip
@click.option("--clock", "clock", is_flag=True, help="Enqueue by the schedule too; several workers may.")
@click.option("--top", "is_top", is_flag=True, help="Show a live view on the terminal; for one process.")
@click.option(
    "--reload", "is_reload", is_flag=True,
    help="For development: begin anew when a Python file of the application changes. --grace is 5s then, if not given.",
)  # fmt: skip
@as_json
@reaching
def worker(
    wanted: Wanted, is_json: bool, is_top: bool, is_reload: bool, processes: int, log_format: str | None,
    service: str | None, queues: Sequence[tuple[str, int | None]], grace: dt.timedelta, **options: Any,
) -> int:  # fmt: skip
    """Make all calls that become due, until SIGTERM or SIGINT.

    After the first signal no call is started, and running calls may finish within --grace. A second signal, or the end
    of the grace, abandons them: their attempts are released, uncharged, and another worker makes the calls again.

    The exit code is 143 after SIGTERM and 130 after SIGINT. It is 69 if the database is away at the start, and 78 if
    tables, keys or settings do not fit. If the database goes away later, the worker waits for it.

    With --name only one living worker has that name. It is 75 if another one has it, or takes it over. --processes N
    makes the names NAME-1 to NAME-N.

    --reload watches what is imported and not installed. On a change the worker stops as after a signal, and begins in a
    new interpreter. If the application cannot be imported, the log says why, and the next change tries again.

    TIME is like 5ms, 1s, 2min. The log goes to standard error, and so does what targets print.

    \b
    --json writes one object at the end:
      seconds     how long the worker ran
      succeeded, retried, failed, expired, canceled, parked, superseded
                  number of attempts with this outcome
    --log-format json writes one object a line:
      @timestamp (ISO 8601, UTC), level, message, domain (the host, or
      ASYNC_TASK_DOMAIN), service, worker, logger, thread, and trace after an error;
      of what a target logs also attempt_id, target, method, queue, try;
      of a try that raised and of a final failure these, and outcome, error
    Later versions may add fields; they rename none.
    """
    _check(processes, is_json=is_json, is_top=is_top, is_reload=is_reload)
    if log_format is not None:
        log_lines(log_format, service or "worker")
    manner = Manner(is_json, is_top, Reload() if is_reload else None)
    if manner.reload is not None:
        manner.reload.load(lambda: find_app(wanted))
        grace = grace if _is_given("grace") else QUICK_GRACE
    with existing(wanted) as app:
        lines = log_lines(log_format, service or "worker")
        made = app.worker(queues=dict(queues), processes=processes, grace=grace, **options)
        code = _work(app, made, manner, lines)
        if code is not None or manner.reload is None:
            return end(code or 0)
    return manner.reload.begin_anew()


def _check(processes: int, *, is_json: bool, is_top: bool, is_reload: bool) -> None:
    if is_top and processes > 1:
        raise Refusal("--top shows one process: omit --processes, or use `async-task workers`", USAGE)
    if is_reload and (is_json or is_top or processes > 1):
        other = "--processes" if processes > 1 else "--top" if is_top else "--json"
        raise Refusal(f"--reload is for one process and its log: omit {other}, or --reload", USAGE)
    if is_top and not is_watched():
        raise Refusal("--top needs a terminal, and standard error is not one: omit it, and read the log", USAGE)


def _is_given(option: str) -> bool:
    return click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE


def _work(app: AsyncTask, made: AttemptWorker | Supervisor, manner: Manner, lines: Lines) -> int | None:
    """Returns the exit code after a signal; None if it has ended without one."""
    started_at = time.monotonic()
    began = _supervise(app, made, lines) if isinstance(made, Supervisor) else _begin(app, made, lines)
    leave = Leave(made.stop, lines.said)
    with leave.listening(), contextlib.redirect_stdout(sys.stderr), _watched(app, made, manner, lines) as watch:
        tally = _by_key(made.run(began=lambda name: (began(name), watch())))
    _tell(tally, time.monotonic() - started_at, manner)
    return leave.exit_code


def _begin(app: AsyncTask, made: AttemptWorker, lines: Lines) -> Callable[[str], object]:
    """What is done when the worker in this process has begun."""
    # Objects of the start stay, and the garbage collector skips them: a quick call costs a seventh less.
    # `app.worker()` does not do this: the process belongs to its user. `gc.disable()` would save a little more, but
    # cycles that targets make would never be collected.
    gc.collect()
    gc.freeze()

    def began(name: str) -> None:
        lines.worker = name
        logger.info("%s: worker %s %s", _version(), name, _described(app, made))
        _warn_of_unknown_queues(app, made)

    return began


def _supervise(app: AsyncTask, made: Supervisor, lines: Lines) -> Callable[[str], object]:
    """What is done in each worker process when its worker has begun."""
    lines.worker = f"{lines.worker}:supervisor"
    logger.info("%s: %d processes %s", _version(), made.processes, _described(app, made))
    _warn_of_unknown_queues(app, made)

    def began(name: str) -> None:
        lines.worker = name
        logger.info("worker %s has begun", name)

    return began


@contextlib.contextmanager
def _watched(
    app: AsyncTask, made: AttemptWorker | Supervisor, manner: Manner, lines: Lines
) -> Iterator[Callable[[], object]]:
    """A live view, or a watch over the files, where it was requested; yields what starts it."""
    if manner.reload is not None:
        # Not before: the worker has forked by then what it forks without other threads.
        reload = manner.reload
        yield lambda: reload.watch(made.stop)
        return
    if not manner.is_top:
        yield lambda: None
        return
    from async_task_cli.top import Top

    with Top(app, lambda: (lines.worker, _by_key(made.tally))) as top:
        yield top.begin


def _version() -> str:
    return f"async-task {async_task.__version__}"


def _described(app: AsyncTask, made: AttemptWorker | Supervisor) -> str:
    """`on postgresql+psycopg:///shop, all queues, 12 targets, 4 threads, 100 coroutines`."""
    s = made.settings
    served = ((name, number) for name, number in s.queues.items() if name not in s.own_queues)
    queues = ", ".join(name if number is None else f"{name}:{number}" for name, number in served)
    return (
        f"on {app.address}, {f'queues {queues}' if queues else 'all queues'}, "
        f"{counted(len(app.target_names), 'target')}, {counted(s.concurrency, 'thread')}, "
        f"{counted(s.async_concurrency, 'coroutine')}"
    )


def _warn_of_unknown_queues(app: AsyncTask, made: AttemptWorker | Supervisor) -> None:
    for queue in made.settings.queues.keys() - made.settings.own_queues:
        if (why := why_unknown(app, queue)) is not None:
            logger.warning("%s", one_line(why))


def _by_key(tally: Counter[type[Outcome]]) -> dict[str, int]:
    return {ENDED[kind.__name__]: number for kind, number in tally.items() if kind.__name__ in ENDED}


def _tell(tally: Mapping[str, int], seconds: float, manner: Manner) -> None:
    if manner.is_json:
        numbers = {key: tally.get(key, 0) for key in ENDED.values()}
        click.echo(json.dumps({"seconds": round(seconds, 3), **numbers}))
    ended = ", ".join(f"{tally[key]:,} {key}" for key in ENDED.values() if tally.get(key))
    logger.info("ended after %s: %s", dt.timedelta(seconds=round(seconds)), ended or "nothing was due")
