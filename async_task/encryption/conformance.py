"""The conformance test for encryptors, for the tests of their authors."""

import uuid
from collections.abc import Iterator

from async_task.encryption.encryptors import Encryptor, check_shape, context_of
from async_task.errors import ConfigurationError

ROW, TARGET, METHOD = uuid.UUID(int=2), "shop.orders", "charge"
CONTEXT = context_of(ROW, TARGET, METHOD)
ELSEWHERE = (
    context_of(uuid.UUID(int=3), TARGET, METHOD),
    context_of(ROW, "shop.orderz", METHOD),
    context_of(ROW, TARGET, "refund"),
    CONTEXT[:-1] + bytes([CONTEXT[-1] ^ 1]),
    CONTEXT[:-1],
)
SECRET = b'{"card": "conformance-canary-4929"}'
PLAINTEXTS = {
    "an empty text": b"",
    "a short text": b"{}",
    "text of any language": "{'naïve': '鍵 🔑'}".encode(),
    "every byte": bytes(range(256)),
    "1 MB": b"0123456789abcdef" * 65_536,
}


def check_encryptor(encryptor: Encryptor) -> None:
    """Raises ConfigurationError with one sentence for each rule that `encryptor` breaks:

    1. It has a name of 1 to 64 characters.
    2. It decrypts what it encrypts (an empty text, any bytes, 1 MB), and the same plaintext has another ciphertext each
       time.
    3. The ciphertext does not contain the plaintext.
    4. It refuses another context (of another row, target or method), and a changed or cut ciphertext.
    5. What it raises then does not quote the plaintext.
    """
    check_shape(encryptor)
    broken = list(dict.fromkeys(_broken_rules(encryptor)))
    if broken:
        raise ConfigurationError(f"the encryptor {encryptor.name!r} breaks a rule: {'; '.join(broken)}")


def _broken_rules(encryptor: Encryptor) -> Iterator[str]:
    yield from _broken_round_trips(encryptor)
    try:
        sealed, again = (encryptor.encrypt(SECRET, context=CONTEXT) for _ in range(2))
    except Exception:
        return
    if isinstance(sealed, bytes):
        yield from _shown(sealed)
        if sealed == again:
            yield "the same plaintext has the same ciphertext: use a new nonce each time"
        for context in ELSEWHERE:
            yield from _accepted(encryptor, sealed, context, "of another context: a moved row")
        for changed in _changes(sealed):
            yield from _accepted(encryptor, changed, CONTEXT, "that was changed or cut")


def _broken_round_trips(encryptor: Encryptor) -> Iterator[str]:
    for what, plaintext in PLAINTEXTS.items():
        for _ in range(2):
            try:
                sealed = encryptor.encrypt(plaintext, context=CONTEXT)
                if not isinstance(sealed, bytes):
                    yield f"encrypt() returns bytes, not {type(sealed).__name__}"
                elif encryptor.decrypt(sealed, context=CONTEXT) != plaintext:
                    yield f"{what} is changed by encrypt() and decrypt()"
            except Exception as error:
                yield f"{what} cannot be encrypted and decrypted: {type(error).__name__}"


def _shown(sealed: bytes) -> Iterator[str]:
    if SECRET in sealed or SECRET[::-1] in sealed:
        yield "the ciphertext contains the plaintext"


def _accepted(encryptor: Encryptor, sealed: bytes, context: bytes, how: str) -> Iterator[str]:
    try:
        encryptor.decrypt(sealed, context=context)
    except Exception as error:
        if any(_quotes(one) for one in _chain(error)):
            yield "what it raises quotes the plaintext"
    else:
        yield f"it decrypts a ciphertext {how}"


def _changes(sealed: bytes) -> Iterator[bytes]:
    """Ciphertexts with one bit of each byte changed, cut at either end, with a byte appended, and empty."""
    for place in range(len(sealed)):
        yield sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
    yield from (sealed[:-1], sealed[1:], sealed + b"\0", b"")


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is not None and one not in seen:
            seen.append(one)
            pending += [one.__cause__, one.__context__]
            yield one


def _quotes(error: BaseException) -> bool:
    shown = f"{error} {error.args!r} {error!r}"
    return any(text.decode() in shown for text in (SECRET, SECRET[::-1], b"conformance-canary"))
