"""The fields of an attempt, as JSON has them."""

import datetime as dt
from typing import Any

from async_task import AttemptInfo

LISTED = (
    "id", "status", "target", "method_name", "queue", "priority", "idempotence_token", "num_attempts", "num_errors",
    "num_crashes", "num_losses", "max_attempts", "scheduled_at", "due_at", "expires_at", "claimed_by", "lease_until",
    "attempted_at", "completed_at", "last_error", "created_at", "updated_at", "order_key", "released", "waits_behind",
)  # fmt: skip
"""What `list --json` prints of each attempt."""
SHOWN = (
    "id", "status", "target", "method_name", "encryptor", "idempotence_token", "queue", "priority", "order_key", "seq",
    "released", "arrived", "num_attempts", "num_errors", "num_crashes", "num_losses", "max_attempts", "scheduled_at",
    "due_at", "claim_id", "claimed_by", "lease_until", "expires_at", "attempted_at", "completed_at", "last_error",
    "created_at", "updated_at", "trace_context", "call_settings",
)  # fmt: skip
"""What `show --json` prints first."""


def listed(row: AttemptInfo) -> dict[str, Any]:
    """A line of `list --json`."""
    return {name: as_json_value(getattr(row, name)) for name in LISTED}


def as_json_value(value: Any) -> Any:
    """Instants in ISO 8601 with UTC; ids and states as texts."""
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value)
