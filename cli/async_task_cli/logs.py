"""Logs of long-running commands: on standard error, one line each, as text or JSON. No arguments, no passwords."""

import contextlib
import datetime as dt
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, TypeVar

import click

from async_task import AsyncTaskError, current_attempt
from async_task_cli.faults import scrubbed, trace_of

TEXT, JSON = "text", "json"
FIELDS = ("attempt_id", "target", "method", "queue", "try", "outcome", "error")
"""Fields of a record about an attempt."""
F = TypeVar("F", bound=Callable[..., Any])


def logged(command: F) -> F:
    """The options of a command that logs: it is called with `log_format` and `service`, for `log_lines`."""
    command = click.option(
        "--service", envvar="ASYNC_TASK_SERVICE", metavar="NAME",
        help="The `service` of its lines in a JSON log [default: the name of the command].",
    )(command)  # fmt: skip
    return click.option(
        "--log-format", envvar="ASYNC_TASK_LOG_FORMAT", type=click.Choice([TEXT, JSON]),
        help="Format of the log on standard error: text, unless the application has configured logging.",
    )(command)  # fmt: skip


class Lines(logging.Formatter):
    """One line for each record: text, or a JSON object with `@timestamp` (ISO 8601, UTC), `level`, `message`, `domain`,
    `service`, `worker`, `logger`, `thread`, and where a record has them, `trace`, `stack` and the FIELDS. What a target
    logs has those of its attempt.

    `worker`: to be set when the worker's name is known; until then it is the process.
    """

    def __init__(self, kind: str, service: str) -> None:
        super().__init__()
        self._kind = kind
        self._service = service
        self._domain = os.environ.get("ASYNC_TASK_DOMAIN") or socket.gethostname()
        self.worker = f"{socket.gethostname()}:{os.getpid()}"

    def format(self, record: logging.LogRecord) -> str:
        when = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
        message = scrubbed(record.getMessage())
        more = _traces(record)
        if self._kind == TEXT:
            return "\n".join([f"{when} {record.levelname} {message}", *(text.rstrip() for text in more.values())])
        fields = {
            "@timestamp": when, "level": record.levelname, "message": message, "domain": self._domain,
            "service": self._service, "worker": self.worker, "logger": record.name, "thread": record.threadName,
        }  # fmt: skip
        about = {name: _shown(getattr(record, name)) for name in FIELDS if hasattr(record, name)}
        return json.dumps(fields | _of_the_call() | about | more)

    def said(self, words: str, level: int = logging.INFO) -> str:
        """The line for `words`, for a signal handler, which must not use a logger."""
        return self.format(logging.LogRecord("async_task", level, "", 0, words, None, None)) + "\n"


def _traces(record: logging.LogRecord) -> dict[str, str]:
    """The traceback of the record's error, and the stack that it was logged with."""
    error = record.exc_info[1] if record.exc_info else None
    trace = {} if error is None else {"trace": trace_of(error)}
    return trace | ({"stack": scrubbed(record.stack_info)} if record.stack_info else {})


def _of_the_call() -> dict[str, object]:
    """The FIELDS of the attempt that is performed here, if any: a record is formatted where it is logged."""
    try:
        one = current_attempt()
    except AsyncTaskError:
        return {}
    return {
        "attempt_id": str(one.id), "target": one.target, "method": one.method, "queue": one.queue, "try": one.number,
    }  # fmt: skip


def _shown(value: object) -> object:
    """The value of a field, which a program may have given as whatever it had: an id, an exception."""
    if value is None or isinstance(value, bool | int | float):
        return value
    try:
        return scrubbed(str(value))
    except Exception as error:
        return f"<a {type(value).__name__} that cannot be read: {type(error).__name__}>"


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to the current standard error, which a live view replaces for a time."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def log_lines(kind: str | None, service: str) -> Lines:
    """Log everything from INFO on in this way, as this service. Logging that the application has set up stays as it is,
    unless a `kind` was asked for: so call it when the application has been imported, and with a `kind` before too."""
    lines, root = Lines(kind or TEXT, service), logging.getLogger()
    if kind is None and root.handlers:
        return lines
    handler = _Handler()
    handler.setFormatter(lines)
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    return lines


@contextlib.contextmanager
def without_final_failures() -> Iterator[None]:
    """For a command that tells final failures itself. Where nobody has set up logging, Python would print each of their
    records on standard error besides."""
    logger = logging.getLogger("async_task")
    if logger.hasHandlers():
        yield
        return
    logger.addFilter(_is_no_final_failure)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_final_failure)


def _is_no_final_failure(record: logging.LogRecord) -> bool:
    return not hasattr(record, "outcome")
