"""The errors that async-task raises on purpose. Each message says what was given, what was expected, and what to do."""

import re
from collections.abc import Iterable

LONG_WORD = re.compile(r"(\S{100})\S{101,}")
LONGEST_MESSAGE = 4000


class AsyncTaskError(Exception):
    """The base of all errors that async-task raises on purpose. Catch it to catch them all.

    What was given is repeated in the message only as far as a person reads it: a word of more than 200 characters and a
    message of more than 4,000 are cut.
    """

    def __init__(self, message: object = "") -> None:
        text = LONG_WORD.sub(r"\1...", str(message))
        super().__init__(text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}...")


class UnknownTarget(AsyncTaskError):
    """No target of that name, or for that object, is registered in this process.

    Raised when a call is written, named on the command line, or given to `targets=`. Decorate the target with
    `@target`, and import its module here: `AsyncTask(modules=[...])`. A worker leaves such an attempt to other workers.
    """


class UnknownMethod(AsyncTaskError):
    """The target has no such method, or one that may not be called.

    Raised when a call is written. Use a public staticmethod, classmethod or function of it. A worker leaves such an
    attempt to other workers.
    """


class InvalidArguments(AsyncTaskError):
    """The arguments do not fit the method's signature, or cannot be stored without loss.

    Raised when a call is written, before anything is written. The message names the argument, not its value: pass what
    the annotation says. If stored arguments do not fit any more when the call is performed, this is the error of that
    try: it is charged, and retried by the target's policy.
    """


class NoTransaction(AsyncTaskError):
    """This thread and asyncio task have begun no transaction, and no `session=` was given.

    Raised when an attempt is created. Create it inside `with session.begin():`, or give `session=`.
    """


class AmbiguousTransaction(AsyncTaskError):
    """This thread and asyncio task have several open transactions, and no `session=` was given.

    Raised when an attempt is created. Choose one with `session=`.
    """


class InvalidState(AsyncTaskError):
    """The attempt is not in a state from which this change is legal. Nothing was changed.

    Raised by `expire`, `fail`, `cancel`, `retry_now` and `reschedule`, also while the attempt is being performed. Read
    the row again, and try later if it still needs the change.
    """


class ClaimLost(AsyncTaskError):
    """Another process has claimed or changed the attempt while this one believed that the claim was its own.

    Raised where a target first uses its session. Let it pass: the other process goes on with the attempt, and nothing
    of this call is written.
    """


class UnknownAttempt(AsyncTaskError):
    """No attempt has this id, or several fit the part of an id that was given. Or no row of a model has this key."""


class UnknownEncryptor(AsyncTaskError):
    """No encryptor of that name is known to this process.

    Raised when a call is written or arguments are read. Give it to `AsyncTask(encryptors=[...])`, or install the
    package that provides it. A worker leaves such an attempt to other workers.
    """


class DecryptionFailed(AsyncTaskError):
    """The stored arguments cannot be decrypted: a missing key, a changed text, or a text moved from another row.

    Raised when arguments are read. Add the missing key to the encryptor. A worker leaves attempts under a key that it
    does not have to other workers, and parks the others.
    """


class AlreadyRunning(AsyncTaskError):
    """Another batch is running, and this one was asked to fail in that case (`overlap="fail"`). Or another worker has
    the name of this one (`name=`), or has taken it over.

    Raised by `AsyncTask.run_batch`, before it does anything, and by the `run` of a worker.
    """


class SchemaMismatch(AsyncTaskError):
    """The tables are missing, or of another version than this library needs.

    Raised by the first use of an application's database. Run `async-task install` or `async-task upgrade`.
    """


class ConfigurationError(AsyncTaskError):
    """A setting, an option or a target's definition cannot work.

    Raised where it is given, at import time if possible. The message says what to change.
    """


class ReadTimeout(AsyncTaskError):
    """A statement took longer than `reading` allows, and the database ended it. Nothing was changed.

    Raised by the verbs of an application inside of `outbox.reading(within=2)`. Show older figures, or try later.
    """


class LostAttemptWarning(UserWarning):
    """A session that holds an attempt was closed without a commit: that call will never be made.

    Given for attempts that were created without `session=`. Commit the transaction, or roll it back.
    """


def near(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'this'?)` for the closest of the known names; empty when none is close."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
