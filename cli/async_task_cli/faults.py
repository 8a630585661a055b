"""What went wrong, in one sentence and one exit code."""

import re
import socket
import traceback
from collections.abc import Iterator

UNEXPECTED, USAGE, SOME_FAILED, UNREACHABLE, NO_TIME_LEFT, CONFIGURATION = 1, 2, 3, 69, 75, 78
LONGEST = 600
_CREDENTIALS = re.compile(r"(?<=://)([^\s/:@]*):[^\s]*@")
_IN_QUERY = re.compile(r"([?&][\w.-]*(?:pass|pwd|secret|token|key)[\w.-]*=)[^&\s'\"]*", re.IGNORECASE)
_OF_A_ROW = re.compile(r"""(?<=Duplicate entry )'.*'(?= for key)|(?<=value: )'.*'(?= for )|(?<=: )".*""", re.DOTALL)
_DRIVERS = {
    "psycopg",
    "psycopg2",
    "asyncpg",
    "pymysql",
    "aiomysql",
    "asyncmy",
    "MySQLdb",
    "mysql",
    "sqlite3",
    "aiosqlite",
}


class Refusal(Exception):
    """Said as it is, without a traceback; the command ends with `exit_code`."""

    def __init__(self, words: str, exit_code: int = UNEXPECTED) -> None:
        self.exit_code = exit_code
        super().__init__(words)


def verdict(error: Exception) -> tuple[int, str]:
    """The exit code that `error` leads to, and what is said of it."""
    # Imported here: when something was raised by these libraries, they are loaded; and `--help` must not load them.
    from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

    from async_task import errors
    from async_task.database.driver_errors import is_unusable

    missing = (errors.UnknownTarget, errors.UnknownMethod, errors.UnknownEncryptor, errors.DecryptionFailed)
    if isinstance(error, (*missing, errors.ConfigurationError, errors.SchemaMismatch)):
        return CONFIGURATION, str(error)
    if isinstance(error, errors.AlreadyRunning):
        return NO_TIME_LEFT, str(error)
    if isinstance(error, errors.AsyncTaskError):
        return UNEXPECTED, str(error)
    refused = error.orig if isinstance(error, DBAPIError) else error
    if (isinstance(error, (OperationalError, InterfaceError)) and is_unusable(refused)) or _is_of_a_connection(error):
        return UNREACHABLE, f"the database cannot be used: {driver_words(refused)}; check that it runs, and its URL"
    if isinstance(error, DBAPIError):
        return UNEXPECTED, f"the database refused: {driver_words(refused)} (--debug shows where)"
    return UNEXPECTED, f"unexpected {type(error).__name__}: {first_line(str(error))} (--debug shows where)"


def driver_words(error: BaseException | None) -> str:
    """The first line of what a driver says, without what it quotes of a row; of MySQL's pairs of code and text, the
    text. Behind the first line, PostgreSQL tells the whole row."""
    words = error.args[1] if error is not None and len(error.args) > 1 and isinstance(error.args[0], int) else error
    return first_line(_OF_A_ROW.sub("...", str(words)))


def trace_of(error: BaseException) -> str:
    """The traceback of `error` and of what led to it, without what is in the rows, and the passwords of URLs."""
    return scrubbed("\nwhich led to:\n\n".join(reversed([_traced(one) for one in _chain(error)])))


def first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "").rstrip(".:;") or "nothing was said"


def one_line(text: str) -> str:
    """`text` on one line, without passwords, escape sequences and the rest of a novel."""
    words = "".join(char if char.isprintable() else " " for char in scrubbed(text))
    words = " ".join(words.split())
    return words if len(words) <= LONGEST else f"{words[:LONGEST]} ..."


def scrubbed(text: str) -> str:
    """`text` without the passwords of the URLs in it, before the host or in the query."""
    return _IN_QUERY.sub(r"\1***", _CREDENTIALS.sub(r"\1:***@", text))


def _traced(error: BaseException) -> str:
    packages = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    if packages & {*_DRIVERS, "sqlalchemy"}:
        said = f"{type(error).__module__}.{type(error).__qualname__}: {driver_words(getattr(error, 'orig', error))}\n"
    else:
        said = "".join(traceback.format_exception_only(error))
    return f"Traceback (most recent call last):\n{''.join(traceback.format_tb(error.__traceback__))}{said}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what it came of, the last one first."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_of_a_connection(error: Exception) -> bool:
    # asyncpg's own errors come through SQLAlchemy as they are while a connection is being made.
    is_asyncpg = type(error).__module__.partition(".")[0] == "asyncpg"
    return is_asyncpg or isinstance(error, (ConnectionError, socket.gaierror, TimeoutError))
