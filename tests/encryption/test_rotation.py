"""Key rotation: in pages, while workers and people use the rows, and any number of times."""

import json
import pathlib
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, Table, func, select, update
from sqlalchemy.orm import Session, sessionmaker

from async_task import (
    AesGcmEncryptor,
    AsyncTask,
    Attempt,
    ConfigurationError,
    FernetEncryptor,
    Key,
    Keys,
    Retry,
    Status,
    Succeeded,
    UnknownEncryptor,
    target,
)
from async_task.encryption import rotation
from async_task.encryption.ciphers import key_id_stored
from async_task.encryption.encryptors import register_encryptor
from async_task_cli.main import main
from clockwork import row_of
from databases import Database
from outbox import BOX, Gate, Gated, calls, events_of, gates

Write = Callable[..., Attempt]
Sessions = sessionmaker[Session]
TABLE: Table = Attempt.__table__  # type: ignore[assignment]
OLD, NEW, LOST = (Key.generate(id=key_id) for key_id in ("old", "new", "lost"))
BEFORE, AFTER, ALONE = (AesGcmEncryptor(keys) for keys in ([OLD], [NEW, OLD], [NEW]))


@target("test.safe", retry=Retry.every(60), encryptor="aes-gcm")
class Safe:
    @staticmethod
    def keep(number: int) -> None:
        calls.append(number)

    @staticmethod
    def open(number: int) -> None:
        calls.append(number)


@pytest.fixture(autouse=True)
def _old_key(own_encryptors: None) -> None:
    """At first the process has only the old key."""
    register_encryptor(BEFORE)


@pytest.fixture
def keep(sessions: Sessions) -> Callable[..., list[uuid.UUID]]:
    """`keep(3)`: three attempts under the first key, in one statement; returns their ids."""

    def keep(many: int, **options: Any) -> list[uuid.UUID]:
        row = {"target": Safe, "method_name": "keep", **options}
        with sessions.begin() as session:
            return Attempt.create_many(session, [{**row, "method_args": {"number": one}} for one in range(many)])

    return keep


Keep = Callable[..., list[uuid.UUID]]


def under(engine: Engine) -> dict[str | None, int]:
    """The number of attempts under each key."""
    found: dict[str | None, int] = {}
    with engine.connect() as connection:
        for (text,) in connection.execute(select(TABLE.c.method_args)):
            found[key_id_stored(text)] = found.get(key_id_stored(text), 0) + 1
    return found


def states(engine: Engine) -> dict[Status, int]:
    with engine.connect() as connection:
        counts = connection.execute(select(TABLE.c.status, func.count()).group_by(TABLE.c.status))
        return {row[0]: row[1] for row in counts}


@pytest.mark.slow
def test_a_rotation_leaves_nothing_under_the_old_key_and_changes_no_call(
    app: AsyncTask, engine: Engine, keep: Keep
) -> None:
    ids = keep(25)
    before = {one: row_of(engine, one)._mapping for one in ids}
    register_encryptor(AFTER)
    report = app.rotate_keys(page=10)
    assert (report.rotated, report.left, report.unreadable) == (25, 0, {})
    assert under(engine) == {"new": 25}
    register_encryptor(ALONE)
    for one in ids:
        row = row_of(engine, one)._mapping
        assert {name for name in row if row[name] != before[one][name]} == {"method_args"}
        assert events_of(engine, one) == []
    assert app.run_batch().succeeded == 25
    assert sorted(calls) == list(range(25))


def test_rows_under_the_first_key_are_not_changed(app: AsyncTask, engine: Engine, keep: Keep) -> None:
    register_encryptor(AFTER)
    texts = {one: row_of(engine, one).method_args for one in keep(3)}
    assert app.rotate_keys().rotated == 0
    assert {one: row_of(engine, one).method_args for one in texts} == texts


def test_a_stopped_rotation_is_continued_by_the_next_one(app: AsyncTask, engine: Engine, keep: Keep) -> None:
    keep(10)
    register_encryptor(AFTER)
    stop = threading.Event()
    report = app.rotate_keys(page=3, stop=stop, tell=lambda rotated: stop.set() if rotated == 6 else None)
    assert (report.rotated, report.left) == (6, 4)
    assert under(engine) == {"old": 4, "new": 6}
    report = app.rotate_keys(page=3)
    assert (report.rotated, report.left) == (4, 0)


@pytest.mark.slow
def test_ended_attempts_are_rotated_too_unless_only_pending_ones_are_wanted(
    app: AsyncTask, engine: Engine, keep: Keep
) -> None:
    done = keep(2)
    app.run_batch()
    keep(3)
    register_encryptor(AFTER)
    assert app.rotate_keys(pending_only=True).rotated == 3
    assert {key_id_stored(row_of(engine, one).method_args) for one in done} == {"old"}
    assert app.rotate_keys().rotated == 2
    assert under(engine) == {"new": 5}


def test_an_attempt_that_cannot_be_decrypted_is_reported_and_stops_nothing(
    app: AsyncTask, engine: Engine, keep: Keep, write: Write
) -> None:
    register_encryptor(AesGcmEncryptor([LOST]))
    (lost,) = keep(1)
    register_encryptor(BEFORE)
    broken, *_ = keep(8)
    foreign = write(Safe, "keep", {"number": 1}).id
    with engine.begin() as connection:
        text = row_of(engine, broken).method_args
        connection.execute(update(TABLE).where(TABLE.c.id == broken).values(method_args=text[:-12]))
        connection.execute(update(TABLE).where(TABLE.c.id == foreign).values(encryptor="no.such"))
    register_encryptor(AFTER)
    before = {one: row_of(engine, one).method_args for one in (lost, broken, foreign)}
    report = app.rotate_keys(page=2)
    assert (report.rotated, report.left) == (7, 0)
    assert {one: reason.partition(":")[0] for one, reason in report.unreadable.items()} == {
        lost: "DecryptionFailed",
        broken: "DecryptionFailed",
        foreign: "UnknownEncryptor",
    }
    assert "the key 'lost' is missing" in report.unreadable[lost]
    assert {one: row_of(engine, one).method_args for one in before} == before


class OneWay:
    """An encryptor that decrypts, and cannot encrypt because its service is down."""

    name = "aes-gcm"

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        raise ConnectionError(plaintext)

    def decrypt(self, ciphertext: bytes, *, context: bytes) -> bytes:
        return BEFORE.decrypt(ciphertext, context=context)


def test_an_attempt_that_cannot_be_encrypted_is_reported_and_stops_nothing(
    app: AsyncTask, engine: Engine, keep: Keep, write: Write
) -> None:
    ids, plain = keep(3), write(Safe, "keep", {"number": 9}, encryptor="null").id
    register_encryptor(FernetEncryptor([Key.generate("fernet", id="f")]))
    with_fernet = write(Safe, "keep", {"number": 8}, encryptor="fernet").id
    register_encryptor(OneWay())
    report = app.rotate_keys(to_policy=True, page=2)
    assert (report.rotated, report.left) == (0, 0)
    reason = "ConfigurationError: the encryptor 'aes-gcm' could not encrypt the arguments (ConnectionError)"
    assert report.unreadable == {plain: reason, with_fernet: reason}
    register_encryptor(BEFORE)
    assert app.rotate_keys(to_policy=True).rotated == 2
    assert under(engine) == {"old": len(ids) + 2}


def test_rows_of_other_encryptors_and_plain_rows_are_not_changed(app: AsyncTask, engine: Engine, write: Write) -> None:
    others = [write(Safe, "keep", {"number": 1}, encryptor=name) for name in ("null", BOX)]
    texts = [row_of(engine, one.id).method_args for one in others]
    register_encryptor(AFTER)
    assert app.rotate_keys().rotated == 0
    assert [row_of(engine, one.id).method_args for one in others] == texts


def test_rotation_of_one_encryptor_changes_no_rows_of_others(app: AsyncTask, engine: Engine, write: Write) -> None:
    old, new = (Key.generate("fernet", id=key_id) for key_id in ("old", "new"))
    register_encryptor(FernetEncryptor([old]))
    fernet = write(Safe, "keep", {"number": 1}, encryptor="fernet")
    aes_gcm = write(Safe, "keep", {"number": 1})
    register_encryptor(FernetEncryptor([new, old]))
    register_encryptor(AFTER)
    assert app.rotate_keys(encryptor="fernet").rotated == 1
    assert key_id_stored(row_of(engine, fernet.id).method_args) == "new"
    assert key_id_stored(row_of(engine, aes_gcm.id).method_args) == "old"
    with pytest.raises(UnknownEncryptor):
        app.rotate_keys(encryptor="no.such")


@pytest.mark.slow
def test_rotation_to_policy_encrypts_rows_as_their_targets_policy_says(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    register_encryptor(FernetEncryptor([Key.generate("fernet")]))
    mine = [write(Safe, "keep", {"number": 1}, encryptor=name) for name in ("null", "fernet", BOX, None)]
    theirs = write(Gated, "locked", {"gate": "none"})
    register_encryptor(AFTER)
    assert app.rotate_keys(to_policy=True).rotated == 4
    assert {(row_of(engine, one.id).encryptor, key_id_stored(row_of(engine, one.id).method_args)) for one in mine} == {
        ("aes-gcm", "new")
    }
    assert row_of(engine, theirs.id).encryptor == "null"
    assert app.rotate_keys(to_policy=True).rotated == 0
    assert {type(app.perform(one.id)) for one in mine} == {Succeeded}


@pytest.mark.parametrize("page", [0, -1, True, 1.5])
def test_a_page_must_be_a_whole_number(app: AsyncTask, page: Any) -> None:
    with pytest.raises(ConfigurationError, match="page is a whole number of at least 1"):
        app.rotate_keys(page=page)


@pytest.mark.in_turns
@pytest.mark.parametrize("option", ["encryptor", "pending_only", "to_policy", "dry_run", "stop", "tell"])
def test_each_option_of_a_rotation_is_checked(app: AsyncTask, option: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{option} "):
        app.rotate_keys(**{option: 7})  # type: ignore[arg-type]


def test_rotation_without_a_key_changes_nothing(app: AsyncTask, keep: Keep) -> None:
    keep(1)
    register_encryptor(AesGcmEncryptor(lambda: []))
    with pytest.raises(ConfigurationError, match="there is no key"):
        app.rotate_keys()


# While workers and people use the rows


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_a_running_attempt_is_skipped_and_rotated_in_a_later_pass(
    app: AsyncTask, engine: Engine, keep: Keep, write: Write
) -> None:
    gates["rotation"] = gate = Gate()
    running = write(Gated, "locked", {"gate": "rotation"}, encryptor="aes-gcm")
    keep(4)
    register_encryptor(AFTER)
    told: list[int] = []

    def tell(rotated: int) -> None:
        told.append(rotated)
        if len(told) == 3:  # the locked row was skipped twice: let its call end
            gate.opened.set()

    with ThreadPoolExecutor(1) as threads:
        performing = threads.submit(app.perform, running.id)
        gate.await_call()
        report = app.rotate_keys(tell=tell)
        assert isinstance(performing.result(), Succeeded)
    assert told[0] == 4
    assert (report.rotated, report.left) == (5, 0)
    assert under(engine) == {"new": 5}


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_a_row_that_stays_locked_is_left_to_the_next_run(
    app: AsyncTask, engine: Engine, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "PATIENCE", 0.2)
    first, *_ = keep(3)
    register_encryptor(AFTER)
    with engine.begin() as connection:
        connection.execute(select(TABLE.c.id).where(TABLE.c.id == first).with_for_update())
        report = app.rotate_keys()
        assert (report.rotated, report.left) == (2, 1)
    assert app.rotate_keys().rotated == 1


def test_an_attempt_is_rotated_while_it_runs_without_a_lock(app: AsyncTask, engine: Engine, write: Write) -> None:
    gates["rotation"] = gate = Gate()
    running = write(Gated, "leased", {"gate": "rotation"}, encryptor="aes-gcm")
    register_encryptor(AFTER)
    with ThreadPoolExecutor(1) as threads:
        performing = threads.submit(app.perform, running.id)
        gate.await_call()
        assert app.rotate_keys().rotated == 1
        gate.opened.set()
        assert isinstance(performing.result(), Succeeded)
    assert under(engine) == {"new": 1}


def test_a_text_that_was_changed_after_it_was_read_is_not_overwritten(
    app: AsyncTask, engine: Engine, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = keep(1)
    register_encryptor(AFTER)
    read, texts = rotation._read, list[str]()

    def read_and_be_overtaken(*given: Any) -> Any:
        rows = read(*given)
        if rows and not texts:
            monkeypatch.setattr(rotation, "_read", read)
            with ThreadPoolExecutor(1) as threads:
                threads.submit(app.rotate_keys).result()
            texts.append(row_of(engine, one).method_args)
        return rows

    monkeypatch.setattr(rotation, "_read", read_and_be_overtaken)
    assert app.rotate_keys().rotated == 0
    assert texts == [row_of(engine, one).method_args]


def test_a_row_can_be_canceled_during_a_rotation(app: AsyncTask, keep: Keep, sessions: Sessions) -> None:
    ids = keep(6)
    register_encryptor(AFTER)
    canceled: list[uuid.UUID] = []

    def cancel(_rotated: int) -> None:
        with sessions.begin() as session:
            session.get_one(Attempt, ids[len(canceled)]).cancel(session)
            canceled.append(ids[len(canceled)])

    assert app.rotate_keys(page=2, tell=cancel).rotated == 6
    assert len(canceled) >= 3


MANY = {"postgresql": 5_000}
"""The number of rows; 2,000 on other databases."""


@pytest.mark.long
def test_thousands_are_rotated_while_they_are_performed_and_none_is_lost(engine: Engine, keep: Keep) -> None:
    many = MANY.get(engine.dialect.name, 2_000)
    keep(many)
    register_encryptor(AFTER)
    app, stop = AsyncTask(engine, lease=1), threading.Event()

    def perform() -> tuple[int, int]:
        claimed = succeeded = 0
        while not stop.is_set() and claimed < many // 2:  # the others are performed under the new key alone
            report = app.run_batch(20, concurrency=2, stop=stop)
            claimed, succeeded = claimed + report.claimed, succeeded + report.succeeded
        return claimed, succeeded

    def wait_for_calls(rotated: int) -> None:
        while len(calls) < rotated // 100 and not performing.done():
            time.sleep(0.001)

    with ThreadPoolExecutor(1) as threads:
        performing = threads.submit(perform)
        try:
            report = app.rotate_keys(page=200, tell=wait_for_calls)
        finally:
            stop.set()
        claimed, succeeded = performing.result()
    assert (report.rotated, report.left, report.unreadable) == (many, 0, {})
    assert claimed == succeeded == len(calls) >= many // 100
    assert states(engine) == {Status.SUCCEEDED: succeeded, Status.PENDING: many - succeeded}
    register_encryptor(ALONE)
    with Session(engine) as session:
        attempts = session.scalars(select(Attempt)).all()
    assert sorted(one.method_args["number"] for one in attempts) == list(range(many))
    assert {(one.num_errors, one.num_crashes, one.last_error) for one in attempts} == {(0, 0, None)}
    assert app.run_batch(20).succeeded == 20


# The command line


APP = """
from async_task import AesGcmEncryptor, AsyncTask, Keys
app = AsyncTask({url!r}, modules=["test_rotation"], encryptors=[AesGcmEncryptor(Keys.from_file("shop.keys"))])
"""


class Said:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database: Database
) -> Iterator[Callable[..., Said]]:
    """`run([NEW, OLD], "rotate-keys")`: run a command with these keys in the application's key file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("COLUMNS", "80")

    def run(keys: list[Key], *words: str) -> Said:
        file = tmp_path / "shop.keys"
        file.touch(0o600)
        file.write_text("\n".join(key.text for key in keys))
        (tmp_path / "rotating.py").write_text(APP.format(url=database.sync_url))
        sys.modules.pop("rotating", None)
        capsys.readouterr()
        return Said(main([*words, "--app", "rotating:app"]), *capsys.readouterr())

    yield run
    sys.modules.pop("rotating", None)


Run = Callable[..., Said]


def test_rotate_keys_prints_nothing_without_a_terminal_and_a_report_with_json(
    run: Run, engine: Engine, keep: Keep
) -> None:
    keep(3)
    said = run([NEW, OLD], "rotate-keys", "--dry-run")
    assert (said.code, said.out, said.err) == (0, "", "3 attempts would be rotated.\n")
    assert json.loads(run([NEW, OLD], "rotate-keys", "--dry-run", "--json").out)["left"] == 3
    assert under(engine) == {"old": 3}
    said = run([NEW, OLD], "rotate-keys", "--page", "2")
    assert (said.code, said.out, said.err) == (0, "", "")
    assert under(engine) == {"new": 3}
    said = run([NEW], "rotate-keys", "--json")
    assert said.code == 0
    assert {**json.loads(said.out), "seconds": 0} == {"rotated": 0, "left": 0, "seconds": 0, "unreadable": []}


def test_rotate_keys_reports_what_cannot_be_decrypted_and_exits_with_1(run: Run, engine: Engine, keep: Keep) -> None:
    ids = keep(12)
    said = run([NEW, LOST], "rotate-keys")
    assert said.code == 1
    assert "0 attempts rotated in" in said.err
    assert "12 cannot be rotated." in said.err
    assert f"{ids[0]}: DecryptionFailed: the key 'old' is missing: there are new, lost; add it to" in said.err
    assert "and 2 more: --json names all" in said.err
    assert "Traceback" not in said.err
    unreadable = json.loads(run([NEW], "rotate-keys", "--json").out)["unreadable"]
    assert {one["id"] for one in unreadable} == {str(one) for one in ids}


@pytest.mark.only_on("postgresql")
def test_rotate_keys_exits_with_75_when_a_row_stays_locked(
    run: Run, engine: Engine, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "PATIENCE", 0.2)
    keep(2)
    with engine.begin() as connection:
        connection.execute(select(TABLE.c.id).limit(1).with_for_update())
        said = run([NEW, OLD], "rotate-keys")
    assert (said.code, "1 attempt rotated" in said.err, "1 left: run it again" in said.err) == (75, True, True)


@pytest.mark.in_turns
@pytest.mark.parametrize(
    ("words", "code", "words_said"),
    [
        (["--page", "0"], 2, "--page"),
        (["--page", "many"], 2, "--page"),
        (["--from", "no.such"], 78, "no encryptor is named 'no.such'"),
        (["--frm", "x"], 2, "No such option"),
    ],
)
def test_rotate_keys_refuses_bad_input_with_one_sentence(
    run: Run, engine: Engine, words: list[str], code: int, words_said: str
) -> None:
    said = run([NEW], "rotate-keys", *words)
    assert (said.code, said.out) == (code, "")
    assert words_said in said.err
    assert "Traceback" not in said.err


@pytest.mark.slow
def test_keys_list_prints_ids_and_counts_and_never_a_key(run: Run, engine: Engine, keep: Keep, app: AsyncTask) -> None:
    keep(2)
    app.run_batch()
    keep(3)
    register_encryptor(AesGcmEncryptor([LOST]))
    keep(1)
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == keep(1)[0]).values(method_args="!" * 99))
    said = run([NEW, OLD], "keys", "list", "--json")
    lines = [json.loads(line) for line in said.out.splitlines()]
    mine = {line["key_id"]: line for line in lines if line["encryptor"] == "aes-gcm"}
    assert {key_id: (line["pending"], line["total"]) for key_id, line in mine.items()} == {
        "new": (0, 0), "old": (3, 5), "lost": (1, 1), None: (1, 1),
    }  # fmt: skip
    assert {key_id: (line["is_first"], line["is_known"]) for key_id, line in mine.items()} == {
        "new": (True, True), "old": (False, True), "lost": (False, False), None: (False, False),
    }  # fmt: skip
    said = run([NEW, OLD], "keys", "list")
    table = [line.split() for line in said.out.splitlines()]
    assert ["aes-gcm", "new", "encrypts", "0", "0"] in table
    assert ["aes-gcm", "old", "decrypts", "3", "5"] in table
    assert ["aes-gcm", "lost", "missing", "1", "1"] in table
    assert max(map(len, said.out.splitlines())) <= 80
    for key in (NEW, OLD, LOST):
        assert key.text.rpartition(":")[2] not in said.out + said.err


@pytest.mark.parametrize("kind", ["aes-gcm", "fernet"])
def test_keys_generate_prints_one_key_and_nothing_else(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    assert main(["keys", "generate", "--kind", kind, "--id", "2026-11"]) == 0
    out, err = capsys.readouterr()
    key = Key.parse(out)
    assert (out, err, key.id, key.kind) == (f"{key.text}\n", "", "2026-11", kind)
    assert main(["keys", "generate"]) == 0
    assert Keys([capsys.readouterr().out]).first.kind == "aes-gcm"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["keys"], "Usage: async-task keys"),
        (["keys", "no-such"], "no-such"),
        (["keys", "generate", "--kind", "rot13"], "--kind"),
        (["keys", "generate", "--id", "a b"], "a key's id has 1 to 32 letters"),
    ],
)
def test_keys_refuses_bad_input_with_exit_code_2(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [["keys", "--help"], ["keys", "generate"]])
def test_keys_generate_imports_neither_sqlalchemy_nor_cryptography(words: list[str]) -> None:
    script = (
        "import sys; from async_task_cli.main import main; main(sys.argv[1:]);"
        "sys.exit('sqlalchemy' in sys.modules or 'cryptography' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, *words], check=True, capture_output=True)
