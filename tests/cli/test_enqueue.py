"""`async-task enqueue`: a call written down by hand, from plain JSON."""

import dataclasses
import datetime as dt
import decimal
import enum
import io
import json
import pathlib
import sys
import typing
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, String, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from async_task import Attempt, BaseAttempt, target
from clockwork import row_of
from databases import Database
from outbox import Client, Rows, calls
from said import Run

Write = Callable[..., Attempt]
on_one_database = pytest.mark.only_on("postgresql")
"""What words and JSON mean is decided before any database is asked, and what is stored is a text on each."""


class Size(enum.Enum):
    SMALL = "s"


@dataclasses.dataclass
class Line:
    product: str
    price: decimal.Decimal
    packed: dt.datetime | None = None


class Point(typing.NamedTuple):
    x: int
    y: int


@target("test.typed")
class Typed:
    """Takes everything."""

    @staticmethod
    def take(
        day: dt.date, at: dt.datetime, price: decimal.Decimal, key: uuid.UUID, size: Size, line: Line,
        pair: tuple[int, str], tags: set[str], point: Point, wait: dt.timedelta, anything: Any = None,
    ) -> None:  # fmt: skip
        calls.append((day, at, price, key, size, line, pair, tags, point, wait, anything))

    @staticmethod
    def open(name: str, first: dt.date, second: dt.date | None = None) -> None:
        calls.append((name, {"first": first, "second": second}))


@target("test.guarded", redact=["card"])
def guarded(card: str, amount: int) -> None:
    """Has something to hide."""


class Level(enum.IntEnum):
    LOW = 0
    HIGH = 1


@target("test.exact")
class Exact:
    """Takes amounts of money, in every place."""

    @staticmethod
    def pay(amount: decimal.Decimal, amounts: list[decimal.Decimal], line: Line, rate: float, anything: Any) -> None:
        calls.append((amount, amounts, line.price, rate, anything))

    @staticmethod
    def take(
        either: decimal.Decimal | str | None = None, text: str | decimal.Decimal | None = None,
        number: decimal.Decimal | float | None = None, level: Level = Level.LOW,
        levels: list[Level | bool] | None = None, sure: typing.Literal[True] = True,
    ) -> None:  # fmt: skip
        calls.append({name: value for name, value in locals().items() if value is not None})

    @staticmethod
    def untyped(anything) -> None:  # type: ignore[no-untyped-def]
        calls.append(anything)


KEY = "0199f3a0-0000-7000-8000-000000000000"
PLAIN = {
    "day": "2026-10-25", "at": "2026-10-25T02:30:00+02:00", "price": "19.90", "key": KEY, "size": "s",
    "line": {"product": "p", "price": "1.50", "packed": "2026-10-25T02:30:00Z"}, "pair": [1, "one"], "tags": ["a"],
    "point": [1, 2], "wait": "PT5M", "anything": {"free": ["2026-10-25", 1.5, None]},
}  # fmt: skip
MEANT = (
    dt.date(2026, 10, 25), dt.datetime(2026, 10, 25, 0, 30, tzinfo=dt.UTC), decimal.Decimal("19.90"), uuid.UUID(KEY),
    Size.SMALL, Line("p", decimal.Decimal("1.50"), dt.datetime(2026, 10, 25, 2, 30, tzinfo=dt.UTC)), (1, "one"),
    {"a"}, Point(1, 2), dt.timedelta(minutes=5), {"free": ["2026-10-25", 1.5, None]},
)  # fmt: skip


def count(engine: Engine) -> int:
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(Attempt)) or 0


@pytest.mark.slow
def test_a_call_is_written_down_and_its_id_printed(run: Run, engine: Engine) -> None:
    args = json.dumps({"customer_token": "c-81", "order_number": 7})
    said = run("enqueue", "test.client.fulfill", "--args", args)
    attempt_id = uuid.UUID(said.out.strip())
    assert (said.code, said.err, row_of(engine, attempt_id).num_attempts) == (0, "", 0)
    assert run("run-batch", "--json").json["succeeded"] == 1
    assert calls == [("c-81", 7)]


def test_a_function_is_its_own_name_and_needs_no_arguments(run: Run, engine: Engine) -> None:
    line = run("enqueue", "test.effect", "--json").json
    assert (line["created"], line["status"], line["target"], line["method_name"]) == (
        True, "pending", "test.effect", "__call__",
    )  # fmt: skip
    assert set(line) == {
        "id", "created", "status", "target", "method_name", "queue", "priority", "due_at", "expires_at", "dry_run",
    }  # fmt: skip


@pytest.mark.in_turns
@pytest.mark.parametrize("way", ["inline", "file", "stdin"])
def test_plain_json_becomes_what_the_annotations_say(run: Run, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    text = json.dumps(PLAIN)
    pathlib.Path("args.json").write_text(text)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    args = {"inline": text, "file": "@args.json", "stdin": "-"}[way]
    assert run("enqueue", "test.typed.take", "--args", args).code == 0
    assert run("run-batch", "--json").json["succeeded"] == 1
    assert calls == [MEANT]


@pytest.mark.slow
def test_the_stored_form_is_taken_too_also_beside_plain_json(run: Run, write: Write) -> None:
    args = {"name": "n", "first": {"$": "date", "v": "2026-10-25"}, "second": "2026-10-26"}
    assert run("enqueue", "test.typed.open", "--args", json.dumps(args)).code == 0
    run("run-batch")
    assert calls == [("n", {"first": dt.date(2026, 10, 25), "second": dt.date(2026, 10, 26)})]
    shown = run("show", "--json", run("enqueue", "test.typed.take", "--args", json.dumps(PLAIN)).out.strip()).json
    calls.clear()
    assert run("enqueue", "test.typed.take", "--args", json.dumps(shown["method_args"])).code == 0
    run("run-batch")
    assert calls == [MEANT, MEANT]


GREAT = "9007199254740993.01"


@pytest.mark.slow
def test_a_decimal_written_as_text_keeps_its_digits_wherever_it_is(run: Run) -> None:
    line = '{"product": "p", "price": "1.50"}'
    args = (
        f'{{"amount": "{GREAT}", "amounts": ["{GREAT}", 19.90, 7], "line": {line}, "rate": 19.90, "anything": [1.5]}}'
    )
    assert run("enqueue", "test.exact.pay", "--args", args).code == 0
    run("run-batch")
    ((amount, amounts, price, rate, anything),) = calls
    assert [str(one) for one in (amount, *amounts, price)] == [GREAT, GREAT, "19.9", "7", "1.50"]
    assert (rate, anything, type(rate), type(anything[0])) == (19.9, [1.5], float, float)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "taken"),
    [
        ('{"either": 19.90, "text": "19.90"}', {"either": decimal.Decimal("19.9"), "text": "19.90"}),
        ('{"either": "19.90", "text": 19.9}', {"either": decimal.Decimal("19.90"), "text": decimal.Decimal("19.9")}),
        ('{"either": "soon", "number": 19.90}', {"either": "soon", "number": 19.9}),
        ('{"number": "19.90"}', {"number": decimal.Decimal("19.90")}),
        ('{"number": {"$": "decimal", "v": "19.90"}, "either": 1.10}',
         {"number": decimal.Decimal("19.90"), "either": decimal.Decimal("1.1")}),
        ('{"level": 1, "levels": [true, 1], "sure": true}', {"level": Level.HIGH, "levels": [True, Level.HIGH]}),
    ],
)  # fmt: skip
@on_one_database
def test_of_a_union_a_number_and_a_text_are_what_the_help_says(run: Run, args: str, taken: dict[str, Any]) -> None:
    assert run("enqueue", "test.exact.take", "--args", args).code == 0
    run("run-batch")
    assert repr(calls) == repr([{**calls[0], **taken}])


@on_one_database
def test_a_number_without_an_annotation_is_a_float(run: Run) -> None:
    assert run("enqueue", "test.exact.untyped", "--args", '{"anything": {"a": 19.90, "b": [1.5]}}').code == 0
    run("run-batch")
    assert repr(calls) == "[{'a': 19.9, 'b': [1.5]}]"


@pytest.mark.parametrize(
    ("args", "part"),
    [
        ('{"level": true}', "level: true and false are not numbers"),
        (f'{{"number": {GREAT}}}', "a number has more digits than a float holds: for a Decimal write it as text"),
        ('{"number": 0.10000000000000000001}', "a number has more digits than a float holds"),
        ('{"number": 1e-99999999999999999999}', "a number has more digits than a float holds"),
        ('{"level": 0, "level": 1}', "an object has a name twice"),
        ('{"more": {"a": 1, "a": 2}}', "an object has a name twice"),
        ('{"number": 1e400}', "a number is too large for a float"),
        ('{"number": {"$": "decimal", "v": 19.90}}', "a broken decimal"),
    ],
)
@on_one_database
def test_what_would_be_changed_silently_is_refused(run: Run, engine: Engine, args: str, part: str) -> None:
    said = run("enqueue", "test.exact.take", "--args", args)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert part in said.err
    assert count(engine) == 0


@pytest.mark.slow
def test_its_options_are_those_of_create(run: Run, engine: Engine) -> None:
    words = "--queue mail --priority 7 --in 2h --expires-in 3h --max-attempts 4 --encryptor test.box --token order-7"
    said = run("enqueue", "test.client.ping", *words.split())
    row = row_of(engine, uuid.UUID(said.out.strip()))
    assert (row.queue, row.priority, row.max_attempts, row.encryptor, row.idempotence_token) == (
        "mail", 7, 4, "test.box", "order-7",
    )  # fmt: skip
    assert row.due_at == row.scheduled_at
    assert abs(row.expires_at - row.due_at - dt.timedelta(hours=1)) < dt.timedelta(seconds=5)
    assert abs(row.due_at - dt.datetime.now(dt.UTC) - dt.timedelta(hours=2)) < dt.timedelta(minutes=1)
    times = "--at 2031-10-25T02:30Z --expires-at 2031-10-25T05:30+02:00"
    row = row_of(engine, uuid.UUID(run("enqueue", "test.client.ping", *times.split()).out.strip()))
    assert row.due_at.isoformat() == "2031-10-25T02:30:00+00:00"
    assert row.expires_at.isoformat() == "2031-10-25T03:30:00+00:00"


def test_a_delay_and_a_time_limit_are_those_of_create(run: Run, engine: Engine) -> None:
    row = row_of(engine, uuid.UUID(run("enqueue", "test.client.ping", "--delay", "90s").out.strip()))
    assert row.due_at == row.scheduled_at
    assert abs(row.due_at - row.created_at - dt.timedelta(seconds=90)) < dt.timedelta(milliseconds=5)
    row = row_of(engine, uuid.UUID(run("enqueue", "test.client.ping", "--timeout", "90s").out.strip()))
    assert (row.call_settings, row.scheduled_at) == ('{"timeout": 90.0}', None)
    line = run("enqueue", "test.client.ping", "--delay", "2h", "--dry-run", "--json").json
    due = dt.datetime.fromisoformat(line["due_at"]) - dt.datetime.now(dt.UTC)
    assert abs(due - dt.timedelta(hours=2)) < dt.timedelta(minutes=1)


@pytest.mark.slow
@pytest.mark.parametrize("token", ["", " --token T"])
@pytest.mark.parametrize("how", ["--until-done", "--within 90y"])
def test_a_call_is_enqueued_once_while_it_is_pending_or_in_a_window(
    run: Run, engine: Engine, how: str, token: str
) -> None:
    words = f"test.client.ping --json {how}{token}".split()
    assert run("enqueue", *words, "--dry-run").json["created"] is False
    assert count(engine) == 0
    first, second = run("enqueue", *words).json, run("enqueue", *words).json
    assert (first["created"], second["created"], second["id"]) == (True, False, first["id"])
    with Session(engine) as session, session.begin():
        found = session.get_one(Attempt, uuid.UUID(first["id"]))
        found.cancel(session)
    third = run("enqueue", *words).json
    assert third["created"] is (how == "--until-done")
    assert count(engine) == 1 + third["created"]


@pytest.mark.slow
def test_a_token_that_has_its_attempt_answers_that_one(run: Run, engine: Engine) -> None:
    first = run("enqueue", "test.client.ping", "--token", "once")
    run("run-batch")
    second = run("enqueue", "test.client.ping", "--token", "once")
    assert (second.code, second.out, second.err) == (0, first.out, "It was there before, and is succeeded.\n")
    line = run("enqueue", "test.client.ping", "--token", "once", "--json").json
    assert (line["created"], line["id"], count(engine)) == (False, first.out.strip(), 1)


def test_a_dry_run_checks_everything_and_writes_nothing(run: Run, engine: Engine) -> None:
    said = run("enqueue", "test.client.ping", "--dry-run", "--at", "2031-10-25T02:30Z")
    words = "Would write down test.client.ping, due 2031-10-25 02:30:00 UTC, queue default, priority 0.\n"
    assert (said.code, said.out, said.err) == (0, "", words)
    line = run("enqueue", "test.client.ping", "--dry-run", "--json", "--token", "t").json
    assert (line["id"], line["created"], line["dry_run"], line["target"]) == (None, False, True, "test.client")
    assert run("enqueue", "test.client.fulfill", "--dry-run").code == 2
    assert count(engine) == 0


@pytest.mark.parametrize(
    ("call", "part"),
    [
        ("test.clent.ping", "(did you mean 'test.client.ping'?)"),
        ("test.efect", "(did you mean 'test.effect'?)"),
        ("test.client.pin", "has no method 'pin' (did you mean 'ping'?)"),
        ("test.client", "is called by one of its methods"),
        ("test.client._hidden", "a name beginning with _ is never called"),
        ("os.system", "no target is registered as 'os.system'"),
        ("", "no target is registered as ''"),
    ],
)
@on_one_database
def test_a_target_that_is_not_known_ends_78_with_the_nearest(run: Run, engine: Engine, call: str, part: str) -> None:
    said = run("enqueue", call)
    assert (said.code, said.out, said.err.count("\n")) == (78, "", 1)
    assert part in said.err
    assert count(engine) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "args", "part"),
    [
        ("test.guarded", '{"card": "4111-hush", "amount": "4111-hush"}', "amount: Input should be a valid integer"),
        ("test.guarded", '{"card": 4111, "amount": 3}', "card: Input should be a valid string"),
        ("test.guarded", '{"card": "4111-hush"}', "the argument 'amount' is missing"),
        (
            "test.guarded",
            '{"card": "4111-hush", "amount": 3, "b": 1}',
            "no argument is named 'b'",
        ),
        ("test.guarded", '{"card": "4111-hush", "amount": 3', "not JSON: Expecting ',' delimiter, in line 1, column"),
        ("test.guarded", '["4111-hush"]', "not a JSON object: write the arguments by name"),
        ("test.guarded", '{"card": {"$": "4111-hush", "v": 1}, "amount": 3}', "not registered in this process"),
        ("test.guarded", '{"card": {"$": "uuid", "v": "4111-hush"}, "amount": 3}', "a broken uuid"),
        ("test.guarded", '{"card": "4111-hush", "amount": ' + "9" * 5000 + "}", "too many digits"),
        ("test.typed.open", '{"name": "n", "first": "4111-hush"}', "first: Input should be a valid date"),
        (
            "test.typed.take",
            json.dumps({**PLAIN, "line": {"product": "p", "price": "4111-hush"}}),
            "line.[an entry]: Input should be a valid dec",
        ),
        ("test.typed.take", json.dumps({**PLAIN, "key": "4111-hush"}), "key: Input should be a valid UUID"),
        ("test.typed.take", json.dumps({**PLAIN, "at": 1700000000}), "at: Input should be a valid datetime"),
    ],
)
@on_one_database
def test_arguments_that_do_not_fit_end_2_with_the_field_and_are_not_repeated(
    run: Run, engine: Engine, call: str, args: str, part: str
) -> None:
    for words in ((), ("--dry-run",), ("--debug",)):
        said = run("enqueue", call, "--args", args, *words)
        assert (said.code, said.out) == (2, "")
        assert part in said.err
        assert "4111" not in said.err
    assert count(engine) == 0


class NeedyAttempt(BaseAttempt, Rows):
    """A user's own model, with a column that `enqueue` cannot fill."""

    __tablename__ = "needy_attempts"

    tenant: Mapped[str] = mapped_column(String(20))


def test_debug_shows_where_and_no_row_also_with_an_engine_that_shows_parameters(
    say: Run, engine: Engine, database: Database
) -> None:
    name = f"needy_{uuid.uuid4().hex}"
    pathlib.Path(f"{name}.py").write_text(
        "from sqlalchemy import create_engine\n"
        "from async_task import AsyncTask\n"
        "from test_enqueue import NeedyAttempt\n"
        f"engine = create_engine({database.sync_url!r})\napp = AsyncTask(engine, model=NeedyAttempt)\n"
    )
    args = json.dumps({"customer_token": "canary-hush", "order_number": 7})
    said = say("enqueue", "test.client.fulfill", "--args", args, "--debug", "--app", f"{name}:app")
    sys.modules[name].engine.dispose()
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("Traceback")
    assert "async-task: the database refused: " in said.err
    assert "tenant" in said.err
    assert "hush" not in said.err


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        ("", 2, "Missing argument"),
        ("test.client.ping --args @missing.json", 2, "missing.json cannot be read: No such file"),
        ("test.client.ping --args @latin.json", 2, "not UTF-8"),
        ("test.client.ping --at 2031-10-25T02:30", 2, "names no instant without a zone"),
        ("test.client.ping --at 2031-10-25T02:30Z --in 2h", 2, "--at or --in: not both"),
        ("test.client.ping --expires-at 2031-10-25T02:30Z --expires-in 2h", 2, "not both"),
        ("test.act_leased --timeout 5s", 2, "nothing can end a plain def in mode='leased'"),
        ("test.client.ping --in soon", 2, "'soon' is not a length of time"),
        ("test.client.ping --priority 10", 2, "10"),
        ("test.client.ping --max-attempts 0", 2, "0"),
        (f"test.client.ping --queue {'q' * 65}", 2, "queue is a printable name"),
        ("test.client.ping --within 1h --until-done", 2, "--within or --until-done: not both"),
        ("test.client.ping --within 0s", 2, "within: a window is longer than 0 s"),
        ("test.client.ping --until-done --dry-run --token " + "t" * 181, 2, "at most 180 characters, not 181"),
        (f"test.client.ping --token {'t' * 256}", 2, "idempotence_token: takes a printable text"),
        ("test.client.ping --encryptor test.none", 78, "no encryptor is named 'test.none'"),
    ],
)
@on_one_database
def test_what_cannot_be_meant_is_said_in_one_sentence(
    run: Run, engine: Engine, words: str, code: int, part: str
) -> None:
    pathlib.Path("latin.json").write_bytes(b'{"name": "Zo\xeb"}')
    said = run("enqueue", *words.split())
    assert (said.code, said.out, said.err.count("\n")) == (code, "", 1)
    assert part in said.err
    assert count(engine) == 0


def test_an_instant_that_pydantic_read_can_be_an_argument(write: Write) -> None:
    from pydantic import TypeAdapter

    at = TypeAdapter(dt.datetime).validate_json('"2026-10-25T02:30:00+02:00"')
    kept = write(Client, "poll").method_args
    assert kept == {}
    written = write(Typed, "take", dict(zip(PLAIN, MEANT, strict=True)) | {"at": at})
    assert written.method_args["at"] == at
    assert type(written.method_args["at"].tzinfo) is dt.timezone  # type: ignore[attr-defined]
