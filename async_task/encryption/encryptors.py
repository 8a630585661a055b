"""Encryptors: what one is, which are known to this process, and how a text becomes a row's sealed text."""

import base64
import contextlib
import uuid
from importlib import metadata
from typing import Any, Protocol, runtime_checkable

from async_task.errors import AsyncTaskError, ConfigurationError, DecryptionFailed, UnknownEncryptor

GROUP = "async_task.encryptors"
"""The entry points by which an installed package brings encryptors."""


@runtime_checkable
class Encryptor(Protocol):
    """Encrypts the arguments of attempts, in several threads at a time. `name` (1 to 64 characters) is what the row
    stores; never an import path. `check_encryptor` tests whether one keeps to this."""

    name: str

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        """The ciphertext, bound to `context`: the row, its target and its method. What it raises refuses the call."""
        ...

    def decrypt(self, ciphertext: bytes, *, context: bytes) -> bytes:
        """The plaintext. Raises DecryptionFailed, without content, for a key that is missing, a text that was changed,
        and one made under another context; whatever it raises parks the attempt."""
        ...


class NullEncryptor:
    """The default: arguments lie in the row as the JSON text they are."""

    name = "null"

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        return plaintext

    def decrypt(self, ciphertext: bytes, *, context: bytes) -> bytes:
        return ciphertext


_known: dict[str, Encryptor] = {NullEncryptor.name: NullEncryptor()}


def remember(encryptor: Encryptor) -> Encryptor:
    """Make `encryptor` known to this process under its name; a later one of the same name replaces it.

    Raises ConfigurationError when it is a class, has no name, or a name longer than the 64 characters a row has for it.
    """
    check_shape(encryptor)
    _known[encryptor.name] = encryptor
    return encryptor


def check_shape(encryptor: object) -> None:
    """Raises ConfigurationError for what cannot be an encryptor, whatever it does."""
    if isinstance(encryptor, type):
        raise ConfigurationError(f"{encryptor.__name__} is a class: give an instance: {encryptor.__name__}()")
    name = getattr(encryptor, "name", None)
    if not isinstance(name, str) or not 0 < len(name) <= 64 or not isinstance(encryptor, Encryptor):
        raise ConfigurationError(
            f"{type(encryptor).__name__} is no encryptor: it needs a name (1 to 64 characters), encrypt() and decrypt()"
        )
    if name == NullEncryptor.name and not isinstance(encryptor, NullEncryptor):
        raise ConfigurationError("the name 'null' says that nothing is encrypted: give this encryptor another one")


def known_encryptors() -> list[Encryptor]:
    """All that this process knows, by name, with those of installed packages that can be loaded."""
    for entry in metadata.entry_points(group=GROUP):
        with contextlib.suppress(AsyncTaskError):
            encryptor_named(entry.name)
    return [encryptor for _, encryptor in sorted(_known.items())]


def encryptor_named(name: str) -> Encryptor:
    """The encryptor of that name: one given to `AsyncTask(encryptors=[...])`, or an entry point of the group
    `async_task.encryptors`. Raises UnknownEncryptor."""
    if name in _known:
        return _known[name]
    for entry in metadata.entry_points(group=GROUP, name=name):
        known = remember(_loaded(entry))
        if known.name != name:
            raise ConfigurationError(f"the entry point {name!r} brings an encryptor named {known.name!r}: rename one")
        return known
    raise UnknownEncryptor(
        f"no encryptor is named {name!r} in this process: it knows {', '.join(sorted(_known))}; "
        "give it to AsyncTask(encryptors=[...]) or install the package that brings it"
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
    # Outside of the handler: what a package says while it is loaded may quote its settings.
    raise UnknownEncryptor(f"the encryptor {entry.name!r} is installed as {entry.value}, and to load it raised {kind}")


def encryptor_names() -> list[str]:
    """Those that are known to this process, and those that an installed package would bring, which are not loaded."""
    return sorted({*_known, *metadata.entry_points(group=GROUP).names})


def context_of(attempt_id: uuid.UUID, target: str, method_name: str) -> bytes:
    """What a ciphertext is bound to: the row's id, target and method."""
    return b"\0".join((b"async-task", attempt_id.bytes, target.encode(), method_name.encode()))


def seal(text: str, encryptor: Encryptor, context: bytes) -> str:
    """`text` as it is stored: as it is under the NullEncryptor, else base64 of the ciphertext.

    Raises ConfigurationError, without content, where the encryptor fails."""
    if encryptor.name == NullEncryptor.name:
        return text
    try:
        return base64.b64encode(encryptor.encrypt(text.encode(), context=context)).decode()
    except BaseException as error:
        reason = _reason_of(error)
    raise ConfigurationError(f"the encryptor {encryptor.name!r} could not encrypt the arguments ({reason})")


def unseal(stored: str, encryptor: Encryptor, context: bytes) -> str:
    """The text that `seal` was given. Raises DecryptionFailed, without content, whatever the encryptor raises but our
    own errors."""
    if encryptor.name == NullEncryptor.name:
        return stored
    try:
        return encryptor.decrypt(_ciphertext_of(stored, encryptor), context=context).decode()
    except BaseException as error:
        reason = _reason_of(error)
    raise DecryptionFailed(
        f"the encryptor {encryptor.name!r} could not decrypt the arguments ({reason}): "
        "a wrong key, a broken text, or one moved from another row"
    )


def _ciphertext_of(stored: str, encryptor: Encryptor) -> bytes:
    with contextlib.suppress(ValueError):
        return base64.b64decode(stored, validate=True)
    raise DecryptionFailed(f"the stored arguments are no base64: not what {encryptor.name!r} wrote")


def _reason_of(error: BaseException) -> str:
    """The name of its kind: what it says, or hangs behind it, may quote what the encryptor was given. Raises what is no
    failure of an encryptor (the end of this process, thread or coroutine), and our own errors with nothing behind."""
    if isinstance(error, AsyncTaskError):
        error.__cause__ = error.__context__ = None
        raise error
    if not isinstance(error, Exception) and not _is_panic(error):
        raise error
    return type(error).__name__


def _is_panic(error: BaseException) -> bool:
    """Whether a library in Rust broke down: pyo3 derives its error from BaseException."""
    return (type(error).__module__, type(error).__name__) == ("pyo3_runtime", "PanicException")
