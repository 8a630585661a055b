"""What an `AsyncTask` reads of rows that are their own jobs: of an `Asyncable` or a `Pollable`."""

from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from async_task.application.models import ApplicationModels
from async_task.asyncable import jobs as asyncables
from async_task.asyncable.asyncable import Asyncable
from async_task.attempts.jobs import JobExplanation, JobInfo
from async_task.attempts.row_keys import key_in_full, key_meant
from async_task.errors import UnknownAttempt
from async_task.polling import jobs as pollables

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
