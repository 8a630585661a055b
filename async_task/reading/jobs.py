"""Rows that are their own jobs, as frozen values: for people and programs that show them, beside their attempts."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from async_task.attempts.info import AttemptInfo
from async_task.reading.explanation import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInfo:
    """A row of an `Asyncable` or a `Pollable` as it was at `read_at`, by the database's clock.

    `model`: the name of its job. `job_type`: the name of its table. `key`: its primary key as text, with a comma
    between the values of several columns.

    `state`, of a `Pollable`: its `PollState`. Of an `Asyncable`, the first that holds of: `processed`, `canceled`,
    `not_submitted`, `waiting` (until its delay has passed, at `last_submitted_at`), `running` (its attempt is being
    performed), `expired` (it was not processed within its window), `failing` (its last try raised), and `queued`.

    Instants are aware datetimes in UTC. Of a `Pollable`, `last_submitted_at` is its `submitted_at`, `attempted_at` is
    when the last step of its attempt began, `processed_at` is when its handler returned, and `canceled_at` is when the
    provider said so. `error`: the first word of the last error alone, because what follows may be personal data; of a
    `Pollable` that failed, its `failure_reason`. `user`: what `asyncable_user` or `message_user` of the row returns.
    `attempt`: the last one that has processed the row, or will; None where it has none. `verbs`: see `why_not`.
    """

    model: str
    job_type: str
    key: str
    state: str
    submitted_at: dt.datetime | None
    last_submitted_at: dt.datetime | None
    attempted_at: dt.datetime | None
    processed_at: dt.datetime | None
    canceled_at: dt.datetime | None
    error: str | None
    user: Any
    attempt: AttemptInfo | None
    verbs: Mapping[str, str | None]
    read_at: dt.datetime

    def why_not(self, verb: str) -> str | None:
        """Why this verb of the row (`restart`, `cancel`; of a `Pollable` `submit`, `fail`) has no effect now or raises
        InvalidState; None where it would do its work. For a button that is disabled, and says why.

        `restart` is also advised against for 5 minutes after a try has begun, in which the row may be processed: the
        verb itself would then process it once more.
        """
        if verb not in self.verbs:
            return f"{verb}: {self.model} {self.key} has no such verb, but {', '.join(self.verbs)}"
        return self.verbs[verb]


@dataclass(frozen=True, slots=True)
class JobPage:
    """A page of a list. `jobs`: in order. `next`: what `after=` takes for the page that follows; None after the last
    page. A page of a list with filters may hold fewer than `limit`, even none, and still have a `next`: see
    `AsyncTask.jobs`. `read_at`: the database's clock. `unread`: models that could not be read, which is logged."""

    jobs: tuple[JobInfo, ...]
    next: str | None
    read_at: dt.datetime
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobExplanation:
    """A row that is its own job, and why it is not processed now; the first reason is the one to look at first.

    Reasons of the row have the kinds `processed` (of a `Pollable`: it has ended and is handled), `canceled`,
    `not_submitted`, `delayed` (it was submitted with a delay), `window_over` (it is past its window, or its maximal
    age) and `no_attempt` (no attempt waits for it). Those of its attempt follow; see `Reason`.
    """

    job: JobInfo
    reasons: tuple[Reason, ...]
