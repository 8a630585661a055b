"""`async-task retry | reschedule | expire | fail | cancel`: the verbs by which people change attempts."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import click

from async_task import AsyncTask, Status, acting
from async_task_cli.actor import actor_of, as_actor
from async_task_cli.application import existing
from async_task_cli.changes import Verb, each, report
from async_task_cli.chosen import Chosen, choosing
from async_task_cli.moments import Length, Moment
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.reasons import check_reason, with_reason
from async_task_cli.terminal import moment

WAITING = (Status.PENDING.value,)


def changing(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that all verbs take."""
    return choosing(with_reason(as_actor(as_json(reaching(command)))))


@click.command("retry", context_settings=SETTINGS)
@changing
def retry(wanted: Wanted, chosen: Chosen, reason: str | None, actor: str | None, is_json: bool) -> int:
    """Make attempts due now; the next worker or run-batch performs them.

    For pending attempts, and for failed, expired and canceled ones, whose counters start again at 0 and which lose a
    deadline that has passed. --all means the failed ones, unless --status gives others. More than one need a --reason.

    Each is changed in a transaction of its own; one that is refused does not stop the others. Ends with 1 if any was
    refused.

    --json writes one object a line: id, verb, ok, status, why, outcome (null) and dry_run.
    """
    check_reason("retry", reason, chosen, for_one=False)
    verb = Verb("retry", "retry_now", Status.PENDING, "pending, due now", {"reason": reason})
    return _change(wanted, chosen, actor, lambda app: verb, states=(Status.FAILED.value,), is_json=is_json)


@click.command("reschedule", context_settings=SETTINGS)
@click.option("--at", "at", type=Moment(), metavar="INSTANT", help="Due then: 2026-10-25T02:30Z.")
@click.option("--in", "delay", type=Length(), metavar="DURATION", help="Due after that time: 90s, 15min, 2h, 3d.")
@changing
def reschedule(
    wanted: Wanted, chosen: Chosen, reason: str | None, actor: str | None, is_json: bool,
    at: dt.datetime | None, delay: dt.timedelta | None,
) -> int:  # fmt: skip
    """Make pending attempts due at another time: --at an instant, or --in a length of time by the database's clock.

    Exit codes, --all (the pending ones) and --json as with `retry`.
    """
    if (at is None) is (delay is None):
        raise click.UsageError("give --at INSTANT or --in DURATION")

    def verb(app: AsyncTask) -> Verb:
        due = app.now() + delay if delay is not None else at
        assert due is not None
        return Verb(
            "reschedule", "reschedule", Status.PENDING, f"pending, due {moment(due)}", {"at": due, "reason": reason}
        )

    return _change(wanted, chosen, actor, verb, states=WAITING, is_json=is_json)


@click.command("expire", context_settings=SETTINGS)
@changing
def expire(wanted: Wanted, chosen: Chosen, reason: str | None, actor: str | None, is_json: bool) -> int:
    """End pending attempts as expired: it is too late for their calls. Needs a --reason.

    Exit codes, --all (the pending ones) and --json as with `retry`.
    """
    return _end("expire", Status.EXPIRED, wanted, chosen, reason, actor, is_json=is_json)


@click.command("fail", context_settings=SETTINGS)
@changing
def fail(wanted: Wanted, chosen: Chosen, reason: str | None, actor: str | None, is_json: bool) -> int:
    """End pending attempts as failed for good. Needs a --reason.

    Exit codes, --all (the pending ones) and --json as with `retry`.
    """
    return _end("fail", Status.FAILED, wanted, chosen, reason, actor, is_json=is_json)


@click.command("cancel", context_settings=SETTINGS)
@changing
def cancel(wanted: Wanted, chosen: Chosen, reason: str | None, actor: str | None, is_json: bool) -> int:
    """End pending attempts whose calls are no longer wanted. Needs a --reason.

    Exit codes, --all (the pending ones) and --json as with `retry`.
    """
    return _end("cancel", Status.CANCELED, wanted, chosen, reason, actor, is_json=is_json)


def _end(
    word: str, status: Status, wanted: Wanted, chosen: Chosen, reason: str | None, actor: str | None, *, is_json: bool
) -> int:
    check_reason(word, reason, chosen, for_one=True)
    verb = Verb(word, word, status, status.value, {"reason": reason})
    return _change(wanted, chosen, actor, lambda app: verb, states=WAITING, is_json=is_json)


def _change(
    wanted: Wanted,
    chosen: Chosen,
    actor: str | None,
    verb_for: Callable[[AsyncTask], Verb],
    *,
    states: tuple[str, ...],
    is_json: bool,
) -> int:
    with existing(wanted) as app, acting(actor_of(actor)):
        verb = verb_for(app)
        ids = chosen.found(app, verb.word, states)
        changes = each(app, verb, ids, is_dry=chosen.is_dry)
        return report(verb.word, changes, is_dry=chosen.is_dry, is_json=is_json)
