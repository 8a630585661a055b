"""Pages of rows that are their own jobs, of several classes together, in the order of the stages.

Of each class a bounded number of rows is read, whether they are selected or not. What follows the last row read of a
class is not known; so the page ends at the nearest of these last rows, and the next one begins there.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from async_task.asyncable.asyncable import Asyncable
from async_task.asyncable.chain import name_of
from async_task.asyncable.job_filters import JobFilters, Stage
from async_task.asyncable.job_lines import Listed, Place, line
from async_task.asyncable.jobs import jobs_of
from async_task.database.driver_errors import is_unavailable
from async_task.error_text import describe
from async_task.reading.jobs import JobInfo, JobPage
from async_task.reading.pages import clock_of

logger = logging.getLogger("async_task")
T = TypeVar("T")
SCANNED = 1_000
"""How many rows of each class a page reads at most in a stage of which it leaves any out."""
LOOKED_UP = 100
"""Of how many of these rows, at least, the attempts are looked up together."""


def page_of(
    session: Session, models: Sequence[type[Asyncable]], filters: JobFilters, limit: int, after: str | None
) -> JobPage:
    """The page behind the cursor `after`. Raises ConfigurationError for what is no cursor."""
    behind = None if after is None else Place.parse(after)
    return _Reading(session, models, filters, limit).page(behind)


class _Reading:
    """One page, as it is read. A class that cannot be read is logged, and stops no other."""

    def __init__(self, session: Session, models: Sequence[type[Asyncable]], filters: JobFilters, limit: int) -> None:
        self._session, self._filters, self._limit = session, filters, limit
        self._models = sorted(models, key=name_of)
        self._unread: list[str] = []
        self._now = clock_of(session)

    def page(self, behind: Place | None) -> JobPage:
        found: list[tuple[Listed, JobInfo]] = []
        for stage in self._filters.stages:
            if behind is not None and stage < behind.stage:
                continue
            rows, end = self._stretch(stage, behind if behind is not None and behind.stage is stage else None)
            for some in _parts(rows, max(self._limit + 1, LOOKED_UP)):
                found += self._selected(some)
                if len(found) > self._limit:
                    return self._made(found[: self._limit], found[self._limit - 1][0].place)
            if end is not None:
                return self._made(found, end)
        return self._made(found, None)

    def _made(self, found: Sequence[tuple[Listed, JobInfo]], following: Place | None) -> JobPage:
        jobs = tuple(job for _, job in found)
        return JobPage(jobs, None if following is None else str(following), self._now, tuple(self._unread))

    def _stretch(self, stage: Stage, behind: Place | None) -> tuple[list[Listed], Place | None]:
        """The next rows in order that may be selected; and where what was read ends, if more may follow there."""
        most = self._limit + 1 if self._filters.takes_all(stage) else max(SCANNED, self._limit + 1)
        read = partial(line, self._session, filters=self._filters, stage=stage, behind=behind, now=self._now, most=most)
        none = list[Listed]()
        lines = [self._tried(model, partial(read, model), none) for model in self._models]
        end = min((rows[-1].place.order for rows in lines if len(rows) == most), default=None)
        # Of one class they are in order already, and stay so.
        rows = sorted((one for rows in lines for one in rows), key=lambda one: one.place.order)
        within = [one for one in rows if end is None or one.place.order <= end]
        chosen = [one for one in within if self._filters.may_take(stage, one.row.said)]
        return chosen, None if end is None else within[-1].place

    def _selected(self, rows: Sequence[Listed]) -> list[tuple[Listed, JobInfo]]:
        jobs, none = dict[Place, JobInfo](), dict[Place, JobInfo]()
        for model in dict.fromkeys(one.model for one in rows):
            mine = [one for one in rows if one.model is model]
            jobs |= self._tried(model, partial(self._jobs, mine), none)
        return [(one, jobs[one.place]) for one in rows if one.place in jobs]

    def _jobs(self, rows: Sequence[Listed]) -> dict[Place, JobInfo]:
        """Of rows of one class."""
        found = jobs_of(self._session, rows[0].model, [one.row for one in rows], self._filters.states)
        return {one.place: job for one in rows if (job := found.get(one.row.key)) and self._filters.takes(job.user)}

    def _tried(self, model: type[Asyncable], work: Callable[[], T], otherwise: T) -> T:
        name = name_of(model)
        if name in self._unread:
            return otherwise
        try:
            with self._session.begin_nested():
                return work()
        except SQLAlchemyError as error:
            if is_unavailable(error):
                raise
            logger.warning("%s could not be looked at: %s", name, describe(error).summary)
            self._unread.append(name)
            return otherwise


def _parts(rows: Sequence[Listed], size: int) -> Iterator[Sequence[Listed]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
