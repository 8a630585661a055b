"""Logs of long-running commands: on standard error, one line each, as text or JSON. No arguments, no passwords."""

import contextlib
import datetime as dt
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from typing import TextIO

from async_task_cli.faults import scrubbed, trace_of

TEXT, JSON = "text", "json"
FIELDS = ("attempt_id", "target", "method", "queue", "outcome", "tries", "error")
"""Fields of a record about an attempt."""


class Lines(logging.Formatter):
    """One line for each record: text, or a JSON object with `time` (ISO 8601, UTC), `level`, `message`, `worker`,
    `logger`, and where a record has them, `trace` and the FIELDS.

    `worker`: to be set when the worker's name is known; until then it is the process.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind
        self.worker = f"{socket.gethostname()}:{os.getpid()}"

    def format(self, record: logging.LogRecord) -> str:
        when = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
        message = scrubbed(record.getMessage())
        error = record.exc_info[1] if record.exc_info else None
        if self._kind == TEXT:
            line = f"{when} {record.levelname} {message}"
            return line if error is None else f"{line}\n{trace_of(error).rstrip()}"
        fields = {"time": when, "level": record.levelname, "message": message, "worker": self.worker}
        trace = {} if error is None else {"trace": trace_of(error)}
        about = {name: _shown(getattr(record, name)) for name in FIELDS if hasattr(record, name)}
        return json.dumps(fields | {"logger": record.name} | about | trace)

    def said(self, words: str, level: int = logging.INFO) -> str:
        """The line for `words`, for a signal handler, which must not use a logger."""
        return self.format(logging.LogRecord("async_task", level, "", 0, words, None, None)) + "\n"


def _shown(value: object) -> object:
    return scrubbed(value) if isinstance(value, str) else value


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to the current standard error, which a live view replaces for a time."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def log_lines(kind: str | None) -> Lines:
    """Log everything from INFO on in this way. Logging that the application has set up stays as it is, unless a `kind`
    was asked for."""
    lines, root = Lines(kind or TEXT), logging.getLogger()
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
