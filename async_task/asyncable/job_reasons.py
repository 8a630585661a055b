"""Why a row that is its own job is not processed now: decided from what it says, and from what blocks its attempt."""

import datetime as dt
from collections.abc import Iterator, Sequence

from async_task.asyncable.scopes import Known, Scopes
from async_task.asyncable.settings import Processing
from async_task.reading.explanation import Reason, command
from async_task.reading.jobs import JobInfo
from async_task.schema.states import Status


def reasons_of(
    job: JobInfo, said: Scopes[Known], processing: Processing, blocks: Sequence[Reason]
) -> Iterator[Reason]:  # fmt: skip
    """`blocks`: the reasons of its attempt; none without one."""
    if job.state in ("processed", "canceled", "not_submitted"):
        yield _at_rest(job, said)
        return
    if job.state == "waiting":
        words = "it was submitted with a delay, and waits until that has passed"
        yield Reason("delayed", words, until=said.last_submitted_at.value)
    if said.expired_without_processing():
        words = f"it was not processed within {processing.window_in_words}: a restart gives it a new window"
        yield Reason("window_over", words, _restart(job))
    elif job.attempt is None or job.attempt.status is not Status.PENDING:
        yield _no_attempt(job, said)
    told = {"ended", "not_due"} if job.state == "waiting" else {"ended"}
    yield from (one for one in blocks if one.kind not in told)


def _at_rest(job: JobInfo, said: Scopes[Known]) -> Reason:
    if job.state == "processed":
        return Reason("processed", "it is processed")
    if job.state == "not_submitted":
        return Reason("not_submitted", "it was never submitted: a restart submits it", _restart(job))
    if not said.submitted():
        return Reason("canceled", "it was canceled before it was submitted")
    return Reason("canceled", "it was canceled: a restart processes it again", _restart(job))


def _no_attempt(job: JobInfo, said: Scopes[Known]) -> Reason:
    lost = "it has no attempt" if job.attempt is None else f"its attempt has ended as {job.attempt.status.value}"
    if said.requires_processing():
        return Reason("no_attempt", f"{lost}: the next sweep of models enqueues it", command("process-models"))
    ready_at: dt.datetime = (said.attempted_at.value or said.last_submitted_at.value) + said.interval
    words = f"{lost}: a sweep of models enqueues it when its interval has passed"
    return Reason("no_attempt", words, _restart(job), ready_at)


def _restart(job: JobInfo) -> str:
    return command("restart", job.model, job.key, "--reason", "mended")
