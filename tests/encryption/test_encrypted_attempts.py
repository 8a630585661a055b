"""Encrypted attempts: what cannot be decrypted is parked and charged nothing, and no secret is stored or printed."""

import asyncio
import base64
import datetime as dt
import json
import logging
import uuid
from collections.abc import Callable
from typing import Any, cast

import pytest
from pydantic import TypeAdapter
from sqlalchemy import Engine, Table, create_engine, insert
from sqlalchemy.orm import Session

from async_task import (
    AesGcmEncryptor,
    AsyncTask,
    Attempt,
    ConfigurationError,
    Discard,
    InvalidArguments,
    Key,
    Parked,
    Retried,
    Retry,
    Status,
    Succeeded,
    policy,
    target,
)
from async_task.encryption import encryptors
from async_task.encryption.ciphers import STORED_HEAD
from async_task.encryption.encryptors import register_encryptor
from async_task_cli.main import main
from clockwork import let_pass, row_of
from conftest import by_one_door
from databases import Database
from outbox import BOX, Broken, HookedAttempt, act, calls, events_of, hooks, will
from vaults import CANARY, OLD, Panic, Raising, Vault, all_parked, change, each_kind, made, parked

pytestmark = pytest.mark.usefixtures("own_encryptors")
Write = Callable[..., Attempt]


@pytest.mark.slow
def test_a_missing_encryptor_parks_the_attempt_and_is_named(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(Vault, "keep", {"card": CANARY}, encryptor=Raising())
    encryptors._known.pop("test.raising")
    said = parked(app, engine, attempt)
    assert said.startswith("UnknownEncryptor: no encryptor is named 'test.raising' in this process")
    assert CANARY not in said


@pytest.mark.slow
@each_kind
@by_one_door
def test_a_missing_key_parks_the_attempt_until_the_key_is_added(
    app: AsyncTask, engine: Engine, write: Write, kind: str
) -> None:
    given: dict[str, Key] = {}
    attempt = write(Vault, "keep", {"card": CANARY}, encryptor=made(kind, "old", given=given))
    register_encryptor(made(kind, "new"))
    assert parked(app, engine, attempt).startswith("DecryptionFailed: the key 'old' is missing: there are new")
    register_encryptor(made(kind, "new", "old", given=given))
    assert isinstance(app.perform(attempt.id), Succeeded)
    assert (calls, row_of(engine, attempt.id).num_attempts) == ([CANARY], 1)


@pytest.mark.slow
@each_kind
@by_one_door
def test_a_wrong_key_of_the_same_id_parks_the_attempt(app: AsyncTask, engine: Engine, write: Write, kind: str) -> None:
    attempt = write(Vault, "keep", {"card": CANARY}, encryptor=made(kind, "k"))
    register_encryptor(made(kind, "k"))
    said = parked(app, engine, attempt)
    assert said.startswith(f"DecryptionFailed: the key 'k' of '{kind}' does not open the arguments")


@pytest.mark.slow
@each_kind
@by_one_door
def test_a_corrupted_text_parks_the_attempt(app: AsyncTask, engine: Engine, write: Write, kind: str) -> None:
    encryptor = made(kind, "k")
    ways: dict[str, Callable[[str, bytes], str]] = {
        "a bit": lambda text, raw: base64.b64encode(raw[:-1] + bytes([raw[-1] ^ 1])).decode(),
        "cut": lambda text, raw: text[: STORED_HEAD + 8],
        "another alphabet": lambda text, raw: "!" + text[1:],
        "empty": lambda text, raw: "",
        "plain": lambda text, raw: json.dumps({"card": "forged"}),
        "another version": lambda text, raw: base64.b64encode(b"\x02" + raw[1:]).decode(),
    }
    attempts = []
    for corrupted in ways.values():
        attempts.append(attempt := write(Vault, "keep", {"card": CANARY}, encryptor=encryptor))
        text = row_of(engine, attempt.id).method_args
        change(engine, attempt, method_args=corrupted(text, base64.b64decode(text)))
    for way, said in zip(ways, all_parked(app, engine, attempts), strict=True):
        assert said.startswith("DecryptionFailed: "), way


BROKEN = (
    Raising(ValueError(CANARY)),
    Raising(KeyError(CANARY)),
    Raising(Panic(CANARY)),
    Raising(MemoryError()),
    Raising(answer=None),
    Raising(answer=CANARY),
    Raising(answer=b"\xff" + CANARY.encode()),
    Raising(answer=f'{{"card": "{CANARY}'.encode()),
    Raising(answer=f'["{CANARY}"]'.encode()),
    Raising(answer=b""),
)


@pytest.mark.slow
def test_an_attempt_is_parked_without_content_whatever_its_encryptor_raises_or_returns(
    app: AsyncTask, engine: Engine, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "async_task")
    attempts = []
    for number, broken in enumerate(BROKEN):
        broken.name = f"test.raising_{number}"
        attempts.append(write(Vault, "keep", {"card": CANARY}, encryptor=broken))
    for attempt, said in zip(attempts, all_parked(app, engine, attempts), strict=True):
        assert said.startswith("DecryptionFailed: ")
        (event,) = events_of(engine, attempt.id)
        assert CANARY not in f"{said} {event.message} {caplog.text}"


@pytest.mark.slow
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_an_encryptor_that_would_end_the_thread_parks_its_attempt_and_no_other(
    app: AsyncTask, engine: Engine, write: Write, error: type[BaseException]
) -> None:
    broken = Raising(error())
    broken.name = "test.ending"
    attempt = write(Vault, "keep", {"card": CANARY}, encryptor=broken)
    will(lambda: None)
    others = [write(act) for _ in range(3)]
    app.run_batch()
    assert row_of(engine, attempt.id).last_error.startswith("parked: DecryptionFailed: ")
    assert {row_of(engine, one.id).status for one in others} == {Status.SUCCEEDED}


def test_decrypted_arguments_that_do_not_fit_are_an_error_of_the_call_without_content(
    app: AsyncTask, engine: Engine, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "async_task")
    other = Raising(answer=f'{{"card": ["{CANARY}"]}}'.encode())
    attempt = write(Vault, "keep", {"card": CANARY}, encryptor=other)
    outcome = app.perform(attempt.id)
    assert isinstance(outcome, Retried)
    row, (event,) = row_of(engine, attempt.id), events_of(engine, attempt.id)
    assert row.last_error == outcome.error == "InvalidArguments: test.vault.keep: card: Input should be a valid string"
    assert (row.num_attempts, row.num_errors, event.kind, calls) == (1, 1, "error", [])
    assert CANARY not in f"{row} {event.message} {event.detail} {caplog.text}"


@pytest.mark.slow
@each_kind
@by_one_door
def test_a_moved_ciphertext_is_never_accepted(app: AsyncTask, engine: Engine, write: Write, kind: str) -> None:
    encryptor = register_encryptor(made(kind, "k"))
    register_encryptor(made("fernet" if kind == "aes-gcm" else "aes-gcm", "k"))
    one, other = (write(Vault, "keep", {"card": card}, encryptor=encryptor) for card in ("one", "other"))
    texts = [row_of(engine, attempt.id).method_args for attempt in (one, other)]
    ways: dict[str, dict[str, str]] = {
        "to another row of its target": {"method_args": texts[1]},
        "to another target": {"target": "test.other_vault"},
        "to another method": {"method_name": "keep_too"},
        "under another encryptor": {"encryptor": "fernet" if kind == "aes-gcm" else "aes-gcm"},
        "under none": {"encryptor": "null"},
    }
    as_it_was = {"method_args": texts[0], "target": "test.vault", "method_name": "keep", "encryptor": kind}
    for way, values in ways.items():
        change(engine, one, **{**as_it_was, **values})
        let_pass(engine, 61)
        # What is under no encryptor is no ciphertext: then its text is the call's own error.
        assert isinstance(app.perform(one.id), Retried if way == "under none" else Parked), way
    change(engine, one, **as_it_was)
    change(engine, other, method_args=texts[0])
    change(engine, one, method_args=texts[1])
    let_pass(engine, 61)
    assert [type(app.perform(attempt.id)) for attempt in (one, other)] == [Parked, Parked]
    assert calls == []
    change(engine, one, **as_it_was)
    let_pass(engine, 61)
    assert isinstance(app.perform(one.id), Succeeded)
    assert calls == ["one"]


@each_kind
def test_a_row_copied_into_another_table_under_another_id_is_not_accepted(
    engine: Engine, write: Write, kind: str
) -> None:
    attempt = write(Vault, "keep", {"card": CANARY}, encryptor=made(kind, "k"))
    row, copy = row_of(engine, attempt.id), uuid.uuid4()
    columns = {name: value for name, value in row._mapping.items() if name != "order_slot"}
    with engine.begin() as connection:
        connection.execute(insert(cast(Table, HookedAttempt.__table__)).values({**columns, "id": copy}))
    app = AsyncTask(engine, model=HookedAttempt)
    hooks.clear()
    assert isinstance(app.perform(copy), Parked)
    assert calls == []


@target("test.strict_vault", retry=Retry.every(60), encryptor="aes-gcm", only_encrypted=True)
def keep_strictly(card: str) -> None:
    calls.append(card)


@pytest.mark.slow
def test_a_target_may_accept_only_encrypted_arguments(app: AsyncTask, engine: Engine, write: Write) -> None:
    register_encryptor(AesGcmEncryptor([OLD]))
    with pytest.raises(InvalidArguments, match=r"test\.strict_vault takes encrypted arguments only"):
        write(keep_strictly, None, {"card": "4111"}, encryptor="null")
    attempt = write(keep_strictly, None, {"card": "4111"})
    as_it_was = row_of(engine, attempt.id).method_args
    change(engine, attempt, encryptor="null", method_args='{"card": "forged"}')
    said = parked(app, engine, attempt)
    assert said.startswith("DecryptionFailed: test.strict_vault takes encrypted arguments only")
    change(engine, attempt, encryptor="aes-gcm", method_args=as_it_was)
    assert isinstance(app.perform(attempt.id), Succeeded)


def test_plain_rows_of_a_target_that_now_encrypts_are_performed_once_they_are_rotated(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    register_encryptor(AesGcmEncryptor([OLD]))
    plain = write(keep_strictly, None, {"card": "4111"})
    change(engine, plain, encryptor="null", method_args='{"card": "4111"}')
    assert isinstance(app.perform(plain.id), Parked)
    assert app.rotate_keys(to_policy=True).rotated == 1
    let_pass(engine, 41)
    assert isinstance(app.perform(plain.id), Succeeded)
    assert calls == ["4111"]


@pytest.mark.parametrize("wrong", ["yes", 1, None])
def test_only_encrypted_is_true_or_false(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="only_encrypted is True or False"):
        policy(only_encrypted=wrong)


@target("test.leaky", retry=Retry.every(60), store_messages=True)
class Leaky:
    """A target that quotes its argument in all that it raises."""

    @staticmethod
    def raise_it(card: str) -> None:
        calls.append(card)
        try:
            raise ValueError(card)
        except ValueError as error:
            raise Broken(f"no luck with {card}") from error


@pytest.mark.slow
@each_kind
def test_an_encrypted_argument_is_in_no_row_log_or_output(
    engine: Engine, database: Database, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    caplog.set_level(logging.DEBUG)
    given: dict[str, Key] = {}
    echoing = create_engine(database.sync_url, echo="debug")
    app = AsyncTask(echoing, encryptors=[made(kind, "old", given=given)], lease=1)
    with Session(echoing, expire_on_commit=False) as session, session.begin():
        attempts = [
            Attempt.options(encryptor=kind, max_attempts=1 + number, session=session).call(Leaky.raise_it, card=CANARY)
            for number in range(3)
        ]
    said = [repr(attempts), *(repr(app.perform(one.id)) for one in attempts)]
    register_encryptor(made(kind, "new"))
    let_pass(engine, 61)
    said.append(repr(app.run_batch()))  # left to others
    said += [repr(app.perform(one.id)) for one in attempts]  # parked
    register_encryptor(made(kind, "new", "old", given=given))
    with Session(echoing) as session, session.begin():
        session.get_one(Attempt, attempts[2].id).reschedule(session, at=dt.datetime.now(dt.UTC), reason="go on")
    said.append(repr(app.rotate_keys()))
    first, *_, last = (str(one.id) for one in attempts)
    for words in ("list", "list --json", f"show {first} --traceback", f"show {last} --json", "run-batch --json",
                  "rotate-keys --json", "keys list", "sweep --json"):  # fmt: skip
        main([*words.split(), "--database-url", database.sync_url])
    rows = [str(row_of(echoing, one.id)._mapping) for one in attempts]
    events = [f"{one.message} {one.detail}" for attempt in attempts for one in events_of(echoing, attempt.id)]
    echoing.dispose()
    out, err = capfd.readouterr()
    assert len(calls) >= 4
    assert set(calls) == {CANARY}
    for expected in ("Broken: no luck with [hidden]", "ValueError", "parked: DecryptionFailed", "INSERT INTO"):
        assert expected in " ".join([*events, *rows, caplog.text])
    for text in (*said, *rows, *events, out, err, caplog.text):
        assert CANARY not in text


TOKEN = "sk_live_" + "A1b2C3d4E5f6G7h8I9j0" * 4


def in_base64(token: str) -> None:
    raise ConnectionError("401 for Basic " + base64.b64encode(b"user:" + token.encode()).decode())


def in_pieces(token: str) -> None:
    try:
        int(token)
    except ValueError as error:
        raise ExceptionGroup(token[:40], [ValueError(token.upper())]) from error


def by_a_reason(token: str) -> None:
    raise Discard(f"no such token: {token[20:]}")


def by_pydantic(token: str) -> None:
    TypeAdapter(int).validate_python(token)


def by_a_child(token: str) -> None:
    assert token == "another"


LEAKS = [in_base64, in_pieces, by_a_reason, by_pydantic, by_a_child]


def pieces_of(token: str, text: str) -> list[str]:
    forms = (token, base64.b64encode(b"user:" + token.encode()).decode())
    pieces = (form[at : at + 12] for form in forms for at in range(len(form) - 11))
    return [piece for piece in pieces if piece.lower() in text.lower()]


@pytest.mark.in_turns
@by_one_door
@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("leak", LEAKS)
def test_no_piece_of_an_encrypted_argument_is_stored_or_logged(
    app: AsyncTask, engine: Engine, write: Write, caplog: pytest.LogCaptureFixture, leak: Any
) -> None:
    target(leak, name="test.leak", retry=Retry.every(60), encryptor=BOX)
    attempt = write(leak, None, {"token": TOKEN})
    outcome = repr(app.perform(attempt.id))
    row, (event,) = row_of(engine, attempt.id), events_of(engine, attempt.id)
    assert not pieces_of(TOKEN, "\n".join((row.last_error, event.message, event.detail, outcome, caplog.text)))
    assert row.last_error.endswith("(message not stored)")
    assert leak.__name__ in event.detail


@by_one_door
@pytest.mark.usefixtures("registered")
def test_messages_are_stored_on_request_and_those_of_the_library_always(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    def refuse(token: str) -> None:
        raise ValueError(f"no such token: {token}")

    def answer(token: str) -> object:
        return Discard

    target(refuse, name="test.refuse", encryptor=BOX, store_messages=True)
    target(answer, name="test.answer", encryptor=BOX)
    refused, answered = (write(one, None, {"token": TOKEN}) for one in (refuse, answer))
    app.perform(refused.id)
    app.perform(answered.id)
    assert row_of(engine, refused.id).last_error == "ValueError: no such token: [hidden]"
    assert row_of(engine, answered.id).last_error.startswith("TypeError: the target returned Discard: exceptions")
