"""What is stuck among the attempts that wait in a queue: a row of the sample has the first cause that fits."""

import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Table, func, select
from sqlalchemy.orm import Session

from async_task.encryption.ciphers import key_id_stored
from async_task.encryption.encryptors import NullEncryptor
from async_task.outcomes import error_alone
from async_task.queue.backlog import MOST_COUNTED
from async_task.queue.serving import Serving
from async_task.reading.explanation import command
from async_task.reading.row_problems import UNFIT, KeyProblems, argument_problem
from async_task.reading.stuck_groups import StuckCause, StuckGroup, counted, jobs_of
from async_task.reading.waiting_sample import UNSERVED_AFTER, WaitingRow, WaitingSample, num_due
from async_task.schema.tables import companion_tables
from async_task.targets.registry import own_queue, problem_with

PAUSED_AFTER = dt.timedelta(hours=1)
"""For how long a queue is paused before that counts as forgotten."""
CHECKED, OF_A_CALL, LONGEST = 2_000, 200, 10_000
"""The arguments of how many rows are checked at most, of how many of one call, and of how many characters."""
PAGE = 500


class WaitingGroups(NamedTuple):
    """`groups`; `others`: the rows that are in none, which may fail again and again, or block others; `stuck`: those
    that are in one. `is_complete`: whether the arguments of all were checked."""

    groups: list[StuckGroup]
    others: list[WaitingRow]
    stuck: list[WaitingRow]
    is_complete: bool


def stuck_waiting(session: Session, table: Table, sample: WaitingSample, limit: int) -> WaitingGroups:
    """A bounded number of statements, whatever waits."""
    paused, serving = _paused(session, table), Serving.read(session, table)
    of_queues: list[StuckGroup] = []
    left: list[WaitingRow] = []
    stuck: list[WaitingRow] = []
    for queue, rows in sample.rows.items():
        due = sample.due(queue)
        if queue in paused:
            of_queues += _of_pause(session, table, sample, queue, paused[queue], limit)
        elif due and sample.now - due[0].due_at >= UNSERVED_AFTER and not serving.serves(queue):
            of_queues.append(_of_queue(session, table, sample, queue, serving, limit))
            stuck += due
        else:
            left += rows
    checkable = _checkable(left)
    checked = {row.id: row for row in islice(_in_turn(checkable), CHECKED)}
    is_complete = sample.is_complete and len(checked) == sum(map(len, checkable))
    known = Known(sample.now, paused, serving, _unfit(session, table, checked), KeyProblems())
    found, others = _by_cause(left, known)
    groups = [_group(table, *key, rows, limit, is_counted=is_complete) for key, rows in found.items()]
    return WaitingGroups([*of_queues, *groups], others, [*stuck, *chain(*found.values())], is_complete)


Key: TypeAlias = tuple[StuckCause, str]
"""The cause and the subject of a group."""


def _by_cause(rows: Iterable[WaitingRow], known: "Known") -> tuple[dict[Key, list[WaitingRow]], list[WaitingRow]]:
    """The rows of each group, and those that are in none."""
    found: dict[Key, list[WaitingRow]] = defaultdict(list)
    others: list[WaitingRow] = []
    for row in rows:
        key = known.cause_of(row)
        (others if key is None else found[key]).append(row)
    return found, others


def _group(
    table: Table, cause: StuckCause, subject: str, rows: Sequence[WaitingRow], limit: int, *, is_counted: bool
) -> StuckGroup:
    told = _TELL[cause](subject, rows, counted(len(rows), is_counted=is_counted))
    jobs = jobs_of(table.name, rows, "due_at", limit)
    return StuckGroup(cause, subject, told.words, len(rows), is_counted, jobs, told.remedy, told.effect)


class Pause(NamedTuple):
    at: dt.datetime
    by: str | None
    reason: str | None

    @property
    def words(self) -> str:
        by, why = f" by {self.by}" if self.by else "", f": {self.reason}" if self.reason else ""
        return f"paused{by} since {self.at:%Y-%m-%d %H:%M} UTC{why}"


def _paused(session: Session, table: Table) -> dict[str, Pause]:
    c = companion_tables(table).queues.c
    asked: Any = select(c.name, c.paused_at, c.paused_by, c.pause_reason).where(c.paused_at.is_not(None))
    rows: Any = session.execute(asked.order_by(c.name).limit(MOST_COUNTED))
    return {name: Pause(*about) for name, *about in rows}


class Known(NamedTuple):
    """What is known of all rows of a sample."""

    now: dt.datetime
    paused: Mapping[str, Pause]
    serving: Serving
    unfit: Mapping[Any, str]
    keys: KeyProblems

    def cause_of(self, row: WaitingRow) -> Key | None:
        """Why it is stuck, and the subject of its group; None if it is not, or not for one of these causes."""
        own, is_due = own_queue(row.target), row.due_at <= self.now
        if own in self.paused:
            is_long = is_due and self.now - self.paused[own].at >= PAUSED_AFTER
            return ("paused", row.target) if is_long else None
        if self.keys.of(row.encryptor, row.head) is not None:
            return "key_missing", f"{row.encryptor} {key_id_stored(row.head) or ''}".rstrip()
        if row.id in self.unfit or error_alone(row.error or "").startswith(UNFIT):
            return "unfit", row.target
        if is_due and self.serving.is_unknown(row.queue, row.target):
            return "unknown_target", row.target
        return None


def _checkable(rows: Sequence[WaitingRow]) -> list[list[WaitingRow]]:
    """By call, those whose arguments are not encrypted, and whose call this process knows."""
    by_call: dict[tuple[str, str], list[WaitingRow]] = defaultdict(list)
    for row in rows:
        if row.encryptor == NullEncryptor.name:
            by_call[row.target, row.method_name].append(row)
    return [some for call, some in by_call.items() if problem_with(*call) is None]


def _unfit(session: Session, table: Table, wanted: Mapping[Any, WaitingRow]) -> dict[Any, str]:
    """By id, why arguments do not fit; those whose text is long are not read."""
    ids, problems = list(wanted), dict[Any, str]()
    for start in range(0, len(ids), PAGE):
        c = table.c
        asked: Any = select(c.id, c.method_args).where(c.id.in_(ids[start : start + PAGE]))
        found: Any = session.execute(asked.where(func.length(c.method_args) <= LONGEST))
        for key, text in found:
            row = wanted[key]
            if (problem := argument_problem(row.target, row.method_name, row.encryptor, text)) is not None:
                problems[key] = problem
    return problems


def _in_turn(lists: Sequence[Sequence[WaitingRow]]) -> Iterator[WaitingRow]:
    """The first of each list, then the second of each, and so on."""
    for number in range(OF_A_CALL):
        yield from (one[number] for one in lists if number < len(one))


def _of_pause(
    session: Session, table: Table, sample: WaitingSample, queue: str, pause: Pause, limit: int
) -> Iterator[StuckGroup]:
    due = sample.due(queue)
    if due and sample.now - pause.at >= PAUSED_AFTER:
        number, is_counted = num_due(session, table, sample, queue)
        words = f"{counted(number, is_counted=is_counted)} due in the queue {queue}, which is {pause.words}"
        jobs, resume = jobs_of(table.name, due, "due_at", limit), command("resume", "--queue", queue)
        yield StuckGroup("paused", queue, words, number, is_counted, jobs, resume, _RESUMED)


_RESUMED = "Workers start them at once."


def _of_queue(
    session: Session, table: Table, sample: WaitingSample, queue: str, serving: Serving, limit: int
) -> StuckGroup:
    number, is_counted = num_due(session, table, sample, queue)
    why = f"which no running worker serves: {serving.said}" if serving.workers else "and no worker is running"
    words = f"{counted(number, is_counted=is_counted)} due in the queue {queue}, {why}"
    effect = "Performs here, once, what is due in it. A worker that serves the queue goes on: `async-task worker`."
    jobs = jobs_of(table.name, sample.due(queue), "due_at", limit)
    return StuckGroup(
        "not_served", queue, words, number, is_counted, jobs, command("run-batch", "--queue", queue), effect
    )


class Told(NamedTuple):
    """What is said of a group."""

    words: str
    remedy: str
    effect: str


def _of_paused_target(target: str, rows: Sequence[WaitingRow], number: str) -> Told:
    words = f"{number} of the target {target} due, which has been paused for more than an hour"
    return Told(words, command("resume", "--target", target), _RESUMED)


def _of_target(target: str, rows: Sequence[WaitingRow], number: str) -> Told:
    words = f"{number} of {target}, a target that no running worker of their queues knows"
    if all(problem_with(row.target, row.method_name) is None for row in rows):
        effect = "Performs here, once, what is due of it. Then start the workers again with a release that has it."
        return Told(words, command("run-batch", "--target", target), effect)
    effect = "Says what this process does not know: a former name goes into aliases=, a module into modules=."
    return Told(words, command("check"), effect)


def _of_key(_subject: str, rows: Sequence[WaitingRow], number: str) -> Told:
    words = f"{number} that cannot be decrypted here: {KeyProblems().of(rows[0].encryptor, rows[0].head)}"
    effect = "Lists the keys, and which this process lacks. Give it the key: the attempts then go on by themselves."
    return Told(words, command("keys", "list"), effect)


def _of_arguments(target: str, rows: Sequence[WaitingRow], number: str) -> Told:
    words = f"{number} of {target} whose arguments no longer fit its signature"
    effect = "Shows the oldest one. Let the target accept its arguments again; or cancel it, and enqueue the call anew."
    return Told(words, command("show", str(min(rows, key=lambda row: row.due_at).id)), effect)


_TELL: Mapping[StuckCause, Callable[[str, Sequence[WaitingRow], str], Told]] = {
    "paused": _of_paused_target,
    "unknown_target": _of_target,
    "key_missing": _of_key,
    "unfit": _of_arguments,
}
