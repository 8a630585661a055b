"""Encryptors and targets that the tests of encryption share, and what must hold of a parked attempt."""

from typing import Any, cast

import pytest
from sqlalchemy import Engine, Table, update

from async_task import (
    AesGcmEncryptor,
    AsyncTask,
    Attempt,
    FernetEncryptor,
    Key,
    Parked,
    Retry,
    Status,
    target,
)
from async_task.encryption.ciphers import KeyedEncryptor
from clockwork import let_pass, row_of
from outbox import calls, events_of

CONTEXT = b"row"
CANARY = "canary-5d1f-4929"
TABLE: Table = Attempt.__table__  # type: ignore[assignment]
KINDS = {"aes-gcm": AesGcmEncryptor, "fernet": FernetEncryptor}
OLD, NEW = (Key.generate(id="old"), Key.generate(id="new"))

each_kind = pytest.mark.parametrize("kind", sorted(KINDS))
"""Run a test with each ready-made encryptor."""


def made(kind: str, *ids: str, given: dict[str, Key] | None = None) -> KeyedEncryptor:
    """An encryptor with a key of each of these ids; the keys are added to `given`."""
    known = {} if given is None else given
    for key_id in ids:
        known.setdefault(key_id, Key.generate(kind, id=key_id))
    return KINDS[kind]([known[one] for one in ids])


@target("test.vault", retry=Retry.every(60))
class Vault:
    """A target that takes encrypted arguments."""

    @staticmethod
    def keep(card: str) -> None:
        calls.append(card)

    @staticmethod
    def keep_too(card: str) -> None:
        calls.append(card)


@target("test.other_vault", retry=Retry.every(60))
class OtherVault:
    @staticmethod
    def keep(card: str) -> None:
        calls.append(card)


class Raising:
    """An encryptor that decrypts nothing: it raises `error`, or returns `answer`."""

    name = "test.raising"

    def __init__(self, error: BaseException | None = None, answer: Any = None) -> None:
        self.error, self.answer = error, answer

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        return plaintext[::-1]

    def decrypt(self, ciphertext: bytes, *, context: bytes) -> bytes:
        if self.error is not None:
            raise self.error
        return cast(bytes, self.answer)


Panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
"""The exception that libraries in Rust raise."""


def change(engine: Engine, attempt: Attempt, **values: Any) -> None:
    """Change the row, as somebody with write access to the database can."""
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == attempt.id).values(values))


def parked(app: AsyncTask, engine: Engine, attempt: Attempt) -> str:
    """Perform the attempt twice: it is parked and charged nothing each time. Returns the reason."""
    for _ in range(2):
        outcome = app.perform(attempt.id)
        assert isinstance(outcome, Parked)
        row = row_of(engine, attempt.id)
        charged = (row.num_attempts, row.num_errors, row.num_crashes, row.claim_id)
        assert (row.status, charged) == (Status.PENDING, (0, 0, 0, None))
        assert row.last_error == f"parked: {outcome.reason}"
        let_pass(engine, 41)
    (event,) = events_of(engine, attempt.id)
    assert (event.kind, event.detail) == ("parked", None)
    assert calls == []
    return outcome.reason


def all_parked(app: AsyncTask, engine: Engine, attempts: list[Attempt]) -> list[str]:
    """The same for several attempts, in two batches. Returns the reasons."""
    for _ in range(2):
        report = app.run_batch()
        assert (report.parked, report.claimed) == (len(attempts), len(attempts))
        for attempt in attempts:
            row = row_of(engine, attempt.id)
            charged = (row.num_attempts, row.num_errors, row.num_crashes, row.claim_id)
            assert (row.status, charged) == (Status.PENDING, (0, 0, 0, None))
        let_pass(engine, 41)
    for attempt in attempts:
        (event,) = events_of(engine, attempt.id)
        assert (event.kind, event.detail) == ("parked", None)
    assert calls == []
    said = [row_of(engine, attempt.id).last_error for attempt in attempts]
    assert all(one.startswith("parked: ") for one in said)
    return [one.removeprefix("parked: ") for one in said]
