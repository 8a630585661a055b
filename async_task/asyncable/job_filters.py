"""Which rows that are their own jobs are meant: what a list of them is asked to select."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from async_task.asyncable.scopes import Known, Scopes
from async_task.asyncable.states import STATES, STUCK, state_of
from async_task.errors import ConfigurationError, near


class Stage(IntEnum):
    """The parts of a list, in order. `SUBMITTED`: neither processed nor canceled. `NEVER_SUBMITTED`: nor that. `ENDED`:
    processed or canceled."""

    SUBMITTED = 0
    NEVER_SUBMITTED = 1
    ENDED = 2


STATES_OF = {
    Stage.SUBMITTED: STUCK | {"waiting"},
    Stage.NEVER_SUBMITTED: frozenset({"not_submitted"}),
    Stage.ENDED: frozenset({"processed", "canceled"}),
}


@dataclass(frozen=True, slots=True)
class JobFilters:
    """Rows in one of `states`, of this `user`; None: of any. `is_stuck`: those that are potentially stuck; of rows that
    were never submitted then only those with a try or an error."""

    states: frozenset[str]
    user: Any = None
    is_stuck: bool = False

    @property
    def stages(self) -> list[Stage]:
        """Where such rows are."""
        return [stage for stage in Stage if self.states & STATES_OF[stage]]

    def takes_all(self, stage: Stage) -> bool:
        """Whether every row is meant that the statement of this stage selects."""
        if self.user is not None or stage is Stage.ENDED:
            return False
        return self.states >= STUCK if stage is Stage.SUBMITTED else not self.is_stuck

    def may_take(self, stage: Stage, said: Scopes[Known]) -> bool:
        """Whether the row may be meant. Its attempt may be performed or not: that is not known yet."""
        possible = {state_of(said, is_performing=is_performing) for is_performing in (False, True)}
        if stage is Stage.NEVER_SUBMITTED and self.is_stuck and not said.potentially_stuck():
            return False
        return bool(possible & self.states & STATES_OF[stage])

    def takes(self, user: Any) -> bool:
        """Whether rows of this user are meant. A text also means a user of whom it is the text."""
        return self.user is None or user == self.user or (user is not None and str(user) == self.user)


def job_filters(status: str | Iterable[str], user: Any) -> JobFilters:
    """What `outbox.jobs` was given, checked. Raises ConfigurationError."""
    if not isinstance(status, Iterable):
        raise ConfigurationError(f"status takes one state or a list of them, not {type(status).__name__}")
    names: list[object] = [status] if isinstance(status, str) else list(status)
    for name in names:
        if name not in STATES:
            said = f"{str(name)!r}{near(str(name), STATES)}"
            raise ConfigurationError(f"status is one of {', '.join(STATES)}: it was {said}")
    if not names:
        return JobFilters(STUCK | {"not_submitted"}, user, is_stuck=True)
    return JobFilters(frozenset(map(str, names)), user)
