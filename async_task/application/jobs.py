"""What an `AsyncTask` reads of rows that are their own jobs: of an `Asyncable` or a `Pollable`."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from async_task.application.models import ApplicationModels, class_meant
from async_task.asyncable import jobs as asyncables
from async_task.asyncable.asyncable import Asyncable
from async_task.asyncable.chain import name_of
from async_task.asyncable.job_filters import job_filters
from async_task.asyncable.job_pages import page_of
from async_task.asyncable.sweep import asyncables_of
from async_task.errors import UnknownAttempt
from async_task.polling import jobs as pollables
from async_task.reading.jobs import JobExplanation, JobInfo, JobPage
from async_task.reading.pages import check_cursor, check_limit
from async_task.reading.row_keys import key_in_full, key_meant

T = TypeVar("T")


class ApplicationJobs(ApplicationModels):
    """What people and pages read of these rows."""

    def job(self, model: type[Any] | str, key: Any) -> JobInfo:
        """Read a row of an `Asyncable` or `Pollable` with its state, its user and its last attempt.

            outbox.job("shop.models:Review", "17").state

        `model`: the class, or the name of its job. `key`: the primary key, or its text, with a comma between the values
        of several columns. Raises UnknownAttempt where no row has this key, UnknownTarget for the model,
        InvalidArguments for what is no key, ConfigurationError, and as `run_batch`.
        """
        return self._of_row("job", model, key, asyncables.read_job, pollables.read_job)

    def explain_job(self, model: type[Any] | str, key: Any) -> JobExplanation:
        """Say everything that keeps such a row from being processed, when that changes next, and the command that
        helps: the reasons of the row, and then those of its attempt.

            for reason in outbox.explain_job(Review, 17).reasons:
                print(reason.words, reason.until, reason.remedy)

        Raises as `job`.
        """
        return self._of_row("explain_job", model, key, asyncables.explain_job, pollables.explain_job)

    @property
    def job_models(self) -> list[str]:
        """The names of the `Asyncable`s of this application, as `jobs` takes them."""
        return sorted(name_of(one) for one in asyncables_of(self._model))

    def jobs(
        self, model: type[Asyncable] | str | None = None, *, status: str | Iterable[str] = (), user: Any = None,
        limit: int = 50, after: str | None = None,
    ) -> JobPage:  # fmt: skip
        """List the rows of all `Asyncable`s, or of one, page by page: left out, those that are potentially stuck.

            page = outbox.jobs(status=["failing", "expired"])
            page = outbox.jobs(status=["failing", "expired"], after=page.next)

        `status`: one or several states of an `Asyncable` (`JobInfo.state`). Without any, `running`, `queued`, `failing`
        and `expired`, and what was never submitted, but attempted or has an error. `user`: whose `asyncable_user` is
        this, or has this text. `limit`: how many jobs a page has, 1 to 10,000. `after`: `next` of the page before.

        The oldest submission comes first. Rows that were never submitted follow, and then what is processed or
        canceled, both by model and key. Of each model a page reads the rows that it has and one more; with a `user` or
        other states up to 1,000 (or `limit`) at each of these three places, so that it may be short, or empty, before
        the last one: read on until `next` is None. A model that cannot be read stops no other.

        Raises UnknownTarget for the model, ConfigurationError, and as `run_batch`.
        """
        filters = job_filters(status, user)
        check_limit(limit)
        check_cursor(after)

        def read(session: Session) -> JobPage:
            models = asyncables_of(self._model)
            meant = models if model is None else [class_meant(models, model, "an Asyncable")]
            return page_of(session, meant, filters, limit, after)

        return self._read("jobs", read)

    def _of_row(
        self, verb: str, model: object, key: Any, of_asyncable: Callable[..., T | None],
        of_pollable: Callable[..., T | None],
    ) -> T:  # fmt: skip
        def read(session: Session) -> T:
            meant = self._job_class(model)
            wanted = key_meant(meant, key)
            found = (of_asyncable if issubclass(meant, Asyncable) else of_pollable)(session, meant, wanted)
            if found is None:
                raise UnknownAttempt(f"there is no {meant.__name__} {key_in_full(meant, wanted)}")
            return found

        return self._read(verb, read)
