"""The ready-made encryptors: keys, envelopes, and what a ciphertext is bound to."""

import base64
from typing import Any

import pytest

from async_task import (
    ConfigurationError,
    DecryptionFailed,
    Key,
)
from async_task.encryption import encryptors
from async_task.encryption.ciphers import STORED_HEAD, key_id_stored
from vaults import CANARY, CONTEXT, KINDS, each_kind, made


@each_kind
def test_the_first_key_encrypts_and_all_decrypt(kind: str) -> None:
    given: dict[str, Key] = {}
    before, after = made(kind, "old", given=given), made(kind, "new", "old", given=given)
    sealed = before.encrypt(b"secret", context=CONTEXT)
    assert after.decrypt(sealed, context=CONTEXT) == b"secret"
    again = after.encrypt(b"secret", context=CONTEXT)
    assert made(kind, "new", given=given).decrypt(again, context=CONTEXT) == b"secret"
    with pytest.raises(DecryptionFailed, match="the key 'new' is missing: there are old; add it to keys"):
        before.decrypt(again, context=CONTEXT)


@each_kind
def test_the_beginning_of_a_rows_text_identifies_its_key(kind: str) -> None:
    for key_id in ("k", "2026-11", "x" * 32):
        stored = encryptors.seal("{}", made(kind, key_id), CONTEXT)
        assert key_id_stored(stored) == key_id_stored(stored[:STORED_HEAD]) == key_id
    for text in ("{}", "", "x" * 44, base64.b64encode(b"\x02" + b"k".ljust(32, b"\0")).decode()):
        assert key_id_stored(text) is None


@each_kind
def test_another_key_of_the_same_id_decrypts_nothing_and_the_error_says_so(kind: str) -> None:
    sealed = made(kind, "k").encrypt(CANARY.encode(), context=CONTEXT)
    with pytest.raises(DecryptionFailed, match=r"the key 'k' of .* does not open the arguments") as raised:
        made(kind, "k").decrypt(sealed, context=CONTEXT)
    assert CANARY not in repr(raised.value)
    assert raised.value.__context__ is None


@each_kind
def test_a_ciphertext_with_another_key_id_is_refused(kind: str) -> None:
    key = Key.generate(kind, id="a")
    twin = Key("b", kind, key.secret)
    encryptor = KINDS[kind]([key, twin])
    sealed = encryptor.encrypt(b"secret", context=CONTEXT)
    with pytest.raises(DecryptionFailed):
        encryptor.decrypt(sealed.replace(b"\x01a", b"\x01b", 1), context=CONTEXT)


@each_kind
def test_a_ciphertext_of_an_encryptor_of_another_name_is_refused(kind: str) -> None:
    key = Key.generate(kind)
    sealed = KINDS[kind]([key], name="one").encrypt(b"secret", context=CONTEXT)
    with pytest.raises(DecryptionFailed):
        KINDS[kind]([key], name="two").decrypt(sealed, context=CONTEXT)


@each_kind
def test_the_same_plaintext_has_another_ciphertext_each_time(kind: str) -> None:
    encryptor = made(kind, "k")
    assert encryptor.encrypt(b"x", context=CONTEXT) != encryptor.encrypt(b"x", context=CONTEXT)


@each_kind
@pytest.mark.parametrize("name", ["", "x" * 65, None])
def test_a_name_that_no_row_can_hold_is_refused(kind: str, name: Any) -> None:
    with pytest.raises(ConfigurationError, match="1 to 64 characters"):
        KINDS[kind]([Key.generate(kind)], name=name)
