"""The text of an error: all that helps, nothing that is secret, whatever the exception does."""

import base64
import dataclasses
import datetime as dt
import json
import logging
import urllib.parse
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt, Discard, Failed, RetryAfter
from async_task.error_text import HIDDEN, LONGEST_MESSAGE, LONGEST_TRACEBACK, describe, secrets_in
from clockwork import row_of
from outbox import BOX, Client, act_boxed, act_boxed_in_session, act_in_session, act_redacted, events_of, will

Write = Callable[..., Attempt]
CANARY = "4111-canary-1111"


class Mute(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt("in __str__")


class Odd(Exception):
    exceptions = None
    hide_parameters = property(lambda self: 1 / 0)


@dataclasses.dataclass(frozen=True, slots=True)
class Card:
    number: str


def test_a_summary_is_the_class_and_the_message() -> None:
    assert describe(ValueError("no such order")).summary == "ValueError: no such order"
    assert describe(ValueError()).summary == "ValueError"


def test_a_traceback_shows_the_place_and_no_local_variables() -> None:
    def inner() -> None:
        local_secret = "a local" + " variable"
        assert local_secret
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside") as found:
        inner()
    trace = describe(found.value).trace
    assert "in inner" in trace
    assert "a local variable" not in trace


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Mute(), "Mute: (its __str__ raised KeyboardInterrupt)"),
        (Odd("odd"), "Odd: odd"),
        (ValueError("a\0b\ud800c"), "ValueError: a\\0b\\ud800c"),
        (ExceptionGroup("two", [ValueError(1), ExceptionGroup("more", [KeyError(2)])]), "ExceptionGroup: two (2 sub-"),
    ],
)
def test_describe_never_raises(error: BaseException, said: str) -> None:
    failure = describe(error)
    assert failure.summary.startswith(said)
    failure.trace.encode()
    assert "\0" not in failure.trace


def test_a_message_of_10_mb_is_shortened_in_the_middle() -> None:
    failure = describe(ValueError("first" + "x" * 10_000_000 + "last"))
    assert len(failure.summary) < LONGEST_MESSAGE + 100
    assert len(failure.trace) < LONGEST_TRACEBACK + 100
    assert failure.summary.startswith("ValueError: firstxxx")
    assert failure.summary.endswith("xxxlast")
    assert len(failure.summary.splitlines()) == 1


def test_a_summary_has_one_line_and_the_trace_the_whole_message() -> None:
    failure = describe(ValueError("\nthe order is refused: \n - it has no lines\n - it has no customer\n"))
    assert failure.summary == "ValueError: the order is refused: [...]"
    assert "it has no customer" in failure.trace
    assert describe(ValueError("one line\n")).summary == "ValueError: one line"


def test_the_summary_of_a_failed_statement_is_the_drivers_message(
    engine: Engine,
) -> None:
    with engine.connect() as connection, pytest.raises(StatementError) as found:
        connection.execute(text("SELECT 1 FROM no_such_table"))
    failure = describe(found.value, ["such_tab"])
    assert failure.summary.startswith(f"{type(found.value).__name__}: ")
    assert f"no_{HIDDEN}le" in failure.summary
    assert len(failure.summary.splitlines()) == 1
    for more in ("SELECT 1", "sqlalche.me", "[SQL"):
        assert more not in failure.summary
        assert more in failure.trace


def test_a_secret_of_several_lines_is_hidden_before_the_first_line_is_taken() -> None:
    secrets = secrets_in({"key": "ab\nthe rest of it"}, None)
    assert describe(ValueError("wrong key: ab\nthe rest of it"), secrets).summary == f"ValueError: wrong key: {HIDDEN}"


@given(st.text())
def test_any_summary_can_be_stored(message: str) -> None:
    summary = describe(ValueError(message)).summary
    assert "\0" not in summary
    summary.encode()


@pytest.mark.parametrize(
    "quoted",
    [
        lambda secret: secret,
        repr,
        lambda secret: repr({"card": secret}),
        lambda secret: repr([secret.encode()]),
        json.dumps,
        lambda secret: json.dumps({"card": secret}, ensure_ascii=False),
        lambda secret: "https://shop/pay?" + urllib.parse.urlencode({"card": secret}),
        urllib.parse.quote,
    ],
)
@pytest.mark.parametrize("secret", [CANARY, "geheim \"und\" 'ü' / mit\ttab", "first line of it\nsecond line of it"])
def test_a_secret_is_hidden_in_every_encoding(quoted: Callable[[str], str], secret: str) -> None:
    secrets = secrets_in({"card": secret, "bytes": secret.encode()}, None)
    failure = describe(ExceptionGroup("all", [ValueError(quoted(secret))]), secrets)
    alone = describe(ValueError(quoted(secret)), secrets)
    assert HIDDEN in failure.trace
    assert HIDDEN in alone.summary
    for line in secret.splitlines():
        for said in (failure.summary, failure.trace, alone.summary, alone.trace):
            assert line not in said
            assert quoted(line).strip("\"'") not in said


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"deep": [{"card": CANARY}]}, CANARY),
        ({CANARY: 1}, CANARY),
        (Card(CANARY), CANARY),
        (CANARY.encode(), CANARY),
        (CANARY.encode(), base64.b64encode(CANARY.encode()).decode()),
        (41111111, "41111111"),
        (dt.date(1987, 6, 5), "1987-06-05"),
        (dt.datetime(1987, 6, 5, 4, 3, tzinfo=dt.UTC), "1987-06-05T04:03:00+00:00"),
        (dt.date(1987, 6, 5), "datetime.date(1987, 6, 5)"),
    ],
)
def test_the_values_in_an_argument_of_any_type_are_secrets(value: object, shown: str) -> None:
    assert shown not in describe(ValueError(f"<{shown}>"), secrets_in({"argument": value}, None)).summary


def test_only_the_named_arguments_are_secrets_when_names_are_given() -> None:
    secrets = secrets_in({"card": CANARY, "order": "order-7355608"}, ["card"])
    assert describe(ValueError(f"{CANARY} order-7355608"), secrets).summary == f"ValueError: {HIDDEN} order-7355608"


def test_with_too_many_secrets_the_whole_message_is_hidden() -> None:
    secrets = secrets_in({"cards": [f"secret-{number}" for number in range(5000)]}, None)
    failure = describe(ValueError("secret-77"), secrets)
    assert failure.summary == f"ValueError: {HIDDEN}"
    assert "secret-77" not in failure.trace


def test_parameters_of_sqlalchemy_are_never_shown(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(StatementError) as found:
        connection.execute(text("SELECT * FROM no_such_table WHERE name = :name"), {"name": CANARY})
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = found.value
    for error in (found.value, wrapped, ExceptionGroup("all", [found.value])):
        failure = describe(error)
        assert CANARY not in failure.summary + failure.trace
        assert "no_such_table" in failure.trace


class Echo(Exception):
    """Contains the secret in its message, an attribute and a note."""

    def __init__(self, secret: str) -> None:
        super().__init__(f"bad card {secret}")
        self.secret = secret
        self.add_note(f"a note about {secret}")


def plainly(secret: str) -> None:
    raise Echo(secret)


def chained(secret: str) -> None:
    try:
        raise Echo(secret)
    except Echo as error:
        raise RuntimeError("wrapped") from error


def grouped(secret: str) -> None:
    raise ExceptionGroup(f"all about {secret}", [Echo(secret), ValueError(repr(secret))])


def patiently(secret: str) -> None:
    raise RetryAfter(f"later, {secret}", after=5)


def giving_up(secret: str) -> None:
    raise Discard(f"no good: {secret}")


def by_a_key(secret: str) -> None:
    raise KeyError(secret)


def silently(secret: str) -> str:
    return secret


WAYS = [plainly, chained, grouped, patiently, giving_up, by_a_key, silently]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("door", "how"),
    [
        ("sync", "encrypted by the target"),
        ("sync", "encrypted by the call"),
        ("async", "encrypted by the call"),
        ("sync", "redacted"),
    ],
)
def test_a_canary_of_an_encrypted_or_redacted_attempt_appears_nowhere(
    app: AsyncTask,
    engine: Engine,
    write: Write,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    how: str,
) -> None:
    caplog.set_level(logging.DEBUG, "async_task")
    target = act_boxed if how == "encrypted by the target" else act_redacted
    encryptor = BOX if how == "encrypted by the call" else None
    for number, way in enumerate(WAYS):
        will(way)
        attempt = write(target, None, {"card": CANARY}, encryptor=encryptor, max_attempts=1 + number % 2)
        outcome = app.perform(attempt.id)
        events = events_of(engine, attempt.id)
        said = [repr(outcome), repr(attempt), str(row_of(engine, attempt.id).last_error)]
        said += [f"{one.message} {one.detail}" for one in events]
        assert CANARY not in " ".join([*said, caplog.text, *capfd.readouterr()]), way.__name__
        assert len(events) == (way is not silently), way.__name__


def test_parameters_of_a_failed_statement_in_a_target_are_stored_nowhere(
    app: AsyncTask, engine: Engine, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    def write_it(session: Session) -> None:
        session.execute(text("INSERT INTO effects (no_such_column) VALUES (:what)"), {"what": CANARY})

    will(write_it)
    caplog.set_level(logging.DEBUG, "async_task")
    attempt = write(act_in_session)
    app.perform(attempt.id)
    (event,) = events_of(engine, attempt.id)
    said = f"{event.message} {event.detail} {row_of(engine, attempt.id).last_error} {caplog.text}"
    assert "no_such_column" in said
    assert CANARY not in said


def test_a_canary_in_an_error_after_a_raw_commit_appears_nowhere(app: AsyncTask, engine: Engine, write: Write) -> None:
    def commit_and_raise(session: Session, card: str) -> None:
        session.execute(text("COMMIT"))
        raise Echo(card)

    will(commit_and_raise)
    attempt = write(act_boxed_in_session, None, {"card": CANARY})
    outcome = app.perform(attempt.id)
    events = events_of(engine, attempt.id)
    assert isinstance(outcome, Failed)
    said = [repr(outcome), str(row_of(engine, attempt.id).last_error)]
    said += [f"{one.message} {one.detail}" for one in events]
    assert CANARY not in " ".join(said)


def test_the_reason_of_a_discard_is_the_last_error_and_may_have_any_character(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempt = write(Client, "give_up", {"reason": "gone\0 \ud800"[:5] + "!" * 5000})
    outcome = app.perform(attempt.id)
    assert isinstance(outcome, Failed)
    row = row_of(engine, attempt.id)
    assert row.last_error.startswith("Discard: gone\\0!!!")
    assert len(row.last_error) < LONGEST_MESSAGE + 100
    assert outcome.reason == row.last_error
