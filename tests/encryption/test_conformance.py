"""The conformance test for encryptors: it accepts the ready-made ones, and names each rule that one breaks."""

from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from async_task import (
    AesGcmEncryptor,
    ConfigurationError,
    DecryptionFailed,
    NullEncryptor,
    check_encryptor,
)
from async_task.encryption.conformance import SECRET
from outbox import BOX
from vaults import OLD, each_kind, made


@each_kind
def test_the_ready_made_encryptors_conform(kind: str) -> None:
    check_encryptor(made(kind, "new", "old"))


class Faulty:
    """An encryptor that conforms, but for `fault`."""

    name = "test.faulty"

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self._cipher = AesGcmEncryptor([OLD])
        if fault == "no name":
            self.name = ""
        if fault == "called null":
            self.name = "null"

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        if self.fault == "refuses nothing" and not plaintext:
            raise ValueError("nothing to encrypt")
        if self.fault == "too much" and len(plaintext) > 65_536:
            raise ValueError(plaintext)
        sealed = self._cipher.encrypt(plaintext, context=self._context(context))
        if self.fault == "text":
            return cast(bytes, sealed.hex())
        if self.fault == "one nonce":
            return AESGCM(OLD.secret).encrypt(b"n" * 12, plaintext, context)
        if self.fault == "ignores a byte":
            return sealed + b"\0"
        return sealed + plaintext if self.fault == "shows it" else sealed

    def decrypt(self, ciphertext: bytes, *, context: bytes) -> bytes:
        if self.fault == "ignores a byte":
            ciphertext = ciphertext[:-1]
        if self.fault == "one nonce":
            return AESGCM(OLD.secret).decrypt(b"n" * 12, ciphertext, context)
        try:
            plaintext = self._cipher.decrypt(ciphertext, context=self._context(context))
        except DecryptionFailed as error:
            if self.fault == "quotes":
                raise ValueError(f"no {SECRET!r}") from None
            if self.fault == "quotes behind":
                raise ValueError("no") from ValueError(SECRET)
            if self.fault == "takes anything":
                return b""
            raise error
        return plaintext.strip(b"\0") if self.fault == "strips" else plaintext

    def _context(self, context: bytes) -> bytes:
        row, target_name, method_name = context[:27], *context[28:].split(b"\0", 1)
        bound = {
            "unbound": b"", "binds 22 bytes": context[:22], "binds the row": row, "binds the target": row + target_name,
            "binds the method": row + method_name, "binds all but the last byte": context[:-1],
        }  # fmt: skip
        return bound.get(self.fault, context)


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("no name", "it needs a name (1 to 64 characters)"),
        ("called null", "the name 'null' says that nothing is encrypted"),
        ("unbound", "it decrypts a ciphertext of another context: a moved row"),
        ("binds 22 bytes", "it decrypts a ciphertext of another context: a moved row"),
        ("binds the row", "it decrypts a ciphertext of another context: a moved row"),
        ("binds the target", "it decrypts a ciphertext of another context: a moved row"),
        ("binds the method", "it decrypts a ciphertext of another context: a moved row"),
        ("binds all but the last byte", "it decrypts a ciphertext of another context: a moved row"),
        ("one nonce", "the same plaintext has the same ciphertext: use a new nonce each time"),
        ("refuses nothing", "an empty text cannot be encrypted and decrypted: ValueError"),
        ("too much", "1 MB cannot be encrypted and decrypted: ValueError"),
        ("shows it", "the ciphertext contains the plaintext"),
        ("text", "encrypt() returns bytes, not str"),
        ("strips", "every byte is changed by encrypt() and decrypt()"),
        ("ignores a byte", "it decrypts a ciphertext that was changed or cut"),
        ("takes anything", "it decrypts a ciphertext that was changed or cut"),
        ("quotes", "what it raises quotes the plaintext"),
        ("quotes behind", "what it raises quotes the plaintext"),
    ],
)
def test_check_encryptor_names_the_broken_rule(fault: str, rule: str) -> None:
    check_encryptor(Faulty("none"))
    with pytest.raises(ConfigurationError) as raised:
        check_encryptor(Faulty(fault))
    assert rule in str(raised.value)
    assert "conformance-canary" not in str(raised.value)


@pytest.mark.parametrize("given", [NullEncryptor(), BOX, AesGcmEncryptor, object()])
def test_check_encryptor_refuses_what_is_not_an_encryptor(given: Any) -> None:
    with pytest.raises(ConfigurationError):
        check_encryptor(given)
