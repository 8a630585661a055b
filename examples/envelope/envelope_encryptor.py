"""Envelope encryption: each attempt has a data key of its own, and a key service sees only data keys.

    row = length of the wrapped key (2 bytes), wrapped key, nonce (12 bytes), ciphertext and tag

`wrap` and `unwrap` are the Encrypt and Decrypt of a key service (KMS), with the context as its encryption context.
Without them, an AES-256-GCM key from the environment variable ENVELOPE_KEYS is used (`async-task keys generate`).
"""

import os
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from async_task import AesGcmEncryptor, DecryptionFailed, Keys

NONCE = 12
Service = Callable[[bytes, bytes], bytes]
"""Takes a data key, plain or wrapped, and the context. Returns the other form of the key."""


class EnvelopeEncryptor:
    """The encryptor named "envelope", wherever this package is installed."""

    name = "envelope"

    def __init__(self, wrap: Service | None = None, unwrap: Service | None = None) -> None:
        if wrap is None or unwrap is None:
            local = AesGcmEncryptor(Keys.from_environment("ENVELOPE_KEYS"), name=self.name)
            wrap = lambda key, context: local.encrypt(key, context=context)  # noqa: E731
            unwrap = lambda wrapped, context: local.decrypt(wrapped, context=context)  # noqa: E731
        self._wrap, self._unwrap = wrap, unwrap

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        data_key, nonce = AESGCM.generate_key(256), os.urandom(NONCE)
        wrapped = self._wrap(data_key, context)
        head = len(wrapped).to_bytes(2, "big") + wrapped + nonce
        return head + AESGCM(data_key).encrypt(nonce, plaintext, context)

    def decrypt(self, ciphertext: bytes, *, context: bytes) -> bytes:
        size = 2 + int.from_bytes(ciphertext[:2], "big")
        wrapped, nonce, body = ciphertext[2:size], ciphertext[size : size + NONCE], ciphertext[size + NONCE :]
        data_key = self._unwrap(wrapped, context)
        try:
            return AESGCM(data_key).decrypt(nonce, body, context)
        except (InvalidTag, ValueError):
            raise DecryptionFailed(f"the arguments under {self.name!r} were changed") from None
