"""Keys of encryptors: each has an id; the first encrypts, all decrypt. No error, log or repr shows a secret."""

import base64
import binascii
import logging
import os
import re
import secrets
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from async_task.errors import AsyncTaskError, ConfigurationError, DecryptionFailed

KINDS = {"aes-gcm": 32, "fernet": 32}
"""The kinds of key, and how many bytes a key of each has."""
LONGEST_ID = 32
REFRESH_EVERY = 30.0
"""Seconds before a source is asked again for a key id that it did not return."""
OLD_AFTER = 60.0
"""Seconds after which a source is asked again for the first key: a producer meets no unknown key id that would show it
that there is a new one."""
FAILED_FOR = 1.0
"""Seconds before a source that failed is asked again: one that is down is not asked for every row."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_FORM = "id:kind:base64url, as `async-task keys generate` prints it"
_log = logging.getLogger("async_task")


@dataclass(frozen=True, slots=True)
class Key:
    """A key. `id` is in every ciphertext of the key, and is not secret; `kind` is "aes-gcm" or "fernet".

    The kind is part of a key, so that the same bytes are never used for two algorithms. Raises ConfigurationError,
    without the secret, for invalid values.
    """

    id: str
    kind: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not is_key_id(self.id):
            raise ConfigurationError("a key's id has 1 to 32 letters, digits, '.', '_' or '-', a letter or digit first")
        if self.kind not in KINDS:
            raise ConfigurationError(f"the key {self.id!r} is of an unknown kind: there are {', '.join(KINDS)}")
        secret: object = self.secret
        if not isinstance(secret, bytes) or len(secret) != KINDS[self.kind]:
            raise ConfigurationError(f"the key {self.id!r} is not {KINDS[self.kind]} bytes long")

    @classmethod
    def generate(cls, kind: str = "aes-gcm", *, id: str | None = None) -> "Key":
        """A new random key; the default `id` is the day and four random digits. Raises ConfigurationError."""
        if kind not in KINDS:
            raise ConfigurationError(f"kind is one of {', '.join(KINDS)}")
        made = time.strftime("%Y%m%d", time.gmtime()) + f"-{secrets.token_hex(2)}"
        return cls(made if id is None else id, kind, secrets.token_bytes(KINDS[kind]))

    @classmethod
    def parse(cls, text: object) -> "Key":
        """The key that a text `id:kind:base64url` describes. Raises ConfigurationError, which quotes nothing of the
        text but a valid id."""
        parts = text.strip().split(":") if isinstance(text, str) else []
        if len(parts) != 3 or not is_key_id(parts[0]) or parts[1] not in KINDS:
            raise ConfigurationError(f"it is not written {_FORM}")
        key_id, kind, encoded = parts
        try:
            secret = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        written = base64.urlsafe_b64encode(secret).decode()
        # A key has one spelling: the decoder also takes "+", "/", and a last character with bits that it ignores.
        if len(secret) != KINDS[kind] or encoded not in (written, written.rstrip("=")):
            raise ConfigurationError(f"the key {key_id!r} is not {KINDS[kind]} bytes in base64url")
        return cls(key_id, kind, secret)

    @property
    def text(self) -> str:
        """The whole key with its secret, as `parse` reads it."""
        return f"{self.id}:{self.kind}:{base64.urlsafe_b64encode(self.secret).decode()}"


KeyTexts = Iterable[str | Key]


class Keys:
    """Keys in order: the first encrypts, all decrypt. Ids are unique. Several threads may use it.

    `source`: a list of texts `id:kind:base64url`, or a callable that returns one (a KMS). The callable is called

    1. when a key is first needed; if it fails, that is raised, and it is not called again for one second;
    2. when a row names a key that it did not return, at most every 30 s;
    3. when a key is needed to encrypt, and its answer is 60 s old; if it fails, a warning is logged and the keys stay.

    So a process may encrypt under the old key until 60 s after the new one was put first. Run `rotate-keys` once more
    after that, before you remove the old key. A list never changes: restart every process.

    Raises ConfigurationError, which quotes nothing of a key but its id.
    """

    def __init__(self, source: "KeyTexts | Callable[[], KeyTexts]", *, name: str = "keys") -> None:
        self._name = name
        self._kind: str | None = None
        self._source = source if callable(source) else None
        self._keys: dict[str, Key] | None = None if callable(source) else self._read(source)
        self._asked_at = 0.0
        self._problem: str | None = None
        self._guard = threading.Lock()
        _made.add(self)

    @classmethod
    def from_environment(cls, variable: str) -> "Keys":
        """The keys in an environment variable, separated by commas or white space. It is read once: restart every
        process when it changes."""
        text = os.environ.get(variable)
        if not text or not text.strip():
            raise ConfigurationError(f"the environment variable {variable} is not set: it holds keys, each {_FORM}")
        return cls(text.replace(",", " ").split(), name=variable)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "Keys":
        """The keys in a file, one a line; lines that begin with # are skipped. It is read now, and again when a
        callable would be called. A file that users other than its owner and group can read or write is refused."""
        file = Path(path)
        keys = cls(lambda: _lines_of(file), name=str(file))
        keys._load()
        return keys

    @classmethod
    def of(cls, given: "Keys | KeyTexts | Callable[[], KeyTexts]") -> "Keys":
        return given if isinstance(given, Keys) else cls(given)

    def require(self, kind: str) -> None:
        """Require all keys to be of this kind, now and later. Raises ConfigurationError if one is not."""
        if self._kind not in (None, kind):
            raise ConfigurationError(f"{self._name}: the same keys are given for {self._kind} and for {kind}")
        self._kind = kind
        self._check_kind((self._keys or {}).values())

    @property
    def first(self) -> Key:
        """The key that encrypts."""
        return next(iter(self._fresh().values()))

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all keys, in order."""
        return tuple(self._fresh())

    def named(self, key_id: str) -> Key:
        """The key of this id. Raises DecryptionFailed, which names the missing id."""
        if key_id not in self._all():
            self._seek()
        keys = self._all()
        if key_id not in keys:
            raise DecryptionFailed(
                f"the key {key_id!r} is missing: there are {', '.join(keys)}; add it to {self._name}, after the first"
            )
        return keys[key_id]

    def unlock(self) -> None:
        """Make a new lock, in a forked child: the thread that had the old one is not in the child."""
        self._guard = threading.Lock()

    def __repr__(self) -> str:
        return f"<Keys {', '.join(self._keys)}>" if self._keys is not None else "<Keys, not read yet>"

    def _all(self) -> dict[str, Key]:
        return self._keys if self._keys is not None else self._load()

    def _load(self) -> dict[str, Key]:
        with self._guard:
            return self._keys if self._keys is not None else self._ask()

    def _seek(self) -> None:
        """Ask again, for a key that was missing."""
        with self._guard:
            if self._problem is not None or self._is_older_than(REFRESH_EVERY):
                self._ask()

    def _fresh(self) -> dict[str, Key]:
        """All keys. When they are old, one thread asks for them again, and the others use the old ones until then."""
        keys, guard = self._all(), self._guard
        if not self._is_older_than(OLD_AFTER) or not guard.acquire(blocking=False):
            return keys
        try:
            return self._ask() if self._is_older_than(OLD_AFTER) else self._keys or keys
        except AsyncTaskError as error:
            _log.warning("%s; the previous keys stay in use", error)
            return keys
        finally:
            guard.release()

    def _is_older_than(self, seconds: float) -> bool:
        return self._source is not None and time.monotonic() - self._asked_at >= seconds

    def _ask(self) -> dict[str, Key]:
        if self._problem is None or self._is_older_than(FAILED_FOR):
            self._problem = self._renew()
            self._asked_at = time.monotonic()
        if self._problem is not None or self._keys is None:
            raise ConfigurationError(self._problem)
        return self._keys

    def _renew(self) -> str | None:
        """Take the keys that the source returns. Returns the reason if that fails, else None."""
        assert self._source is not None
        try:
            self._keys = self._read(self._source())
        except AsyncTaskError as error:
            return str(error)
        except Exception as error:
            # The text of a KMS's error may quote what was sent to it.
            return f"{self._name} could not be read: {type(error).__name__}"
        return None

    def _read(self, given: KeyTexts) -> dict[str, Key]:
        if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
            raise ConfigurationError(f"{self._name}: keys are a list of texts, each {_FORM}")
        found: dict[str, Key] = {}
        for number, one in enumerate(given, 1):
            try:
                key = one if isinstance(one, Key) else Key.parse(one)
            except ConfigurationError as error:
                raise ConfigurationError(f"{self._name}: key {number} cannot be used: {error}") from None
            if key.id in found:
                raise ConfigurationError(f"{self._name}: two keys have the id {key.id!r}: give the new one another id")
            found[key.id] = key
        if not found:
            raise ConfigurationError(f"{self._name}: there is no key; make one with {_command(self._kind)}")
        self._check_kind(found.values())
        return found

    def _check_kind(self, keys: Iterable[Key]) -> None:
        for key in keys:
            if self._kind not in (None, key.kind):
                wrong = f"the key {key.id!r} is for {key.kind}, not for {self._kind}"
                raise ConfigurationError(f"{self._name}: {wrong}; make another with {_command(self._kind)}")


def _command(kind: str | None) -> str:
    options = " or ".join(f"--kind {one}" for one in KINDS) if kind is None else f"--kind {kind}"
    return f"`async-task keys generate {options}`"


_made: "weakref.WeakSet[Keys]" = weakref.WeakSet()


def _unlock_all() -> None:
    for keys in _made:
        keys.unlock()


os.register_at_fork(after_in_child=_unlock_all)


def is_key_id(text: object) -> bool:
    """Whether this is a valid id of a key."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def _lines_of(file: Path) -> list[str]:
    try:
        with file.open(encoding="utf-8") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            lines = [] if mode & stat.S_IRWXO else [line.strip() for line in opened]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the key file {file} cannot be read: {type(error).__name__}") from None
    if mode & stat.S_IRWXO:
        # A warning would not be read. The group may read it: mounted secrets of Kubernetes need that.
        raise ConfigurationError(f"the key file {file} is open to every user of this machine: chmod o= {file}")
    return [line for line in lines if line and not line.startswith("#")]
