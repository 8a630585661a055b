"""The states of an operation at a provider."""

from enum import StrEnum

from async_task.error_text import quotes_nothing


class PollState(StrEnum):
    """What `status` of a `Pollable` holds. `PENDING`: not started at the provider yet. `SUBMITTED`, `IN_PROGRESS`: it
    goes on there. `ENDED`: there are results. `CANCELED`, `EXPIRED`: the provider says so. `FAILED`: the provider says
    so, or it was given up; `failure_reason` says which."""

    PENDING = "pending"
    SUBMITTED = "submitted"
    IN_PROGRESS = "in_progress"
    ENDED = "ended"
    CANCELED = "canceled"
    EXPIRED = "expired"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({PollState.ENDED, PollState.CANCELED, PollState.EXPIRED, PollState.FAILED})
STATE = (
    "status", "submitted_at", "next_poll_at", "results_fetched_at", "handler_dispatched_at", "ended_at", "failed_at",
    "failure_reason",
)  # fmt: skip
"""The attributes of a `Pollable` that only its own methods change."""
ANSWERS = TERMINAL | {PollState.SUBMITTED, PollState.IN_PROGRESS}
"""What `check` may return."""


def state_of(answer: object) -> PollState:
    """The state that `check` has returned. Raises TypeError for what is none of ANSWERS."""
    if not isinstance(answer, str) or answer not in ANSWERS:
        known = ", ".join(sorted(ANSWERS))
        said = repr(answer)[:40] if isinstance(answer, str) else type(answer).__name__
        raise quotes_nothing(TypeError(f"check() returned {said}, and returns one of {known}"))
    return PollState(answer)
