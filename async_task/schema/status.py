"""The five states of an attempt."""

import enum


class Status(enum.StrEnum):
    """Where an attempt stands. There is no stored `running`: that is a pending attempt with a live claim."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        """Whether the attempt is at rest; only an explicit retry brings it back."""
        return self is not Status.PENDING
