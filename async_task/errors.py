"""The errors that are raised on purpose. Each message says what was given, what was expected, and what to do."""

from collections.abc import Iterable


class AsyncTaskError(Exception):
    """The base of all errors that async-task raises on purpose."""


class UnknownTarget(AsyncTaskError):
    """No target of that name is registered in this process."""


class UnknownMethod(AsyncTaskError):
    """The target has no such method, or not one that may be called."""


class InvalidArguments(AsyncTaskError):
    """The arguments do not fit the signature, or cannot be stored without loss. Nothing was written."""


class NoTransaction(AsyncTaskError):
    """No transaction was begun by this thread and asyncio task, and no `session=` was given."""


class AmbiguousTransaction(AsyncTaskError):
    """Several transactions are open in this thread and asyncio task: say which with `session=`."""


class InvalidState(AsyncTaskError):
    """The row is not in a state from which this verb is legal. Nothing was changed."""


class ClaimLost(AsyncTaskError):
    """Somebody else took or changed the attempt while this process believed that it held it."""


class UnknownAttempt(AsyncTaskError):
    """No attempt has this id, or several fit the part of an id that was given."""


class UnknownEncryptor(AsyncTaskError):
    """No encryptor of that name is known to this process."""


class DecryptionFailed(AsyncTaskError):
    """The stored arguments could not be decrypted: a wrong key, a broken text, or one moved from another row."""


class AlreadyRunning(AsyncTaskError):
    """Another batch is at work, and `overlap="fail"` was asked for. Nothing was done."""


class SchemaMismatch(AsyncTaskError):
    """The tables are missing, or of another version than this library needs."""


class ConfigurationError(AsyncTaskError):
    """Something was set up in a way that cannot work; the message says what to do."""


class LostAttemptWarning(UserWarning):
    """A session was closed without a commit while it held an attempt: that call will never be made."""


def near(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'this'?)` for the closest of the known names; empty when none is close."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
