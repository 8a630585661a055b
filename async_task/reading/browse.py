"""`outbox.attempts`: what the command line, web pages and your own programs read of attempts."""

import uuid
from collections.abc import Iterable
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from async_task.attempts.info import AttemptInfo, info_of_attempt
from async_task.attempts.notes import NoteInfo, check_page, notes_of_attempt
from async_task.errors import UnknownAttempt
from async_task.queue.ordering import ahead
from async_task.reading.audit_log import AuditPage, audit_filters, audit_of
from async_task.reading.events import EventInfo, check_event_page, events_of_attempt, latest_errors
from async_task.reading.explanation import Explanation, explained
from async_task.reading.failed_set import FailedSet, check_fingerprint, failed_set
from async_task.reading.figures import AttemptFigures
from async_task.reading.filters import When, filters_of
from async_task.reading.lookup import id_meant, short_ids
from async_task.reading.pages import (
    AttemptPage,
    Order,
    StatusCounts,
    check_cursor,
    check_limit,
    check_order,
    clock_of,
    counts_of,
    page_of,
)
from async_task.reading.shown_arguments import ShownArguments, shown_arguments
from async_task.reading.stuck import stuck_of
from async_task.reading.stuck_groups import StuckCause, StuckReport, check_cause
from async_task.schema.tables import table_of

T = TypeVar("T")


class Attempts(AttemptFigures):
    """Reads attempts, and never changes one. You get it as `outbox.attempts`.

    Every verb is one short transaction that reads a bounded number of rows along an index, however large the table is;
    what it leaves out, it says. Like all verbs of an application they are synchronous, also over an AsyncEngine; in a
    coroutine, `await asyncio.to_thread(outbox.attempts.list)`. All raise ConfigurationError for an invalid argument and
    inside of an event loop, SchemaMismatch without tables, and SQLAlchemy's OperationalError without a database.
    """

    def list(
        self,
        *,
        status: str | Iterable[str] = (),
        target: object = None,
        method: str | None = None,
        queue: str | None = None,
        token: str | None = None,
        order_key: str | None = None,
        tries: int = 0,
        error: str | None = None,
        since: When | None = None,
        until: When | None = None,
        order: Order = "newest",
        limit: int = 50,
        after: str | None = None,
    ) -> AttemptPage:
        """List attempts for which everything holds that is given, page by page.

        `status`: a `Status` or several, of which one must hold; besides those of a row, "due" (a worker may start it
        now), "performing" (a worker has claimed it) and "stuck" (see `potentially_stuck`). `target`: what is
        registered, or its name, with its former names; or the name of a call, as `AttemptInfo.call` has it, also with
        "…" for a part in the middle. `token`: the idempotence token. `order_key`: the order key. `error`: a part of the
        last error, in upper or lower case. `tries`: at least so many tries. `since`, `until`: created at that instant
        or later, and before that instant; a timedelta counts back from the database's clock.

        `order`: "newest" or "oldest" by creation; or "due" or "due_last" by due time, which lists only what waits in a
        queue: neither claimed attempts, nor ended ones, nor those behind another of their order key. `limit`: how many
        attempts a page has, 1 to 10,000. `after`: `next` of the page before. New attempts do not shift the pages.

        A page of a list with filters reads 10,000 rows at most (by due time, 1,000 of each priority of a queue), and so
        it may be short, or empty, before the last one. Read on until `next` is None:

            page = outbox.attempts.list(status="failed")
            while page.next and len(page.attempts) < 50:
                page = outbox.attempts.list(status="failed", after=page.next)

        Raises UnknownTarget and ConfigurationError, with the nearest name, for a target or queue by which the first
        page finds nothing, and which neither this process, nor what waits, nor the newest 10,000 attempts know.
        """
        filters = filters_of(status, target, method, queue, token, error, since, until, order_key, tries)
        by = check_order(order)
        check_limit(limit)
        check_cursor(after)
        return self._ask("list", lambda session: page_of(session, self._model, filters, by, limit, after))

    def get(self, attempt_id: uuid.UUID | str) -> AttemptInfo:
        """Read one attempt by its id, or by at least 4 of the first or the last hexadecimal digits of its id.

        The last digits are looked for among the newest 50,000 attempts. Raises UnknownAttempt where no attempt fits, or
        several do.
        """
        return self._ask("get", lambda session: _info(session, self._model, attempt_id))

    def explain(self, attempt_id: uuid.UUID | str) -> Explanation:
        """Say everything that keeps one attempt from being performed now, when that changes next, and the command that
        helps; `Reason` has the kinds. Keys, targets and arguments are judged by what this process knows.

            for reason in outbox.attempts.explain("3f9a12c4").reasons:
                print(reason.words, reason.until, reason.remedy)

        Raises as `get`.
        """

        def explanation(session: Session) -> Explanation:
            attempt = _info(session, self._model, attempt_id)
            return explained(session, table_of(self._model), attempt)

        return self._ask("explain", explanation)

    def stuck(self, *, cause: StuckCause | None = None, limit: int = 10) -> StuckReport:
        """Say what is stuck, by cause, the oldest first, each with the command that helps and what that will do.

            for group in outbox.attempts.stuck().groups:
                print(group.words, group.remedy)

        `cause`: only this one (see `StuckGroup`). `limit`: how many jobs each group names, up to 10,000; counts are of
        all. Of each priority of a queue the first attempts due, and the first due later, are looked at: 10,000 together
        where they are in one priority of one queue, and 50,000 at most. Of these, the arguments of 2,000 are checked
        that are not encrypted, and of 200 of one call. Further 1,000 claims whose leases are past are looked at, the
        attempts that the newest 10,000 events name, and what waits behind 100 others of its order key.
        """
        check_cause(cause)
        check_limit(limit)
        table = table_of(self._model)
        return self._ask("stuck", lambda session: stuck_of(session, table, cause, limit, self._sources))

    def short_ids(self, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, str]:
        """Return for each of these ids what `get` finds it by: its last 8 digits, where the attempt is one of the
        newest 50,000 and no other one of these ends so; else the whole id. At most 10,000 ids."""
        wanted = tuple(ids)
        check_limit(max(1, len(wanted)))
        return self._ask("short_ids", lambda session: short_ids(session, table_of(self._model), wanted))

    def arguments(self, attempt_id: uuid.UUID | str, *, decrypt: bool = False) -> ShownArguments:
        """Read the arguments of one attempt, as far as they may be shown: never what its target redacts, and what is
        encrypted only with `decrypt`. Raises as `get`; with `decrypt`, UnknownEncryptor and DecryptionFailed."""

        def shown(session: Session) -> ShownArguments:
            return shown_arguments(_attempt(session, self._model, attempt_id), decrypt=decrypt)

        return self._ask("arguments", shown)

    def events(
        self, attempt_id: uuid.UUID | str, *, limit: int = 1000, after: int | None = None
    ) -> tuple[EventInfo, ...]:
        """Read what happened to one attempt, the first event first: errors, crashes, notes, and what people did.

        `limit`: how many, up to 10,000; `after`: the `id` of an event, to go on behind it. Events outlive their
        attempt, so that a whole id need not be of any row; else raises as `get`.
        """
        check_event_page(limit, after)
        table = table_of(self._model)
        found: list[EventInfo] = self._ask(
            "events",
            lambda session: events_of_attempt(session, table, id_meant(session, table, attempt_id), limit, after),
        )
        return tuple(found)

    def notes(self, attempt_id: uuid.UUID | str, *, limit: int = 100, after: int | None = None) -> tuple[NoteInfo, ...]:
        """Read the notes on one attempt, the newest first; `after`: the `id` of a note, to go on with older ones.

        Notes outlive their attempt, also when it is pruned; then it is named by its whole id. Else raises as `get`.
        """
        check_page(limit, after)
        table = table_of(self._model)
        found: list[NoteInfo] = self._ask(
            "notes",
            lambda session: notes_of_attempt(session, table, id_meant(session, table, attempt_id), limit, after),
        )
        return tuple(found)

    def audit(
        self,
        *,
        actor: str | None = None,
        verb: str | None = None,
        attempt: uuid.UUID | str | None = None,
        job_type: str | None = None,
        job_id: str | None = None,
        since: When | None = None,
        until: When | None = None,
        limit: int = 50,
        after: int | None = None,
    ) -> AuditPage:
        """List what people did to jobs, queues and entries of schedules, the newest first: all events with an actor for
        which everything holds that is given. Each has `before` and `after`.

            for event in outbox.attempts.audit(actor="anna@web1", since=timedelta(days=1)).events:
                print(event.created_at, event.kind, event.job_type, event.job_id, event.message)

        `actor`: who, exactly. `verb`: "cancel", "retry_now", "pause", "note", ... `attempt`: of this one, as `get`
        takes it; or `job_type` and `job_id` together, as an event has them. `since`, `until`: as in `list`. `limit`:
        how many a page has, 1 to 10,000. `after`: `next` of the page before.

        A page reads 10,000 events at most, and so it may be short, or empty, before the last one: read on until `next`
        is None. Raises ConfigurationError for an unknown verb, with the nearest, and as `get` for an attempt.
        """
        filters = audit_filters(actor, verb, attempt, job_type, job_id, since, until)
        check_event_page(limit, after)
        table = table_of(self._model)
        return self._ask("audit", lambda session: audit_of(session, table, filters, limit, after))

    def errors(self, limit: int = 20) -> tuple[EventInfo, ...]:
        """Read the latest errors and crashes of all attempts, the newest first, among the newest 10,000 events."""
        check_limit(limit)
        return tuple(self._ask("errors", lambda session: latest_errors(session, table_of(self._model), limit)[0]))

    def counts(
        self,
        *,
        status: str | Iterable[str] = (),
        target: object = None,
        method: str | None = None,
        queue: str | None = None,
        token: str | None = None,
        error: str | None = None,
        since: When | None = None,
        until: When | None = None,
        tries: int = 0,
        after: str | None = None,
    ) -> StatusCounts:
        """Count attempts by status, among the newest 50,000: filters as in `list`, and it raises as `list` does.

        Where the table has more, the answer has a `next`; with `after=` that, the next 50,000 are counted. What waits
        is counted by `depths`, wherever in the table it is.
        """
        filters = filters_of(status, target, method, queue, token, error, since, until, tries=tries)
        check_cursor(after)
        return self._ask("counts", lambda session: counts_of(session, self._model, filters, after))

    def failed_by(self, fingerprint: str) -> FailedSet:
        """Find the attempts that failed for good and whose last error has this fingerprint, as they are now, for
        `retry_failures`. Up to 100,000 errors are read. Raises ConfigurationError for what is no fingerprint."""
        given = check_fingerprint(fingerprint)
        return self._ask("failed_by", lambda session: failed_set(session, table_of(self._model), given))


def _attempt(session: Session, model: type[Any], given: uuid.UUID | str) -> Any:
    meant = id_meant(session, table_of(model), given)
    attempt = session.get(model, meant)
    if attempt is None:
        raise UnknownAttempt(f"there is no attempt {meant}")
    return attempt


def _info(session: Session, model: type[Any], given: uuid.UUID | str) -> AttemptInfo:
    attempt, table = _attempt(session, model, given), table_of(model)
    waits_behind = session.scalar(select(ahead(table)).where(table.c.id == attempt.id))
    return info_of_attempt(attempt, waits_behind, clock_of(session))
