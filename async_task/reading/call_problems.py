"""What keeps waiting calls from being performed by this process: names and keys that it does not know."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Table, case, func, select
from sqlalchemy.orm import Session

from async_task.encryption.ciphers import refuse_missing_key
from async_task.encryption.encryptors import NullEncryptor, encryptor_named
from async_task.encryption.rotation import key_head
from async_task.errors import AsyncTaskError
from async_task.schema.states import is_pending
from async_task.targets.registry import registered_targets, target_named

Subject = Literal["target", "encryptor", "key", "plain text"]


@dataclass(frozen=True, slots=True)
class CallProblem:
    """One thing that is wrong. `about`: its subject. `words`: what, and what to do. `is_blocking`: whether calls
    wait because of it; else it is worth knowing only."""

    about: Subject
    words: str
    is_blocking: bool


def problems_of(session: Session, table: Table) -> list[CallProblem]:
    """By subject. One walk over what waits, and one over the whole table for what is in plain text."""
    c = table.c
    asked: Any = select(c.target, c.method_name, c.encryptor, key_head(table)).where(is_pending(table)).distinct()
    waiting: Any = session.execute(asked.order_by(c.target, c.method_name, c.encryptor)).all()
    return [
        *_unknown(
            "target", ((row[0], row[1]) for row in waiting), lambda name, method: target_named(name).method(method)
        ),
        *_unknown("encryptor", ((row[2],) for row in waiting), encryptor_named),
        *_unknown_of_targets({row[2] for row in waiting}),
        *_unknown("key", ((row[2], row[3]) for row in waiting), _check_key),
        *_plain_text(session, table),
    ]


def _unknown(about: Subject, names: Iterable[tuple[str, ...]], look_up: Callable[..., object]) -> Iterator[CallProblem]:
    for each in sorted(set(names)):
        try:
            look_up(*each)
        except AsyncTaskError as error:
            yield CallProblem(about, f"calls wait that this process cannot make: {error}", is_blocking=True)


def _unknown_of_targets(waiting: set[str]) -> Iterator[CallProblem]:
    """Encryptors that targets of this process name and nobody has; but those that calls wait for, told already."""
    for target in registered_targets():
        name = target.policy.encryptor
        try:
            if name is not None and name not in waiting:
                encryptor_named(name)
        except AsyncTaskError as error:
            words = f"calls of {target.name} cannot be written: {error}"
            yield CallProblem("encryptor", words, is_blocking=True)


def _check_key(encryptor: str, head: str) -> None:
    try:
        known = encryptor_named(encryptor)
    except AsyncTaskError:
        return  # a problem of its own
    refuse_missing_key(known, head)


def _plain_text(session: Session, table: Table) -> Iterator[CallProblem]:
    """What is in plain text although the policy of its target names an encryptor; parked, if that takes no other."""
    c = table.c
    waiting = func.sum(case((is_pending(table), 1), else_=0))
    calls: Any = select(c.target, c.method_name, func.count(), waiting).where(c.encryptor == NullEncryptor.name)
    rows: Any = session.execute(calls.group_by(c.target, c.method_name)).all()
    total = parked = 0
    for target, method, number, pending in rows:
        policy = _policy_of(target, method)
        if policy is not None and policy.encryptor not in (None, NullEncryptor.name):
            total += number
            parked += int(pending) if policy.only_encrypted else 0
    if total:
        words = f"{total:,} attempt{'' if total == 1 else 's'} in plain text whose target names an encryptor"
        words += f", {parked:,} of them waiting and parked, since it takes encrypted ones only" if parked else ""
        yield CallProblem("plain text", f"{words}: `async-task rotate-keys --to-policy`", is_blocking=bool(parked))


def _policy_of(target: str, method: str) -> Any:
    try:
        return target_named(target).method(method).policy
    except AsyncTaskError:
        return None  # of a target that is not known here
