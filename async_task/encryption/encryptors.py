"""Encryptors: their interface, those that this process knows, and sealing and unsealing the text of a row."""

import base64
import contextlib
import threading
import uuid
from importlib import metadata
from typing import Any, Protocol, runtime_checkable

from async_task.errors import AsyncTaskError, ConfigurationError, DecryptionFailed, UnknownEncryptor

GROUP = "async_task.encryptors"
"""The entry-point group by which an installed package provides encryptors."""


@runtime_checkable
class Encryptor(Protocol):
    """Encrypts the arguments of attempts; several threads use it at a time. `name` (1 to 64 characters) is what the row
    stores; never an import path. `check_encryptor` tests an implementation."""

    name: str

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        """The ciphertext, bound to `context`: the row, its target and its method. If this raises, no attempt is
        created."""
        ...

    def decrypt(self, ciphertext: bytes, *, context: bytes) -> bytes:
        """The plaintext. Raises DecryptionFailed, without content, for a missing key, a changed ciphertext, and one of
        another context. Any exception parks the attempt."""
        ...


class NullEncryptor:
    """The default: arguments are stored as JSON text, unencrypted."""

    name = "null"

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        return plaintext

    def decrypt(self, ciphertext: bytes, *, context: bytes) -> bytes:
        return ciphertext


_known: dict[str, Encryptor] = {NullEncryptor.name: NullEncryptor()}


def register_encryptor(encryptor: Encryptor) -> Encryptor:
    """Register `encryptor` in this process under its name, and return it; a later one of the same name replaces it.

    Raises ConfigurationError for a class, and for an encryptor without a name of 1 to 64 characters.
    """
    check_shape(encryptor)
    _known[encryptor.name] = encryptor
    return encryptor


def check_shape(encryptor: object) -> None:
    """Raises ConfigurationError unless this is an instance with encrypt(), decrypt() and a valid name."""
    if isinstance(encryptor, type):
        raise ConfigurationError(f"{encryptor.__name__} is a class: give an instance: {encryptor.__name__}()")
    name = getattr(encryptor, "name", None)
    if not isinstance(name, str) or not 0 < len(name) <= 64 or not isinstance(encryptor, Encryptor):
        kind = type(encryptor).__name__
        raise ConfigurationError(
            f"{kind} is not an encryptor: it needs a name (1 to 64 characters), encrypt() and decrypt()"
        )
    if name == NullEncryptor.name and not isinstance(encryptor, NullEncryptor):
        raise ConfigurationError("the name 'null' says that nothing is encrypted: give this encryptor another one")


def known_encryptors() -> list[Encryptor]:
    """All encryptors that this process knows, sorted by name, with those of installed packages that can be loaded."""
    for entry in metadata.entry_points(group=GROUP):
        with contextlib.suppress(AsyncTaskError):
            encryptor_named(entry.name)
    return [encryptor for _, encryptor in sorted(_known.items())]


def encryptor_named(name: str) -> Encryptor:
    """The encryptor of this name: a registered one, or an entry point of the group `async_task.encryptors`.

    Raises UnknownEncryptor; ConfigurationError if the entry point provides an encryptor of another name.
    """
    if name in _known:
        return _known[name]
    for entry in metadata.entry_points(group=GROUP, name=name):
        known = register_encryptor(_loaded(entry))
        if known.name != name:
            raise ConfigurationError(f"the entry point {name!r} provides an encryptor named {known.name!r}: rename one")
        return known
    raise UnknownEncryptor(
        f"no encryptor is named {name!r} in this process: it knows {', '.join(sorted(_known))}; "
        "give it to AsyncTask(encryptors=[...]) or install the package that provides it"
    )


def _loaded(entry: metadata.EntryPoint) -> Encryptor:
    try:
        made: Any = entry.load()
        encryptor: Encryptor = made() if isinstance(made, type) else made
        return encryptor
    except AsyncTaskError:
        raise
    except Exception as error:
        kind = type(error).__name__
    # Raised outside of the handler, without a cause: the text of the package's error may quote its settings.
    raise UnknownEncryptor(f"the encryptor {entry.name!r} is installed as {entry.value}, and loading it raised {kind}")


def encryptor_names() -> list[str]:
    """The names of all registered encryptors, and of those of installed packages, which are not loaded for this."""
    return sorted({*_known, *metadata.entry_points(group=GROUP).names})


def context_of(attempt_id: uuid.UUID, target: str, method_name: str) -> bytes:
    """The context that a row's ciphertext is bound to: its id, target and method. The table's name is not in it: a
    table that was renamed, or restored under another name, stays readable."""
    return b"\0".join((b"async-task", attempt_id.bytes, target.encode(), method_name.encode()))


def seal(text: str, encryptor: Encryptor, context: bytes) -> str:
    """`text` as a row stores it: unchanged with the NullEncryptor, else the ciphertext in base64.

    Raises ConfigurationError, without content, if the encryptor fails.
    """
    if encryptor.name == NullEncryptor.name:
        return text
    try:
        return base64.b64encode(encryptor.encrypt(text.encode(), context=context)).decode()
    except BaseException as error:
        reason = _reason_of(error)
    raise ConfigurationError(f"the encryptor {encryptor.name!r} could not encrypt the arguments ({reason})")


def unseal(stored: str, encryptor: Encryptor, context: bytes) -> str:
    """The text that was sealed. Raises DecryptionFailed, without content, if the encryptor fails; an error of this
    library's own is raised unchanged."""
    if encryptor.name == NullEncryptor.name:
        return stored
    try:
        return encryptor.decrypt(_ciphertext_of(stored, encryptor), context=context).decode()
    except BaseException as error:
        # On another thread than the main one it is the encryptor's own: no signal is handled there.
        is_own = threading.current_thread() is not threading.main_thread()
        reason = type(error).__name__ if is_own and not isinstance(error, Exception) else _reason_of(error)
    raise DecryptionFailed(
        f"the encryptor {encryptor.name!r} could not decrypt the arguments ({reason}): "
        "a wrong key, a broken text, or one moved from another row"
    )


def _ciphertext_of(stored: str, encryptor: Encryptor) -> bytes:
    with contextlib.suppress(ValueError):
        return base64.b64decode(stored, validate=True)
    raise DecryptionFailed(f"the stored arguments are not base64: {encryptor.name!r} did not write them")


def _reason_of(error: BaseException) -> str:
    """The class name of the error: its text and its cause may quote the arguments.

    Raises an error of our own, without its cause, and what ends a process, thread or coroutine.
    """
    if isinstance(error, AsyncTaskError):
        error.__cause__ = error.__context__ = None
        raise error
    if not isinstance(error, Exception) and not _is_panic(error):
        raise error
    return type(error).__name__


def _is_panic(error: BaseException) -> bool:
    """Whether this is a panic of a library in Rust, which pyo3 derives from BaseException."""
    return (type(error).__module__, type(error).__name__) == ("pyo3_runtime", "PanicException")
