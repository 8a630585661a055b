"""Why the call of a waiting row cannot be made with what this process knows: a key is missing, or the arguments no
longer fit. No sentence quotes an argument."""

from async_task.arguments.decoding import decode
from async_task.encryption.ciphers import key_id_stored, problem_with_key
from async_task.encryption.encryptors import NullEncryptor, encryptor_named
from async_task.errors import AsyncTaskError, ConfigurationError, InvalidArguments, UnknownEncryptor
from async_task.targets.registry import target_named

UNFIT = InvalidArguments.__name__
"""How the last error of a call begins whose arguments did not fit when it was made."""


class KeyProblems:
    """Why this process cannot decrypt rows; each encryptor and key is looked for once, as installed packages are
    searched, and a source of keys may be asked."""

    def __init__(self) -> None:
        self._unknown: dict[str, bool] = {}
        self._missing: dict[tuple[str, str | None], str | None] = {}

    def of(self, encryptor: str, head: str) -> str | None:
        """`head`: the beginning of the stored text, which names the key. None where it can be decrypted, and where the
        source of the keys cannot be read."""
        if encryptor == NullEncryptor.name:
            return None
        if encryptor not in self._unknown:
            self._unknown[encryptor] = _is_unknown(encryptor)
        if self._unknown[encryptor]:
            return f"they are encrypted by {encryptor!r}, which this process does not know"
        key = (encryptor, key_id_stored(head))
        if key not in self._missing:
            self._missing[key] = _missing(encryptor, head)
        return self._missing[key]


def _is_unknown(encryptor: str) -> bool:
    try:
        encryptor_named(encryptor)
    except UnknownEncryptor:
        return True
    except Exception:  # installed, and broken here: it says nothing about the row
        return False
    return False


def _missing(encryptor: str, head: str) -> str | None:
    try:
        return problem_with_key(encryptor_named(encryptor), head)
    except Exception:  # of a source of keys
        return None


def argument_problem(target: str, method: str, encryptor: str, text: str) -> str | None:
    """Why arguments that are stored as `text` do not fit the signature that this process knows. None where they fit,
    where the call is not known here, and where they are encrypted: nothing is decrypted to explain."""
    if encryptor != NullEncryptor.name:
        return None
    try:
        signature = target_named(target).method(method).signature
        signature.check(decode(text), may_change=True)
    except ConfigurationError:
        return None
    except InvalidArguments as problem:
        return str(problem)
    except AsyncTaskError:
        return None
    except Exception as error:  # of a validator of the user's: its text may quote the arguments
        return f"a validator raised {type(error).__name__}"
    return None
