"""Encryptors: keys, envelopes, what a ciphertext is bound to, and what becomes of what cannot be decrypted."""

import asyncio
import base64
import datetime as dt
import json
import logging
import os
import pathlib
import select
import signal
import sys
import threading
import time
import tomllib
import types
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from greenlet import GreenletExit
from sqlalchemy import Engine, Table, create_engine, insert, update
from sqlalchemy.orm import Session

from async_task import (
    AesGcmEncryptor,
    AsyncTask,
    Attempt,
    ConfigurationError,
    DecryptionFailed,
    FernetEncryptor,
    InvalidArguments,
    Key,
    Keys,
    NullEncryptor,
    Parked,
    Retry,
    Status,
    Succeeded,
    check_encryptor,
    policy,
    target,
)
from async_task.encryption import encryptors, keys
from async_task.encryption.ciphers import STORED_HEAD, KeyedEncryptor, key_id_stored
from async_task.encryption.conformance import SECRET
from async_task.encryption.encryptors import remember
from async_task_cli.main import main
from async_task_cli.signals import Terminated
from clockwork import let_pass, row_of
from conftest import by_one_door
from databases import Database
from outbox import BOX, Broken, HookedAttempt, calls, events_of, hooks

Write = Callable[..., Attempt]
TABLE: Table = Attempt.__table__  # type: ignore[assignment]
EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "envelope"
CONTEXT = b"row"
CANARY = "canary-5d1f-4929"
KINDS = {"aes-gcm": AesGcmEncryptor, "fernet": FernetEncryptor}
OLD, NEW = (Key.generate(id="old"), Key.generate(id="new"))


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(kind: str, *ids: str, given: dict[str, Key] | None = None) -> KeyedEncryptor:
    """An encryptor with a key of each of these ids; `given` remembers them."""
    known = {} if given is None else given
    for key_id in ids:
        known.setdefault(key_id, Key.generate(kind, id=key_id))
    return KINDS[kind]([known[one] for one in ids])


@target("test.vault", retry=Retry.every(60))
class Vault:
    """What encrypted arguments are given to."""

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


@pytest.fixture(autouse=True)
def _own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test makes known is forgotten with it."""
    monkeypatch.setattr(encryptors, "_known", dict(encryptors._known))


# Keys


@pytest.mark.parametrize("key_id", ["k", "2026-11", "a.b_c-d", "x" * 32])
def test_a_key_is_written_and_read_in_one_form(kind: str, key_id: str) -> None:
    key = Key.generate(kind, id=key_id)
    assert Key.parse(key.text) == key
    assert key.text.startswith(f"{key_id}:{kind}:")
    assert Key.parse(f"  {key.text.rstrip('=')}\n") == key


def test_generated_keys_have_ids_of_their_own_and_other_secrets() -> None:
    keys = [Key.generate() for _ in range(3)]
    assert len({key.secret for key in keys}) == 3
    assert all(len(key.secret) == 32 for key in keys)


SECRET_TEXT = base64.urlsafe_b64encode(b"s3cret-s3cret-s3cret-s3cret-s3cr").decode()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([SECRET_TEXT], "keys: key 1 cannot be used: it is not written id:kind:base64url"),
        ([f"a:aes-gcm:{SECRET_TEXT}", f"{SECRET_TEXT}:aes-gcm:b"], "key 2 cannot be used: it is not written"),
        ([f"a:rot13:{SECRET_TEXT}"], "it is not written"),
        ([f"a:aes-gcm:{SECRET_TEXT}:"], "it is not written"),
        ([f"a:aes-gcm:{SECRET_TEXT[:20]}"], "the key 'a' is not 32 bytes in base64url"),
        ([f"a:aes-gcm:{SECRET_TEXT[:-2]}!"], "the key 'a' is not 32 bytes in base64url"),
        ([f"a:aes-gcm:{'+' * 42}8"], "the key 'a' is not 32 bytes in base64url"),
        ([f"a:aes-gcm:{'/' * 42}8"], "the key 'a' is not 32 bytes in base64url"),
        ([f"a:aes-gcm:{SECRET_TEXT[:42]}J="], "the key 'a' is not 32 bytes in base64url"),
        ([f"a:aes-gcm:{SECRET_TEXT}===="], "the key 'a' is not 32 bytes in base64url"),
        ([f"-a:aes-gcm:{SECRET_TEXT}"], "it is not written"),
        ([f"{'a' * 33}:aes-gcm:{SECRET_TEXT}"], "it is not written"),
        ([f"a:aes-gcm:{SECRET_TEXT}"] * 2, "two keys have the id 'a'"),
        ([f"a:fernet:{SECRET_TEXT}"], "the key 'a' is for fernet, not for aes-gcm"),
        ([SECRET_TEXT.encode()], "it is not written"),
        ([], "there is no key"),
        (f"a:aes-gcm:{SECRET_TEXT}", "keys are a list of texts"),
        (7, "keys are a list of texts"),
    ],
)
def test_a_bad_key_is_one_clear_error_without_its_content(given: Any, said: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        AesGcmEncryptor(given)
    assert said in str(raised.value)
    assert SECRET_TEXT[:10] not in f"{raised.value!r}{raised.value.__cause__!r}"


@pytest.mark.parametrize(
    "parts", [("", "aes-gcm", b"x" * 32), ("a b", "aes-gcm", b"x" * 32), ("a", "x", b"x" * 32), ("a", "fernet", b"x")]
)
def test_a_key_cannot_be_made_wrong(parts: tuple[str, str, bytes]) -> None:
    with pytest.raises(ConfigurationError):
        Key(*parts)


def test_a_repr_shows_ids_and_nothing_of_the_keys(kind: str) -> None:
    given: dict[str, Key] = {}
    encryptor = made(kind, "first", "second", given=given)
    said = f"{encryptor!r} {encryptor.keys!r} {list(given.values())!r}"
    assert "first" in said
    assert "second" in said
    for key in given.values():
        assert key.text.rpartition(":")[2] not in said
        assert repr(key.secret)[2:-1] not in said


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the keys take for the time, in its only item."""
    now = [1000.0]
    monkeypatch.setattr(keys, "time", types.SimpleNamespace(**{**vars(time), "monotonic": lambda: now[0]}))
    return now


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEYS", f"{NEW.text}, {OLD.text}\n")
    assert Keys.from_environment("SHOP_KEYS").ids == ("new", "old")
    for empty in ("", " \n"):
        monkeypatch.setenv("SHOP_KEYS", empty)
        with pytest.raises(ConfigurationError, match="the environment variable SHOP_KEYS is not set"):
            Keys.from_environment("SHOP_KEYS")
    monkeypatch.setenv("SHOP_KEYS", "nonsense")
    with pytest.raises(ConfigurationError, match="SHOP_KEYS: key 1 cannot be used"):
        Keys.from_environment("SHOP_KEYS")


def test_keys_come_from_a_file_which_is_read_again_for_a_key_that_is_missing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "shop.keys"
    file.write_text(f"# the shop's\n\n{OLD.text}\n")
    file.chmod(0o640)
    keys_of_file = Keys.from_file(file)
    assert keys_of_file.ids == ("old",)
    file.write_text(f"{NEW.text}\n{OLD.text}\n")
    with pytest.raises(DecryptionFailed, match="the key 'new' is missing"):
        keys_of_file.named("new")  # it was read a moment ago
    monkeypatch.setattr(keys, "REFRESH_EVERY", 0)
    assert keys_of_file.named("new") == NEW
    assert keys_of_file.ids == ("new", "old")


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602])
def test_a_key_file_that_everybody_can_open_is_refused(tmp_path: pathlib.Path, mode: int) -> None:
    file = tmp_path / "shop.keys"
    file.write_text(OLD.text)
    file.chmod(mode)
    with pytest.raises(ConfigurationError, match="is open to every user of this machine: chmod o="):
        Keys.from_file(file)


def test_a_key_file_that_is_not_there_is_one_clear_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigurationError, match=r"the key file .*none cannot be read: FileNotFoundError"):
        Keys.from_file(tmp_path / "none")


class Service:
    """A key service: answers `keys`, or raises; counts how often it is asked."""

    def __init__(self, *keys: Key) -> None:
        self.keys = list(keys)
        self.asked = 0
        self.fails = False

    def __call__(self) -> list[Key]:
        self.asked += 1
        if self.fails:
            raise RuntimeError(f"denied: {OLD.text}")
        return self.keys


def test_a_key_service_is_asked_when_a_key_is_first_needed_and_once_in_a_while_for_a_missing_one(
    clock: list[float],
) -> None:
    service = Service(OLD)
    encryptor = AesGcmEncryptor(service)
    assert (service.asked, repr(encryptor)) == (0, "<AesGcmEncryptor 'aes-gcm', <Keys, not asked for yet>>")
    for _ in range(3):
        encryptor.decrypt(encryptor.encrypt(b"x", context=CONTEXT), context=CONTEXT)
    assert service.asked == 1
    sealed = AesGcmEncryptor([NEW]).encrypt(b"new", context=CONTEXT)
    service.keys = [NEW, OLD]
    clock[0] += 29
    for _ in range(3):
        with pytest.raises(DecryptionFailed, match="the key 'new' is missing: there are old"):
            encryptor.decrypt(sealed, context=CONTEXT)
    assert service.asked == 1
    clock[0] += 1
    assert encryptor.decrypt(sealed, context=CONTEXT) == b"new"
    assert (service.asked, encryptor.keys.first.id) == (2, "new")


def test_what_a_key_service_says_when_it_fails_is_not_repeated_and_its_keys_stay(clock: list[float]) -> None:
    service = Service(OLD)
    service.fails = True
    encryptor = AesGcmEncryptor(service)
    for _ in range(3):
        with pytest.raises(ConfigurationError) as raised:
            encryptor.encrypt(b"x", context=CONTEXT)
        assert str(raised.value) == "keys could not be had: RuntimeError"
        assert (raised.value.__cause__, raised.value.__context__) == (None, None)
        clock[0] += 0.3
    assert service.asked == 1  # a service that is down is not asked by every attempt
    service.fails = False
    clock[0] += 0.5
    assert encryptor.keys.ids == ("old",)
    service.keys = [Key.generate("fernet")]
    with pytest.raises(ConfigurationError, match=r"is for fernet, not for aes-gcm"):
        encryptor.keys._ask()
    assert encryptor.keys.ids == ("old",)


def test_what_a_key_service_raises_while_it_answers_is_not_repeated() -> None:
    def answer() -> Iterator[Key]:
        yield OLD
        raise RuntimeError(OLD.text)

    with pytest.raises(ConfigurationError, match=r"^keys could not be had: RuntimeError$") as raised:
        Keys(answer).first  # noqa: B018
    assert raised.value.__context__ is None


def test_a_new_first_key_is_learned_within_a_minute_and_the_old_ones_stay_if_it_cannot_be_asked_for(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(OLD)
    learned = Keys(service)
    assert learned.first == OLD
    service.keys, service.fails = [NEW, OLD], True
    clock[0] += 59
    assert (learned.first, service.asked) == (OLD, 1)
    clock[0] += 1
    assert [learned.first for _ in range(3)] == [OLD] * 3
    assert (service.asked, caplog.messages) == (
        2, ["keys could not be had: RuntimeError; the keys from before stay in use"],
    )  # fmt: skip
    service.fails = False
    clock[0] += 60
    assert (learned.first, learned.ids, service.asked) == (NEW, ("new", "old"), 3)


def test_while_one_thread_asks_whether_there_is_a_new_key_the_others_go_on_with_the_old_one(
    clock: list[float],
) -> None:
    service, asks, goes_on = Service(OLD), threading.Event(), threading.Event()
    learned = Keys(lambda: (asks.set(), goes_on.wait(30), [NEW])[2] if service.asked else service())
    assert learned.first == OLD
    clock[0] += 60
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(lambda: learned.first)
        try:
            assert asks.wait(30)
            assert learned.first == OLD
        finally:
            goes_on.set()
        assert asking.result(30) == NEW


def test_a_child_that_is_forked_while_a_thread_asks_for_keys_does_not_wait_for_that_thread() -> None:
    asks, goes_on = threading.Event(), threading.Event()
    parent = os.getpid()

    def answer() -> list[Key]:
        if os.getpid() == parent:
            asks.set()
            goes_on.wait(30)
        return [OLD]

    encryptor = AesGcmEncryptor(answer)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(lambda: encryptor.keys.first)
        try:
            assert asks.wait(30)
            assert _exit_code_of_fork(lambda: encryptor.encrypt(b"x", context=CONTEXT)) == 0
        finally:
            goes_on.set()
        assert asking.result(30) == OLD


def _exit_code_of_fork(work: Callable[[], object]) -> int | None:
    """Of a child that does this; None of one that has not done it after 20 s, which is killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    ended = os.pidfd_open(pid)
    try:
        if not select.select([ended], [], [], 20)[0]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(ended)


# Envelopes


def test_the_first_key_encrypts_and_all_decrypt(kind: str) -> None:
    given: dict[str, Key] = {}
    before, after = made(kind, "old", given=given), made(kind, "new", "old", given=given)
    sealed = before.encrypt(b"secret", context=CONTEXT)
    assert after.decrypt(sealed, context=CONTEXT) == b"secret"
    again = after.encrypt(b"secret", context=CONTEXT)
    assert made(kind, "new", given=given).decrypt(again, context=CONTEXT) == b"secret"
    with pytest.raises(DecryptionFailed, match="the key 'new' is missing: there are old; add it to keys"):
        before.decrypt(again, context=CONTEXT)


def test_the_beginning_of_a_rows_text_tells_its_key(kind: str) -> None:
    for key_id in ("k", "2026-11", "x" * 32):
        stored = encryptors.seal("{}", made(kind, key_id), CONTEXT)
        assert key_id_stored(stored) == key_id_stored(stored[:STORED_HEAD]) == key_id
    for text in ("{}", "", "x" * 44, base64.b64encode(b"\x02" + b"k".ljust(32, b"\0")).decode()):
        assert key_id_stored(text) is None


def test_another_key_of_the_same_id_does_not_open_it_and_the_error_says_so(kind: str) -> None:
    sealed = made(kind, "k").encrypt(CANARY.encode(), context=CONTEXT)
    with pytest.raises(DecryptionFailed, match=r"the key 'k' of .* does not open the arguments") as raised:
        made(kind, "k").decrypt(sealed, context=CONTEXT)
    assert CANARY not in repr(raised.value)
    assert raised.value.__context__ is None


def test_the_id_of_its_key_cannot_be_changed(kind: str) -> None:
    key = Key.generate(kind, id="a")
    twin = Key("b", kind, key.secret)
    encryptor = KINDS[kind]([key, twin])
    sealed = encryptor.encrypt(b"secret", context=CONTEXT)
    with pytest.raises(DecryptionFailed):
        encryptor.decrypt(sealed.replace(b"\x01a", b"\x01b", 1), context=CONTEXT)


def test_a_ciphertext_under_another_name_of_the_same_keys_is_refused(kind: str) -> None:
    key = Key.generate(kind)
    sealed = KINDS[kind]([key], name="one").encrypt(b"secret", context=CONTEXT)
    with pytest.raises(DecryptionFailed):
        KINDS[kind]([key], name="two").decrypt(sealed, context=CONTEXT)


def test_two_encryptions_of_the_same_differ(kind: str) -> None:
    encryptor = made(kind, "k")
    assert encryptor.encrypt(b"x", context=CONTEXT) != encryptor.encrypt(b"x", context=CONTEXT)


@pytest.mark.parametrize("name", ["", "x" * 65, None])
def test_a_name_that_no_row_can_hold_is_refused(kind: str, name: Any) -> None:
    with pytest.raises(ConfigurationError, match="1 to 64 characters"):
        KINDS[kind]([Key.generate(kind)], name=name)


# The conformance test


def test_the_ready_made_encryptors_conform(kind: str) -> None:
    check_encryptor(made(kind, "new", "old"))


class Faulty:
    """Conforms, but for `fault`."""

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
        ("unbound", "it decrypts a ciphertext under another context: a moved row"),
        ("binds 22 bytes", "it decrypts a ciphertext under another context: a moved row"),
        ("binds the row", "it decrypts a ciphertext under another context: a moved row"),
        ("binds the target", "it decrypts a ciphertext under another context: a moved row"),
        ("binds the method", "it decrypts a ciphertext under another context: a moved row"),
        ("binds all but the last byte", "it decrypts a ciphertext under another context: a moved row"),
        ("one nonce", "it encrypts the same to the same: take a new nonce each time"),
        ("refuses nothing", "an empty text cannot be encrypted and decrypted: ValueError"),
        ("too much", "1 MB cannot be encrypted and decrypted: ValueError"),
        ("shows it", "the plaintext is to be seen in the ciphertext"),
        ("text", "encrypt() answers bytes, not str"),
        ("strips", "every byte does not come back as it was"),
        ("ignores a byte", "it decrypts a ciphertext that was changed or cut"),
        ("takes anything", "it decrypts a ciphertext that was changed or cut"),
        ("quotes", "what it raises quotes the plaintext"),
        ("quotes behind", "what it raises quotes the plaintext"),
    ],
)
def test_the_conformance_test_says_which_rule_is_broken(fault: str, rule: str) -> None:
    check_encryptor(Faulty("none"))
    with pytest.raises(ConfigurationError) as raised:
        check_encryptor(Faulty(fault))
    assert rule in str(raised.value)
    assert "conformance-canary" not in str(raised.value)


@pytest.mark.parametrize("given", [NullEncryptor(), BOX, AesGcmEncryptor, object()])
def test_what_is_no_encryptor_does_not_conform(given: Any) -> None:
    with pytest.raises(ConfigurationError):
        check_encryptor(given)


# A package that brings one


@pytest.fixture
def installed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example package, as an installer leaves it, on a path that ends with the test."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    folder = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"]
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in groups[group].items()) for group in groups
    ]
    (folder / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path), str(EXAMPLE)])
    yield
    sys.modules.pop("envelope_encryptor", None)


def test_an_installed_package_brings_an_encryptor_by_its_entry_point(
    installed: None, app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVELOPE_KEYS", OLD.text)
    attempt = write(Vault, "keep", {"card": CANARY}, encryptor="envelope")
    row = row_of(engine, attempt.id)
    assert row.encryptor == "envelope"
    assert CANARY.encode() not in base64.b64decode(row.method_args)
    assert isinstance(app.perform(attempt.id), Succeeded)
    assert calls == [CANARY]


def test_the_example_encryptor_conforms_and_asks_its_service_for_data_keys_only(installed: None) -> None:
    import envelope_encryptor  # type: ignore[import-not-found]

    seen: list[bytes] = []
    cipher = AesGcmEncryptor([OLD])

    def wrap(key: bytes, context: bytes) -> bytes:
        seen.append(key)
        return cipher.encrypt(key, context=context)

    check_encryptor(
        envelope_encryptor.EnvelopeEncryptor(wrap, lambda key, context: cipher.decrypt(key, context=context))
    )
    assert {len(key) for key in seen} == {32}
    assert len(set(seen)) == len(seen)


def test_an_entry_point_that_cannot_be_loaded_parks_the_attempt(
    installed: None, app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "envelope_encryptor", None)
    attempt = write(Vault, "keep", {"card": "4111"})
    change(engine, attempt, encryptor="envelope")
    assert "UnknownEncryptor: the encryptor 'envelope' is installed as envelope_encryptor:EnvelopeEncryptor" in parked(
        app, engine, attempt
    )


def test_the_wheel_of_async_task_does_not_hold_the_example_package() -> None:
    built = tomllib.loads((EXAMPLE.parents[1] / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    wheel = built["wheel"]
    assert not [one for one in [*wheel["packages"], *wheel["force-include"]] if "envelope" in one or one == "examples"]


# Wrong, missing, broken: parked, and nothing charged


def change(engine: Engine, attempt: Attempt, **values: Any) -> None:
    """What somebody with write access to the database can do."""
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == attempt.id).values(values))


def parked(app: AsyncTask, engine: Engine, attempt: Attempt) -> str:
    """What the row says, after it was performed, parked, and charged nothing; twice."""
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
    """The same of several, in one batch each time."""
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


class Raising:
    """Decrypts nothing, and quotes what it might have decrypted."""

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
"""As libraries in Rust raise it."""


def test_a_missing_encryptor_parks_the_attempt_and_is_named(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(Vault, "keep", {"card": CANARY}, encryptor=Raising())
    encryptors._known.pop("test.raising")
    said = parked(app, engine, attempt)
    assert said.startswith("UnknownEncryptor: no encryptor is named 'test.raising' in this process")
    assert CANARY not in said


@by_one_door
def test_a_missing_key_parks_the_attempt_until_it_is_there(
    app: AsyncTask, engine: Engine, write: Write, kind: str
) -> None:
    given: dict[str, Key] = {}
    attempt = write(Vault, "keep", {"card": CANARY}, encryptor=made(kind, "old", given=given))
    remember(made(kind, "new"))
    assert parked(app, engine, attempt).startswith("DecryptionFailed: the key 'old' is missing: there are new")
    remember(made(kind, "new", "old", given=given))
    assert isinstance(app.perform(attempt.id), Succeeded)
    assert (calls, row_of(engine, attempt.id).num_attempts) == ([CANARY], 1)


@by_one_door
def test_a_wrong_key_of_the_same_id_parks_the_attempt(app: AsyncTask, engine: Engine, write: Write, kind: str) -> None:
    attempt = write(Vault, "keep", {"card": CANARY}, encryptor=made(kind, "k"))
    remember(made(kind, "k"))
    said = parked(app, engine, attempt)
    assert said.startswith(f"DecryptionFailed: the key 'k' of '{kind}' does not open the arguments")


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
    Raising(answer=f'{{"card": ["{CANARY}"]}}'.encode()),
    Raising(answer=f'["{CANARY}"]'.encode()),
    Raising(answer=b""),
)


def test_whatever_an_encryptor_raises_or_answers_is_parked_without_content(
    app: AsyncTask, engine: Engine, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "async_task")
    attempts = []
    for number, broken in enumerate(BROKEN):
        broken.name = f"test.raising_{number}"
        attempts.append(write(Vault, "keep", {"card": CANARY}, encryptor=broken))
    for attempt, said in zip(attempts, all_parked(app, engine, attempts), strict=True):
        assert said.startswith(("DecryptionFailed: ", "InvalidArguments: "))
        (event,) = events_of(engine, attempt.id)
        assert CANARY not in f"{said} {event.message} {caplog.text}"


@pytest.mark.parametrize(
    "broken",
    [
        Raising(ValueError(CANARY)),
        Raising(Panic(CANARY)),
        Raising(answer=b"\xff" + CANARY.encode()),
        Raising(DecryptionFailed("no")),
    ],
)
def test_nothing_hangs_behind_the_error_of_an_encryptor(broken: Raising) -> None:
    if broken.error is not None:
        broken.error.__context__ = ValueError(CANARY)
    with pytest.raises(DecryptionFailed) as raised:
        encryptors.unseal("eA==", broken, CONTEXT)
    assert (raised.value.__cause__, raised.value.__context__) == (None, None)
    with pytest.raises(ConfigurationError, match=r"could not encrypt the arguments \(ValueError\)") as refused:
        encryptors.seal("{}", Unsealing(ValueError(CANARY)), CONTEXT)
    assert (refused.value.__cause__, refused.value.__context__) == (None, None)


class Unsealing(Raising):
    """Encrypts nothing either."""

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        return self.decrypt(plaintext, context=context)


@pytest.mark.parametrize(
    "end", [KeyboardInterrupt(), SystemExit(3), GeneratorExit(), asyncio.CancelledError(), GreenletExit(), Terminated()]
)
def test_who_ends_a_process_thread_or_coroutine_is_not_held_up_by_an_encryptor(end: BaseException) -> None:
    for work in (encryptors.seal, encryptors.unseal):
        with pytest.raises(type(end)) as raised:
            work("eA==", Unsealing(end), CONTEXT)
        assert raised.value is end


# A ciphertext that is moved


@by_one_door
def test_a_ciphertext_that_was_moved_is_never_accepted(app: AsyncTask, engine: Engine, write: Write, kind: str) -> None:
    encryptor = remember(made(kind, "k"))
    remember(made("fernet" if kind == "aes-gcm" else "aes-gcm", "k"))
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
        let_pass(engine, 41)
        assert isinstance(app.perform(one.id), Parked), way
    change(engine, one, **as_it_was)
    change(engine, other, method_args=texts[0])
    change(engine, one, method_args=texts[1])
    let_pass(engine, 41)
    assert [type(app.perform(attempt.id)) for attempt in (one, other)] == [Parked, Parked]
    assert calls == []
    change(engine, one, **as_it_was)
    let_pass(engine, 41)
    assert isinstance(app.perform(one.id), Succeeded)
    assert calls == ["one"]


def test_a_row_copied_under_another_id_into_another_table_is_not_accepted(
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


# Only encrypted


@target("test.strict_vault", retry=Retry.every(60), encryptor="aes-gcm", only_encrypted=True)
def keep_strictly(card: str) -> None:
    calls.append(card)


def test_a_target_may_take_encrypted_arguments_only(app: AsyncTask, engine: Engine, write: Write) -> None:
    remember(AesGcmEncryptor([OLD]))
    with pytest.raises(InvalidArguments, match=r"test\.strict_vault takes encrypted arguments only"):
        write(keep_strictly, None, {"card": "4111"}, encryptor="null")
    attempt = write(keep_strictly, None, {"card": "4111"})
    as_it_was = row_of(engine, attempt.id).method_args
    change(engine, attempt, encryptor="null", method_args='{"card": "forged"}')
    said = parked(app, engine, attempt)
    assert said.startswith("DecryptionFailed: test.strict_vault takes encrypted arguments only")
    change(engine, attempt, encryptor="aes-gcm", method_args=as_it_was)
    assert isinstance(app.perform(attempt.id), Succeeded)


def test_plain_rows_from_before_an_encryptor_was_named_keep_reading_and_can_be_sealed(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    remember(AesGcmEncryptor([OLD]))
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


# One secret, and where it is not


def test_a_canary_lies_nowhere_but_in_the_memory_of_its_target(
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
    remember(made(kind, "new"))
    let_pass(engine, 61)
    said.append(repr(app.run_batch()))  # parked
    remember(made(kind, "new", "old", given=given))
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


@target("test.leaky", retry=Retry.every(60))
class Leaky:
    """Says what it was given, in all that it raises."""

    @staticmethod
    def raise_it(card: str) -> None:
        calls.append(card)
        try:
            raise ValueError(card)
        except ValueError as error:
            raise Broken(f"no luck with {card}") from error
