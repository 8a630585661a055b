"""`async-task enqueue`: a call written down by hand."""

import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

import click
from sqlalchemy import select
from sqlalchemy.orm import Session

from async_task import BaseAttempt, InvalidArguments, UnknownTarget
from async_task.attempts.create import named_draft
from async_task.database.clock import statement_now
from async_task.errors import near
from async_task.targets.registry import registered_targets, target_named
from async_task.targets.target import CALL, Method
from async_task_cli.application import existing
from async_task_cli.faults import CONFIGURATION, USAGE, Refusal
from async_task_cli.fields import as_json_value
from async_task_cli.moments import Length, Moment
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.terminal import moment, say


@click.command("enqueue", context_settings=SETTINGS)
@click.argument("call", metavar="TARGET[.METHOD]")
@click.option("--args", "args", metavar="JSON|@FILE|-", default="{}", help="The arguments by name, as a JSON object.")
@click.option(
    "--token", metavar="TOKEN", help="Idempotence token: the attempt that has it is answered, if there is one."
)
@click.option("--queue", metavar="NAME", help="Where it waits [default: the target's].")
@click.option("--priority", type=click.IntRange(0, 9), metavar="N", help="0 first, 9 last [default: the target's].")
@click.option("--order-key", metavar="KEY", help="Performed after all earlier ones with this key, one at a time.")
@click.option("--at", "at", type=Moment(), metavar="INSTANT", help="Due then: 2026-10-25T02:30Z.")
@click.option("--in", "after", type=Length(), metavar="DURATION", help="Due so long from now: 90s, 15min, 2h, 3d.")
@click.option("--expires-at", type=Moment(), metavar="INSTANT", help="Not to be started after that.")
@click.option("--expires-in", type=Length(), metavar="DURATION", help="Not to be started later than that from now.")
@click.option("--max-attempts", type=click.IntRange(1, 32767), metavar="N", help="Fail at that many errors.")
@click.option("--encryptor", metavar="NAME", help="Encrypt the arguments with it [default: the target's].")
@click.option("--dry-run", "is_dry", is_flag=True, help="Check everything, and write nothing.")
@as_json
@reaching
def enqueue(
    wanted: Wanted, call: str, args: str, token: str | None, at: dt.datetime | None, after: dt.timedelta | None,
    expires_at: dt.datetime | None, expires_in: dt.timedelta | None, is_dry: bool, is_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Write a call down, and print its id. Checked as Attempt.create checks it.

    The arguments are plain JSON: each is made what its annotation says ("2026-10-25" for a date, a list for a tuple, an
    object for a dataclass). Write a Decimal as text, "19.90": it keeps all digits. A number with a point is read as a
    float, and is refused if a float cannot hold its digits. No other number is made of a text, and no text of a number.
    Of Decimal | str a text becomes the one that is named first. The form in which arguments are stored, {"$": "date",
    "v": "2026-10-25"}, is accepted too. An object has each name once. Messages never repeat arguments.

    Ends with 78 for a target that is not known here, with 2 for arguments that do not fit. --json: one object with id,
    created (false where the token had its attempt), status, target, method_name, queue, priority, due_at, expires_at,
    dry_run.
    """
    _refuse_two("--at", at, "--in", after)
    _refuse_two("--expires-at", expires_at, "--expires-in", expires_in)
    text = _text_of(args)
    with existing(wanted) as app:
        method = _method(call)
        now: dt.datetime = app.read(lambda session: session.scalar(select(statement_now())))
        given = {
            **options, "target": method.target.name, "method_name": method.name, "idempotence_token": token,
            "scheduled_at": at if after is None else now + after,
            "expires_at": expires_at if expires_in is None else now + expires_in,
        }  # fmt: skip
        try:
            given["method_args"] = method.signature.read(text)
            told = _foreseen(given) if is_dry else app.write(lambda session: _write(session, app.model, given, now))
        except InvalidArguments as error:
            words = str(error)
        else:
            _print(told, is_json=is_json)
            return
    raise Refusal(words, USAGE)  # outside of the handler: what it handles may hold the arguments


def _method(call: str) -> Method:
    """What is to be called. Raises UnknownMethod, and Refusal for an unknown target, with the nearest one."""
    try:
        return target_named(call).method(None)
    except UnknownTarget:
        target, _, method = call.rpartition(".")
    try:
        return target_named(target).method(method)
    except UnknownTarget:
        raise Refusal(
            f"no target is registered as {call!r}{near(call, _calls())}: name its --app or --module", CONFIGURATION
        ) from None


def _calls() -> list[str]:
    found = [(one.name, name) for one in registered_targets() for name in one.own_callables()]
    return [name if method == CALL else f"{name}.{method}" for name, method in found]


def _text_of(args: str) -> str:
    try:
        if args == "-":
            return sys.stdin.read()
        return Path(args[1:]).read_text(encoding="utf-8") if args.startswith("@") else args
    except OSError as error:
        words = f"{args[1:]} cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        words = "what it reads is not UTF-8"
    raise click.BadParameter(words, param_hint="'--args'")


def _refuse_two(name: str, one: object, other_name: str, other: object) -> None:
    if one is not None and other is not None:
        raise click.UsageError(f"{name} or {other_name}: not both")


def _write(session: Session, model: type[BaseAttempt], given: dict[str, Any], now: dt.datetime) -> dict[str, Any]:
    if given["idempotence_token"] is not None:
        attempt = model.ensure(session, **given)
    else:
        attempt = model.create(session=session, **given)
        session.flush()
    session.refresh(attempt)
    return _told(attempt, created=attempt.created_at >= now, dry_run=False)


def _foreseen(given: dict[str, Any]) -> dict[str, Any]:
    values = {"due_at": None, **named_draft("enqueue", given).values, "id": None}
    return {**{name: values[name] for name in TOLD}, "created": False, "dry_run": True}


TOLD = ("id", "status", "target", "method_name", "queue", "priority", "due_at", "expires_at")


def _told(attempt: BaseAttempt, **more: Any) -> dict[str, Any]:
    return {**{name: getattr(attempt, name) for name in TOLD}, **more}


def _print(told: dict[str, Any], *, is_json: bool) -> None:
    if is_json:
        click.echo(json.dumps({name: as_json_value(value) for name, value in told.items()}))
    elif told["dry_run"]:
        due = "at once" if told["due_at"] is None else moment(told["due_at"])
        say(f"Would write down {_call(told)}, due {due}, queue {told['queue']}, priority {told['priority']}.")
    else:
        click.echo(str(told["id"]))
        if not told["created"]:
            say(f"It was there before, and is {told['status']}.")


def _call(told: dict[str, Any]) -> str:
    return told["target"] if told["method_name"] == CALL else f"{told['target']}.{told['method_name']}"
