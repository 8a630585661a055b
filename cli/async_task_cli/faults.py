"""Errors, each as one sentence and one exit code."""

import difflib
import re
import traceback
from collections.abc import Iterable, Iterator

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
    """An error that is printed as it is, without a traceback; the command ends with `exit_code`."""

    def __init__(self, words: str, exit_code: int = UNEXPECTED) -> None:
        self.exit_code = exit_code
        super().__init__(words)


def verdict(error: Exception) -> tuple[int, str]:
    """The exit code that `error` leads to, and the sentence about it."""
    # Imported here: these libraries are loaded when they have raised something, and `--help` must not load them.
    from sqlalchemy.exc import DBAPIError

    import async_task as a

    missing = (a.UnknownTarget, a.UnknownMethod, a.UnknownEncryptor, a.DecryptionFailed)
    if isinstance(error, (*missing, a.ConfigurationError, a.SchemaMismatch)):
        return CONFIGURATION, str(error)
    if isinstance(error, a.AlreadyRunning):
        return NO_TIME_LEFT, str(error)
    if isinstance(error, a.AsyncTaskError):
        return UNEXPECTED, str(error)
    refused = error.orig if isinstance(error, DBAPIError) else error
    if a.is_unavailable(error):
        return UNREACHABLE, f"the database cannot be used: {driver_words(refused)}; check that it runs, and its URL"
    if isinstance(error, DBAPIError):
        return UNEXPECTED, f"the database refused: {driver_words(refused)} (--debug shows where)"
    return UNEXPECTED, f"unexpected {type(error).__name__}: {first_line(str(error))} (--debug shows where)"


def driver_words(error: BaseException | None) -> str:
    """The first line of a driver's message, without what it quotes of a row; of MySQL's pairs of code and text, the
    text. The lines behind the first one hold the whole row on PostgreSQL."""
    words = error.args[1] if error is not None and len(error.args) > 1 and isinstance(error.args[0], int) else error
    return first_line(_OF_A_ROW.sub("...", str(words)))


def trace_of(error: BaseException) -> str:
    """The traceback of `error` and of its causes, without the content of rows and the passwords of URLs."""
    return scrubbed("\nwhich led to:\n\n".join(reversed([_traced(one) for one in chain_of(error)])))


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and its causes, the last one first, each once: `raise error from error` is its own cause."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "").rstrip(".:;") or "nothing was said"


def one_line(text: str) -> str:
    """`text` on one line, without passwords and escape sequences, and of limited length."""
    words = "".join(char if char.isprintable() else " " for char in scrubbed(text))
    words = " ".join(words.split())
    return words if len(words) <= LONGEST else f"{words[:LONGEST]} ..."


def near(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'this'?)` for the closest of the known names; empty where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


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
