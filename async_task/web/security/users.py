"""The users of `async-task web`: their names, and their passwords as plain text or as scrypt hashes."""

import base64
import hashlib
import hmac
import secrets

from async_task.errors import ConfigurationError

_HASH = "scrypt:"
_COST, _BLOCK = 2**14, 8
"""16 MB and some 50 ms for each try."""


def users_in(text: str) -> dict[str, str]:
    """The users and passwords of `anna:secret,bob:scrypt:...`, or of lines of `name:password`. Empty lines, and lines
    that begin with #, are left out; a comma separates users only in a single line. Raises ConfigurationError, which
    repeats no password."""
    lines = text.strip().splitlines()
    parts = lines if len(lines) > 1 else text.split(",")
    users: dict[str, str] = {}
    for number, part in enumerate((one.strip() for one in parts), start=1):
        if not part or part.startswith("#"):
            continue
        name, _, password = part.partition(":")
        if not (name and password):
            raise ConfigurationError(f"user {number} is not written name:password")
        if name in users:
            raise ConfigurationError(f"user {number} is there twice: {name!r}")
        if password.startswith(_HASH) and not _is_hash(password):
            raise ConfigurationError(f"the hash of user {name!r} is broken: make it with --hash-password")
        users[name] = password
    return users


def names_in(text: str) -> frozenset[str]:
    """The names of `anna,bob`."""
    return frozenset(name for one in text.split(",") if (name := one.strip()))


def hash_password(password: str) -> str:
    """`scrypt:SALT:HASH`, which `is_right` knows."""
    salt = secrets.token_bytes(16)
    return f"{_HASH}{_text(salt)}:{_text(_digest(password, salt))}"


def is_right(password: str, stored: str) -> bool:
    """Whether `stored` is this password, or a hash of it. The time that it takes tells nothing about either."""
    if not stored.startswith(_HASH):
        return is_same(password, stored)
    salt, digest = _parts(stored)
    return hmac.compare_digest(_digest(password, salt), digest)


def is_same(given: str, secret: str) -> bool:
    """Whether two texts are the same, in a time that depends on neither."""
    key = secrets.token_bytes(32)  # their MACs are compared, which have one length
    return hmac.compare_digest(*(hmac.digest(key, one.encode(), "sha256") for one in (given, secret)))


def unknown_password(known: list[str]) -> str:
    """A password that nobody has, and that is as slow to check as the slowest of these."""
    password = secrets.token_urlsafe(32)
    return hash_password(password) if any(one.startswith(_HASH) for one in known) else password


def _is_hash(stored: str) -> bool:
    try:
        return [len(part) for part in _parts(stored)] == [16, 32]
    except ValueError:
        return False


def _parts(stored: str) -> tuple[bytes, bytes]:
    """The salt and the digest. Raises ValueError."""
    salt, digest = stored.removeprefix(_HASH).split(":")
    return base64.b64decode(salt, validate=True), base64.b64decode(digest, validate=True)


def _digest(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=_COST, r=_BLOCK, p=1, dklen=32)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
