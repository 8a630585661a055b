"""`async-task show`: one attempt, its arguments and its events."""

import json
import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, insert, update

from async_task import AsyncTask, Attempt, JobEvent, Retry, target
from async_task.encryption.encryptors import register_encryptor
from clockwork import row_of
from conftest import by_one_door
from outbox import Client
from said import Run

Write = Callable[..., Attempt]


pytestmark = pytest.mark.usefixtures("alone")


class Reversing:
    """No secret is safe with it, but it is not the null encryptor."""

    name = "test.reversing"

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        return plaintext[::-1]

    def decrypt(self, ciphertext: bytes, *, context: bytes) -> bytes:
        return ciphertext[::-1]


register_encryptor(Reversing())


@target("test.discreet", redact=["password"])
def discreet(password: str, amount: int) -> None:
    """Has something to hide."""


@pytest.mark.slow
def test_show_prints_what_an_attempt_has_in_plain_words_and_every_event(run: Run, write: Write) -> None:
    attempt = write(Client, "fail", {"message": "no such order"}, idempotence_token="order-7", max_attempts=9)
    run("run-batch")
    said = run("show", str(attempt.id))
    words = " ".join(said.out.split())
    for part in (
        f"Attempt {attempt.id}",
        "call test.client.fail",
        "status pending, due in",
        "arguments message = 'no such order'",
        "blocked it is retried when it is due, after its last error",
        "1 try, 1 error of at most 9, the last began",
        "last error Broken: no such order",
        "queue default, priority 0",
        "token order-7",
        "error of try 1",
    ):
        assert part in words
    for empty in ("expires", "claimed by", " order key", "trace ", "encryption", "none", "never", "asked for"):
        assert empty not in words
    assert "Traceback" not in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    assert "raise Broken(message)" in run("show", str(attempt.id), "--traceback").out


@pytest.mark.slow
def test_show_tells_what_a_call_says_for_itself(run: Run, write: Write) -> None:
    attempt = write(Client, "ping", retry=Retry.every(90, max_attempts=3), timeout=5)
    words = " ".join(run("show", str(attempt.id)).out.split())
    assert " retry every 90 s, at most 3 errors (its own) timeout 5 s (its own)" in words
    assert json.loads(run("show", str(attempt.id), "--json").json["call_settings"])["timeout"] == 5


@pytest.mark.slow
@by_one_door
def test_a_token_is_listed_and_found_as_it_was_given(run: Run, app: AsyncTask) -> None:
    call = {"target": Client, "method_name": "ping", "idempotence_token": "daily"}
    app.write(lambda session: Attempt.ensure(session, **call, within="1d"))
    app.write(lambda session: Attempt.ensure(session, **call, until_done=True))
    app.write(lambda session: Attempt.ensure(session, target=Client, method_name="ping", until_done=True))
    lines = [json.loads(line) for line in run("list", "--token", "daily", "--json").out.splitlines()]
    assert [one["idempotence_token"] for one in lines] == ["daily", "daily"]
    assert "token daily" in " ".join(run("show", lines[0]["id"]).out.split())
    others = [json.loads(line)["idempotence_token"] for line in run("list", "--json").out.splitlines()]
    assert sorted(map(str, others)) == ["None", "daily", "daily"]


@pytest.mark.slow
def test_show_tells_created_tries_and_success_in_one_line(run: Run, write: Write) -> None:
    attempt = write(Client, "ping")
    run("run-batch")
    words = " ".join(run("show", str(attempt.id)).out.split())
    assert re.search(r" time created \S+ \S+ UTC \(.*\), 1 try, succeeded \S+ \S+ UTC \(.*\) queue ", words)


@pytest.mark.slow
def test_show_says_what_blocks_an_attempt(run: Run, write: Write) -> None:
    write(Client, "ping", order_key="a")
    attempt = write(Client, "ping", order_key="a", queue="mail")
    run("pause", "--queue", "mail", "--reason", "the server moves", "--actor", "anna")
    run("sweep")
    said = " ".join(run("show", attempt.id.hex[-8:]).out.split())
    assert "status pending, waits behind" in said
    assert "blocked it waits behind" in said
    assert "its queue mail is paused by anna since" in said
    assert "UTC: the server moves" in said
    assert "no worker is running" in said
    kinds = [one["kind"] for one in run("show", str(attempt.id), "--json").json["reasons"]]
    assert kinds == ["waits_behind", "paused", "not_served"]


@pytest.mark.slow
def test_show_as_json_has_every_field_arguments_and_events(run: Run, write: Write) -> None:
    attempt = write(Client, "fail", {"message": "no such order"})
    run("run-batch")
    shown = run("show", "--json", str(attempt.id)).json
    assert shown["method_args"] == {"message": "no such order"}
    assert (shown["status"], shown["num_errors"], shown["last_error"]) == ("pending", 1, "Broken: no such order")
    assert set(shown) >= {
        "id",
        "target",
        "due_at",
        "lease_until",
        "claim_id",
        "expires_at",
        "created_at",
        "encryptor",
        "queue",
    }
    (event,) = shown["events"]
    assert (event["kind"], event["num_attempt"], event["message"]) == ("error", 1, "Broken: no such order")
    assert "detail" not in event
    assert "Traceback" in run("show", "--json", "--traceback", str(attempt.id)).json["events"][0]["detail"]


def test_redacted_arguments_are_not_shown(run: Run, write: Write) -> None:
    attempt = write(discreet, None, {"password": "hush", "amount": 3})
    said = run("show", str(attempt.id)).out
    assert "password = [hidden]" in said
    assert "amount = 3" in said
    assert run("show", str(attempt.id), "--json").json["method_args"] == {"password": "[hidden]", "amount": 3}
    assert "hush" not in said


def test_encrypted_arguments_are_shown_as_encryptor_and_length(run: Run, engine: Engine, write: Write) -> None:
    attempt = write(discreet, None, {"password": "hush", "amount": 3}, encryptor="test.reversing")
    length = len(row_of(engine, attempt.id).method_args)
    said = run("show", str(attempt.id)).out
    assert f"encrypted by 'test.reversing', {length} characters" in " ".join(said.split())
    shown = run("show", str(attempt.id), "--json").json
    assert (shown["method_args"], shown["encryptor"], shown["encrypted_length"]) == (None, "test.reversing", length)
    assert "hush" not in said + json.dumps(shown)


def test_arguments_of_an_unknown_target_are_hidden(process: Any, write: Write) -> None:
    attempt = write(discreet, None, {"password": "hush", "amount": 3})
    out, _ = process("show", str(attempt.id)).communicate(timeout=60)
    assert "hush" not in out
    assert "test.discreet is not known here" in " ".join(out.split())


def test_an_event_sends_no_escape_sequence_to_the_terminal(run: Run, engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping")
    event = {
        "job_type": "async_task_attempts",
        "job_id": str(attempt.id),
        "kind": "note",
        "message": "[red]\x1b]0;ha\x07",
    }
    with engine.begin() as connection:
        connection.execute(insert(JobEvent).values(actor="\x1b[2J", **event))
    said = run("show", str(attempt.id)).out
    assert "[red]\\x1b]0;ha\\x07" in said
    assert not {"\x1b", "\x07"} & set(said)


def test_show_of_an_unknown_attempt_ends_1(run: Run) -> None:
    said = run("show", str(uuid.uuid4()))
    assert (said.code, said.out, said.err.count("\n")) == (1, "", 1)
    assert "there is no attempt" in said.err


BROKEN = {
    "cut off": "{",
    "empty": "",
    "null": "null",
    "a list": "[1]",
    "a long number": '{"message": ' + "9" * 6000 + "}",
    "nested": '{"message": ' + "[" * 100_000 + "}",
    "out of range": '{"message": 1e999}',
    "a surrogate": '{"message": "\\ud800\\u0000\\u001b[31m"}',
    "an unknown type": '{"message": {"$": "gone:Class", "v": {}}}',
    "a tag of another type": '{"message": {"$": 7}}',
}


@pytest.mark.slow
@by_one_door
@pytest.mark.parametrize("encryptor", ["null", "aes-gcm"])
def test_a_row_with_broken_arguments_is_shown_listed_and_changed(
    run: Run, write: Write, engine: Engine, app: AsyncTask, encryptor: str
) -> None:
    ids = {}
    for kind, stored in BROKEN.items():
        ids[kind] = str(write(Client, "fail", {"message": "x"}).id)
        with engine.begin() as connection:
            row = update(Attempt.__table__).where(Attempt.id == uuid.UUID(ids[kind]))  # type: ignore[arg-type]
            connection.execute(row.values(method_args=stored, encryptor=encryptor))
    for kind, attempt_id in ids.items():
        said = run("show", attempt_id)
        assert said.code == 0, (kind, said.err)
        as_json = run("show", attempt_id, "--json")
        assert as_json.code == 0, (kind, as_json.err)
        shown = json.loads(as_json.out, parse_constant=pytest.fail)
        assert (shown["id"], shown.get("encrypted_length", len(BROKEN[kind]))) == (attempt_id, len(BROKEN[kind]))
    assert run("list").code == run("list", "--json").code == 0
    app.rotate_keys()
    app.check_calls()
    assert run("cancel", "--reason", "so", *ids.values()).code == 0
    assert run("retry", "--reason", "so", *ids.values()).code == 0


def test_show_says_why_arguments_cannot_be_read(run: Run, write: Write, engine: Engine) -> None:
    attempt = write(Client, "fail", {"message": "secret"})
    with engine.begin() as connection:
        connection.execute(update(Attempt.__table__).values(method_args='{"message": "sec'))  # type: ignore[arg-type]
    words = " ".join(run("show", str(attempt.id)).out.split())
    assert "the stored arguments are not JSON: the text was cut off or changed (16 characters)" in words
    as_data = json.loads(run("show", str(attempt.id), "--json").out)
    assert as_data["method_args"] is None
    assert as_data["method_args_problem"] == "the stored arguments are not JSON: the text was cut off or changed"
