"""`async-task enqueue`: a call that a person writes down."""

import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

import click

from async_task import BaseAttempt, InvalidArguments, UnknownTarget, parse_call
from async_task_cli.application import existing
from async_task_cli.faults import CONFIGURATION, USAGE, Refusal
from async_task_cli.fields import as_json_value
from async_task_cli.moments import Length, Moment
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.terminal import moment, say


@click.command("enqueue", context_settings=SETTINGS)
@click.argument("call", metavar="TARGET[.METHOD]")
@click.option("--args", "args", metavar="JSON|@FILE|-", default="{}", help="The arguments by name, as a JSON object.")
@click.option("--token", metavar="TOKEN", help="Idempotence token: where an attempt has it, that one's id is printed.")
@click.option("--within", type=Length(), metavar="DURATION", help="Only once in each window of this length.")
@click.option("--until-done", is_flag=True, help="Only if the last one that was enqueued so has ended.")
@click.option("--queue", metavar="NAME", help="The queue [default: the target's].")
@click.option("--priority", type=click.IntRange(0, 9), metavar="N", help="0 first, 9 last [default: the target's].")
@click.option("--order-key", metavar="KEY", help="Performed after all earlier ones with this key, one at a time.")
@click.option("--at", "at", type=Moment(), metavar="INSTANT", help="Due then: 2026-10-25T02:30Z.")
@click.option("--in", "--delay", "after", type=Length(), metavar="DURATION", help="Due after that time: 90s, 2h, 3d.")
@click.option("--expires-at", type=Moment(), metavar="INSTANT", help="Not to be started after that instant.")
@click.option("--expires-in", type=Length(), metavar="DURATION", help="Not to be started after that time.")
@click.option("--timeout", type=Length(), metavar="DURATION", help="Its time limit [default: the target's].")
@click.option("--max-attempts", type=click.IntRange(1, 32767), metavar="N", help="Fail at the N-th error.")
@click.option("--encryptor", metavar="NAME", help="Encrypt the arguments with it [default: the target's].")
@click.option("--dry-run", "is_dry", is_flag=True, help="Check everything, and write nothing.")
@as_json
@reaching
def enqueue(
    wanted: Wanted, call: str, args: str, token: str | None, at: dt.datetime | None, after: dt.timedelta | None,
    expires_at: dt.datetime | None, expires_in: dt.timedelta | None, within: dt.timedelta | None, until_done: bool,
    is_dry: bool, is_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Write a call down, and print its id. It is checked as Attempt.create checks it.

    The arguments are plain JSON. Each becomes what its annotation says: "2026-10-25" a date, a list a tuple, an object
    a dataclass. Write a Decimal as text, "19.90", so that it keeps all digits. A number with a point is read as a
    float, and is refused if a float cannot hold its digits. No text becomes another number, and no number a text. With
    Decimal | str a text becomes the one that is named first. The form in which arguments are stored, {"$": "date",
    "v": "2026-10-25"}, is valid too. A name may be in an object only once. No message repeats an argument.

    With --within or --until-done, --token may be left out: then equal arguments are the same call.

    Ends with 78 for an unknown target, with 2 for arguments that do not fit.

    --json writes one object: id, created (false where an attempt was found instead), status, target, method_name,
    queue, priority, due_at, expires_at, dry_run.
    """
    _refuse_two("--at", at, "--in", after)
    _refuse_two("--expires-at", expires_at, "--expires-in", expires_in)
    _refuse_two("--within", within, "--until-done", until_done or None)
    once = _once(token, within, until_done)
    text = _text_of(args)
    with existing(wanted) as app:
        now = app.now()
        given = {
            **options,
            "scheduled_at": at, "delay": after,
            "expires_at": expires_at if expires_in is None else now + expires_in,
        }  # fmt: skip
        try:
            given |= parse_call(call, text)
            work = _foreseen if is_dry else _write
            result: dict[str, Any] = app.write(lambda session: work(session, app.model, given, once, now))
        except UnknownTarget as error:
            raise Refusal(f"{error}: name its --app or --module", CONFIGURATION) from None
        except InvalidArguments as error:
            words = str(error)
        else:
            _print(result, is_json=is_json)
            return
    raise Refusal(words, USAGE)  # outside of the handler: what it handles may hold the arguments


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


RESULT = ("id", "status", "target", "method_name", "queue", "priority", "due_at", "expires_at")


def _once(token: str | None, within: dt.timedelta | None, until_done: bool) -> dict[str, Any] | None:
    """What only `ensure` takes; None for `create`."""
    if token is None and within is None and not until_done:
        return None
    return {"idempotence_token": token, "within": within, "until_done": until_done}


def _write(
    session: Any, model: type[BaseAttempt], given: dict[str, Any], once: dict[str, Any] | None, now: dt.datetime
) -> dict[str, Any]:
    if once is not None:
        attempt = model.ensure(session, **once, **given)
    else:
        attempt = model.create(session=session, **given)
        session.flush()
    session.refresh(attempt)
    return {**{name: getattr(attempt, name) for name in RESULT}, "created": attempt.created_at >= now, "dry_run": False}


def _foreseen(
    session: Any, model: type[BaseAttempt], given: dict[str, Any], once: dict[str, Any] | None, now: dt.datetime
) -> dict[str, Any]:
    attempt = model.create(session=session, **given)
    session.expunge(attempt)  # before anything is flushed
    if once is not None:  # it checks more than `create`
        model.ensure(session, **once, **given)
    session.rollback()
    due_at = given["scheduled_at"] if given["delay"] is None else now + given["delay"]
    at = {"due_at": due_at, "expires_at": given["expires_at"], "id": None}
    facts = {name: at[name] if name in at else getattr(attempt, name) for name in RESULT}
    return {**facts, "created": False, "dry_run": True}


def _print(result: dict[str, Any], *, is_json: bool) -> None:
    if is_json:
        click.echo(json.dumps({name: as_json_value(value) for name, value in result.items()}))
    elif result["dry_run"]:
        due = "at once" if result["due_at"] is None else moment(result["due_at"])
        say(f"Would write down {_call(result)}, due {due}, queue {result['queue']}, priority {result['priority']}.")
    else:
        click.echo(str(result["id"]))
        if not result["created"]:
            say(f"It was there before, and is {result['status']}.")


def _call(result: dict[str, Any]) -> str:
    target, method = result["target"], result["method_name"]
    return str(target) if method == "__call__" else f"{target}.{method}"
