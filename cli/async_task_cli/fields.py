"""The fields of an attempt, for people and for programs; and which of its arguments may be seen."""

import datetime as dt
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, inspect

from async_task import AsyncTaskError, BaseAttempt, NullEncryptor
from async_task.arguments.decoding import decode
from async_task.targets.registry import target_named
from async_task.targets.target import CALL

LISTED = (
    "id", "status", "target", "method_name", "queue", "priority", "idempotence_token", "num_attempts", "num_errors",
    "num_crashes", "max_attempts", "scheduled_at", "due_at", "expires_at", "claimed_by", "lease_until", "attempted_at",
    "completed_at", "last_error", "created_at", "updated_at", "order_key", "released",
)  # fmt: skip
UNSHOWN = frozenset({"encoded_args", "order_slot"})
HIDDEN = "[hidden]"


@dataclass(frozen=True, slots=True)
class Arguments:
    """What may be seen of an attempt's arguments.

    `values` (as Python has them) and `stored` (as JSON has them) by name, HIDDEN where the target's policy, or not
    knowing it, forbids more; both None when they are encrypted. `why_hidden`: words for people.
    """

    values: Mapping[str, Any] | None
    stored: Mapping[str, Any] | None
    why_hidden: str | None = None


def column(model: type[BaseAttempt], name: str) -> Any:
    """The model's attribute of that name, to select it."""
    return getattr(model, name).label(name)


def call_of(row: Any) -> str:
    """`shop.orders.fulfill`, or the target alone where it is what is called."""
    return str(row.target) if row.method_name == CALL else f"{row.target}.{row.method_name}"


def as_plain_data(row: Any) -> dict[str, Any]:
    """A row of named columns as JSON has it: instants in ISO 8601 with UTC, ids and states as texts."""
    return {name: as_json_value(value) for name, value in row._mapping.items()}


def as_json_value(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value)


def fields_of(attempt: BaseAttempt) -> dict[str, Any]:
    """All that the row holds but its arguments, by attribute, with the columns that the user added."""
    names = [one.key for one in inspect(type(attempt)).column_attrs if isinstance(one.columns[0], Column)]
    return {name: getattr(attempt, name) for name in names if name not in UNSHOWN}


def arguments_of(attempt: BaseAttempt) -> Arguments:
    """What may be seen of them. Never decrypts."""
    if attempt.encryptor != NullEncryptor.name:
        return Arguments(None, None)
    stored = json.loads(attempt.encoded_args)
    hidden, why = _hidden(attempt, stored)
    try:
        values: Mapping[str, Any] = decode(attempt.encoded_args)
    except AsyncTaskError:
        values = stored  # made of a type that this process does not know
    return Arguments(_masked(values, hidden), _masked(stored, hidden), why)


def _hidden(attempt: BaseAttempt, names: Iterable[str]) -> tuple[frozenset[str], str | None]:
    try:
        redacted = target_named(attempt.target).method(attempt.method_name).policy.redact or frozenset()
    except AsyncTaskError:
        # Its policy says what may be shown, and it is not here to be asked.
        return frozenset(
            names
        ), f"{call_of(attempt)} is not known here, nor what it redacts: name its --app or --module"
    return redacted, "by its target's policy" if redacted & set(names) else None


def _masked(values: Mapping[str, Any], hidden: frozenset[str]) -> dict[str, Any]:
    return {name: HIDDEN if name in hidden else value for name, value in values.items()}
