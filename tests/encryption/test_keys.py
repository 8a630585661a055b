"""Keys: how they are written, where they are read from, and when a source is asked again."""

import base64
import os
import pathlib
import re
import select
import signal
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from async_task import (
    AesGcmEncryptor,
    ConfigurationError,
    DecryptionFailed,
    Key,
    Keys,
)
from async_task.encryption import keys
from said import Run
from vaults import (
    CONTEXT,
    KINDS,
    NEW,
    OLD,
    each_kind,
    made,
)


@each_kind
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
        ([], "there is no key; make one with `async-task keys generate --kind aes-gcm or --kind fernet`"),
        (f"a:aes-gcm:{SECRET_TEXT}", "keys are a list of texts"),
        (7, "keys are a list of texts"),
    ],
)
def test_a_bad_key_raises_one_clear_error_without_its_content(given: Any, said: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        AesGcmEncryptor(given)
    assert said in str(raised.value)
    assert SECRET_TEXT[:10] not in f"{raised.value!r}{raised.value.__cause__!r}"


@each_kind
def test_the_command_that_an_error_names_makes_a_key_of_the_right_kind(kind: str, say: Run) -> None:
    wrong = Key.generate("fernet" if kind == "aes-gcm" else "aes-gcm")
    with pytest.raises(ConfigurationError) as raised:
        KINDS[kind]([wrong])
    command = re.search(r"make another with `async-task (.*)`$", str(raised.value))
    assert command is not None
    KINDS[kind]([say(*command[1].split()).out.strip()])


@pytest.mark.parametrize(
    "parts", [("", "aes-gcm", b"x" * 32), ("a b", "aes-gcm", b"x" * 32), ("a", "x", b"x" * 32), ("a", "fernet", b"x")]
)
def test_a_key_of_invalid_values_is_refused(parts: tuple[str, str, bytes]) -> None:
    with pytest.raises(ConfigurationError):
        Key(*parts)


@each_kind
def test_a_repr_shows_ids_and_no_secret(kind: str) -> None:
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
    """The time that `keys` sees, in seconds, as its only item."""
    now = [1000.0]
    monkeypatch.setattr(keys, "time", types.SimpleNamespace(**{**vars(time), "monotonic": lambda: now[0]}))
    return now


def test_keys_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEYS", f"{NEW.text}, {OLD.text}\n")
    assert Keys.from_environment("SHOP_KEYS").ids == ("new", "old")
    for empty in ("", " \n"):
        monkeypatch.setenv("SHOP_KEYS", empty)
        with pytest.raises(ConfigurationError, match="the environment variable SHOP_KEYS is not set"):
            Keys.from_environment("SHOP_KEYS")
    monkeypatch.setenv("SHOP_KEYS", "nonsense")
    with pytest.raises(ConfigurationError, match="SHOP_KEYS: key 1 cannot be used"):
        Keys.from_environment("SHOP_KEYS")


def test_keys_are_read_from_a_file_and_again_when_a_key_is_missing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "shop.keys"
    file.write_text(f"# the shop's\n\n{OLD.text}\n")
    file.chmod(0o640)
    keys_of_file = Keys.from_file(file)
    assert keys_of_file.ids == ("old",)
    file.write_text(f"{NEW.text}\n{OLD.text}\n")
    with pytest.raises(DecryptionFailed, match="the key 'new' is missing"):
        keys_of_file.named("new")  # it was read less than 30 s ago
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


def test_a_missing_key_file_raises_one_clear_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigurationError, match=r"the key file .*none cannot be read: FileNotFoundError"):
        Keys.from_file(tmp_path / "none")


class Service:
    """A key service: returns `keys`, or raises; counts how often it is called."""

    def __init__(self, *keys: Key) -> None:
        self.keys = list(keys)
        self.asked = 0
        self.fails = False

    def __call__(self) -> list[Key]:
        self.asked += 1
        if self.fails:
            raise RuntimeError(f"denied: {OLD.text}")
        return self.keys


def test_a_key_service_is_asked_at_the_first_use_and_every_30_s_for_a_missing_key(
    clock: list[float],
) -> None:
    service = Service(OLD)
    encryptor = AesGcmEncryptor(service)
    assert (service.asked, repr(encryptor)) == (0, "<AesGcmEncryptor 'aes-gcm', <Keys, not read yet>>")
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


def test_the_text_of_a_key_services_error_is_not_repeated_and_its_keys_stay(clock: list[float]) -> None:
    service = Service(OLD)
    service.fails = True
    encryptor = AesGcmEncryptor(service)
    for _ in range(3):
        with pytest.raises(ConfigurationError) as raised:
            encryptor.encrypt(b"x", context=CONTEXT)
        assert str(raised.value) == "keys could not be read: RuntimeError"
        assert (raised.value.__cause__, raised.value.__context__) == (None, None)
        clock[0] += 0.3
    assert service.asked == 1  # a service that is down is not asked for every attempt
    service.fails = False
    clock[0] += 0.5
    assert encryptor.keys.ids == ("old",)
    service.keys = [Key.generate("fernet")]
    with pytest.raises(ConfigurationError, match=r"is for fernet, not for aes-gcm"):
        encryptor.keys._ask()
    assert encryptor.keys.ids == ("old",)


def test_the_text_of_an_error_in_a_key_services_generator_is_not_repeated() -> None:
    def answer() -> Iterator[Key]:
        yield OLD
        raise RuntimeError(OLD.text)

    with pytest.raises(ConfigurationError, match=r"^keys could not be read: RuntimeError$") as raised:
        Keys(answer).first  # noqa: B018
    assert raised.value.__context__ is None


def test_a_new_first_key_is_used_within_a_minute_and_the_old_ones_stay_if_the_service_fails(
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
        2, ["keys could not be read: RuntimeError; the previous keys stay in use"],
    )  # fmt: skip
    service.fails = False
    clock[0] += 60
    assert (learned.first, learned.ids, service.asked) == (NEW, ("new", "old"), 3)


def test_while_one_thread_asks_for_a_new_key_the_others_use_the_old_one(
    clock: list[float],
) -> None:
    service, asks, answers = Service(OLD), threading.Event(), threading.Event()
    learned = Keys(lambda: (asks.set(), answers.wait(30), [NEW])[2] if service.asked else service())
    assert learned.first == OLD
    clock[0] += 60
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(lambda: learned.first)
        try:
            assert asks.wait(30)
            assert learned.first == OLD
        finally:
            answers.set()
        assert asking.result(30) == NEW


def test_a_child_forked_while_a_thread_asks_for_keys_does_not_wait_for_that_thread() -> None:
    asks, answers = threading.Event(), threading.Event()
    parent = os.getpid()

    def answer() -> list[Key]:
        if os.getpid() == parent:
            asks.set()
            answers.wait(30)
        return [OLD]

    encryptor = AesGcmEncryptor(answer)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(lambda: encryptor.keys.first)
        try:
            assert asks.wait(30)
            assert _exit_code_of_fork(lambda: encryptor.encrypt(b"x", context=CONTEXT)) == 0
        finally:
            answers.set()
        assert asking.result(30) == OLD


def _exit_code_of_fork(work: Callable[[], object]) -> int | None:
    """The exit code of a forked child that does `work`; None if it takes longer than 20 s, and was killed."""
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
