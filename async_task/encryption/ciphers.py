"""The ready-made encryptors. Each ciphertext is an envelope: a version, the id of its key, and the cipher's output.

    version  1 byte: 1
    key id   32 bytes: ASCII, padded with NUL
    body     AES-GCM: a random nonce (12 bytes), ciphertext, tag (16). Fernet: a token, as bytes.

The 33 bytes of the head are 44 characters in base64. So SQL finds a row's key by the first characters of its text:
rotation needs no state, and rows under keys that nobody has any more can be counted too.
"""

import base64
import hashlib
import hmac
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from async_task.encryption.keys import LONGEST_ID, Keys, KeyTexts, is_key_id
from async_task.errors import ConfigurationError, DecryptionFailed

VERSION = b"\x01"
HEAD = len(VERSION) + LONGEST_ID
STORED_HEAD = HEAD * 4 // 3
"""The number of characters at the beginning of a row's text that identify its key."""
NONCE, DIGEST = 12, 32


class KeyedEncryptor(ABC):
    """The common base of the ready-made encryptors: keys with ids, and the envelope."""

    kind: ClassVar[str]

    def __init__(self, keys: "Keys | KeyTexts | Callable[[], KeyTexts]", *, name: str) -> None:
        given: object = name
        if not isinstance(given, str) or not 0 < len(given) <= 64:
            raise ConfigurationError("an encryptor's name is a text of 1 to 64 characters")
        self.name = name
        self.keys = Keys.of(keys)
        self.keys.require(self.kind)

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        """Encrypt under the first key; the ciphertext is bound to `context` and to this encryptor's name."""
        key = self.keys.first
        head = head_of(key.id)
        return head + self._encrypt(key.secret, plaintext, self._bound(head, context))

    def decrypt(self, ciphertext: bytes, *, context: bytes) -> bytes:
        """Raises DecryptionFailed, without content, for a missing or wrong key, another context or a changed text."""
        head, body = ciphertext[:HEAD], ciphertext[HEAD:]
        key_id = key_id_in(head)
        if key_id is None:
            raise DecryptionFailed(f"the stored arguments were not written by {self.name!r}")
        plaintext = self._decrypt(self.keys.named(key_id).secret, body, self._bound(head, context))
        if plaintext is None:
            raise DecryptionFailed(
                f"the key {key_id!r} of {self.name!r} does not open the arguments: another key of this id wrote them, "
                "or they were changed, or moved here from another row, target or method"
            )
        return plaintext

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {self.keys!r}>"

    def _bound(self, head: bytes, context: bytes) -> bytes:
        name = self.name.encode()
        return head + len(name).to_bytes(2, "big") + name + context

    @abstractmethod
    def _encrypt(self, secret: bytes, plaintext: bytes, bound: bytes) -> bytes:
        """The body of an envelope, bound to `bound`."""

    @abstractmethod
    def _decrypt(self, secret: bytes, body: bytes, bound: bytes) -> bytes | None:
        """The plaintext; None for another secret, a changed body, or another `bound`."""


class AesGcmEncryptor(KeyedEncryptor):
    """AES-256-GCM: `AesGcmEncryptor(Keys.from_environment("SHOP_KEYS"))`. The first key encrypts, all decrypt.

    The context is associated data. Nonces are random: use a new key before the old one has encrypted 2**32 attempts.
    """

    kind = "aes-gcm"

    def __init__(self, keys: "Keys | KeyTexts | Callable[[], KeyTexts]", *, name: str = "aes-gcm") -> None:
        super().__init__(keys, name=name)

    def _encrypt(self, secret: bytes, plaintext: bytes, bound: bytes) -> bytes:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(NONCE)
        return nonce + AESGCM(secret).encrypt(nonce, plaintext, bound)

    def _decrypt(self, secret: bytes, body: bytes, bound: bytes) -> bytes | None:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            return AESGCM(secret).decrypt(body[:NONCE], body[NONCE:], bound)
        except (InvalidTag, ValueError):  # ValueError: too short to hold a nonce
            return None


class FernetEncryptor(KeyedEncryptor):
    """Fernet (AES-128-CBC with HMAC-SHA256): `FernetEncryptor(Keys.from_file("/run/secrets/shop"))`.

    Fernet has no associated data: a digest of the context goes before the plaintext, and the token authenticates both.
    """

    kind = "fernet"

    def __init__(self, keys: "Keys | KeyTexts | Callable[[], KeyTexts]", *, name: str = "fernet") -> None:
        super().__init__(keys, name=name)

    def _encrypt(self, secret: bytes, plaintext: bytes, bound: bytes) -> bytes:
        from cryptography.fernet import Fernet

        token = Fernet(base64.urlsafe_b64encode(secret)).encrypt(hashlib.sha256(bound).digest() + plaintext)
        return base64.urlsafe_b64decode(token)

    def _decrypt(self, secret: bytes, body: bytes, bound: bytes) -> bytes | None:
        from cryptography.fernet import Fernet, InvalidToken

        try:
            opened = Fernet(base64.urlsafe_b64encode(secret)).decrypt(base64.urlsafe_b64encode(body))
        except InvalidToken:
            return None
        is_bound_here = hmac.compare_digest(opened[:DIGEST], hashlib.sha256(bound).digest())
        return opened[DIGEST:] if is_bound_here else None


def head_of(key_id: str) -> bytes:
    """The head of every ciphertext under this key."""
    return VERSION + key_id.encode("ascii").ljust(LONGEST_ID, b"\0")


def stored_head_of(key_id: str) -> str:
    """The same in base64: the first `STORED_HEAD` characters of a row's text."""
    return base64.b64encode(head_of(key_id)).decode()


def key_id_in(head: bytes) -> str | None:
    """The id of the key in the head of an envelope; None if this is not such a head."""
    key_id = head[len(VERSION) :].rstrip(b"\0").decode("ascii", "replace")
    return key_id if is_key_id(key_id) and head == head_of(key_id) else None


def refuse_missing_key(encryptor: object, stored: str) -> None:
    """Raises DecryptionFailed if `encryptor` does not have the key of a row whose text begins with `stored`.

    Nothing is decrypted. An encryptor without keys is accepted.
    """
    if not isinstance(encryptor, KeyedEncryptor):
        return
    if key_id_stored(stored) is None:
        raise DecryptionFailed(f"the stored arguments were not written by {encryptor.name!r}")
    if (problem := problem_with_key(encryptor, stored)) is not None:
        raise DecryptionFailed(problem)


def problem_with_key(encryptor: object, stored: str) -> str | None:
    """What to say of the key of a row whose text begins with `stored`, if `encryptor` does not have it; else None.
    Raises what the source of its keys raises."""
    key_id = key_id_stored(stored) if isinstance(encryptor, KeyedEncryptor) else None
    if key_id is None or not isinstance(encryptor, KeyedEncryptor):
        return None
    try:
        encryptor.keys.named(key_id)
    except DecryptionFailed:
        known = ", ".join(encryptor.keys.ids)
    else:
        return None
    return f"they are under the key {key_id!r} of {encryptor.name!r}, which this process does not have: it has {known}"


def key_id_stored(text: str) -> str | None:
    """The id of the key of a row, from the beginning of its text; None if no ready-made encryptor wrote it."""
    try:
        return key_id_in(base64.b64decode(text[:STORED_HEAD], validate=True))
    except ValueError:
        return None
