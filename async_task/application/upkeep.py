"""The upkeep of an application's rows: what is swept, paused, counted, encrypted again and pruned."""

import datetime as dt
import threading
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from async_task.application.database import ApplicationDatabase
from async_task.application.validation import (
    at_least,
    check_event,
    check_function,
    check_instance,
    check_model,
    check_text,
    flag,
    queue_meant,
    scope_of,
)
from async_task.attempts.attempt import BaseAttempt
from async_task.database.engines import Source
from async_task.encryption.rotation import KeyUse, RotationReport, Selection, count, key_uses, rotate
from async_task.errors import ConfigurationError, UnknownAttempt
from async_task.polling.sweep import preview_polls, sweep_polls
from async_task.queue import pauses
from async_task.queue.backlog import Depth, depths
from async_task.queue.hooks import Hooks
from async_task.queue.pauses import QueueState
from async_task.queue.retention import Keeping, PruneReport, Retention, Rule, prune
from async_task.queue.sweep import SweepReport, sweep
from async_task.queue.sweep_preview import SweepPreview, preview_sweep
from async_task.queue.workers import WorkerInfo, running_workers
from async_task.reading.events import check_event_page
from async_task.reading.filters import calls_named, filters_of, refuse_unknown, with_whole_names
from async_task.reading.lookup import id_meant
from async_task.reading.shown_arguments import ShownArguments, shown_arguments
from async_task.schedule.actions import AppSchedule
from async_task.schedule.schedule import Schedule
from async_task.schema.audit import current_actor, record_verb
from async_task.schema.tables import table_of
from async_task.targets.keeping import Age, Keep, age, ages_of, statuses_of
from async_task.targets.registry import encryptor_of_policy
from async_task.targets.registry import limits as target_limits
from async_task.targets.retry import Duration, duration
from async_task.worker.batch_runs import RunInfo, runs_of


class ApplicationUpkeep(ApplicationDatabase):
    """What people and their jobs do with the rows of an `AsyncTask`, without performing any."""

    def __init__(
        self, source: Source, model: type[BaseAttempt], *, keep: Keep | None, keep_tokens: Age | None, lease: Duration,
        schedule: Schedule | None, hooks: Hooks,
    ) -> None:  # fmt: skip
        super().__init__(source, model)
        check_model(model)
        self._hooks = hooks
        self._lease = duration(lease, name="lease")
        if self._lease < dt.timedelta(milliseconds=30):
            raise ConfigurationError("lease is at least 0.03 s: three heartbeats must fit into it")
        tokens = None if keep_tokens is None else age(keep_tokens, name="keep_tokens")
        self._keeping = Keeping(() if keep is None else ages_of(keep), tokens)
        self._schedule = Schedule() if schedule is None else check_instance(schedule, Schedule, "schedule")

    @property
    def lease(self) -> dt.timedelta:
        """The time for which a claim counts without a lock."""
        return self._lease

    @property
    def keeps(self) -> bool:
        """Whether `keep=`, of this application or of a target, says how long attempts are kept."""
        return bool(self._keeping.retention().rules)

    @property
    def schedule(self) -> AppSchedule:
        """Reads and changes the schedule: `outbox.schedule.list()`, `.next(5)`, `.run(key)`, `.pause(key)`, ..."""
        return AppSchedule(self._schedule.entries, self._model, self._source, self._run_checked, self._change)

    def sweep(self) -> SweepReport:
        """Recover orphans, then expire overdue attempts; then resume the polls of operations that have lost their
        attempt, and hurry those past their maximal age. Raises as `run_batch`."""

        def sweep_all(engine: Engine) -> SweepReport:
            report = sweep(engine, table_of(self._model), self._lease, hooks=self._hooks)
            return replace(report, resumed=sweep_polls(engine, self._model))

        return self._change("sweep", sweep_all)

    def preview_sweep(self, limit: int = 100) -> SweepPreview:
        """Return what `sweep` would do now, to which rows and why, without writing anything: `limit` changes at most,
        and how many are left out. Raises as `run_batch`.

        A sweep that has just connected waits for one lease before it recovers what lost its process elsewhere: workers
        that live send a heartbeat meanwhile. The preview does not wait."""
        at_least(1, limit, "limit")

        def preview_all(engine: Engine) -> SweepPreview:
            first = preview_sweep(engine, table_of(self._model), self._lease, limit)
            then = preview_polls(engine, self._model, limit - len(first.changes))
            return SweepPreview(first.changes + then.changes, first.left_out + then.left_out)

        return self._change("preview_sweep", preview_all)  # it locks rows for a moment

    def pause(
        self, queue: str | None = None, *, target: object = None, reason: str | None = None, dry_run: bool = False
    ) -> bool:
        """Pause a queue, or a target (or its name): nothing more of it starts until `resume`. Running calls finish.

        If the target shares its queue, its claims are released into a queue named after it. Returns False if it was
        paused already. `acting(...)` says who paused it. `dry_run`: only return that. `outbox.perform` ignores pauses.

        Raises ConfigurationError unless exactly one of the two is given, UnknownTarget, and as `run_batch`.
        """
        name = queue_meant(queue, target)
        check_text(reason, "reason")
        is_dry = flag(dry_run, "dry_run")
        by, table = current_actor(), table_of(self._model)
        if is_dry:
            return name not in self._run_checked("pause", lambda engine: pauses.paused(engine, table))
        return self._change("pause", lambda engine: pauses.pause(engine, table, name, by=by, reason=reason))

    def resume(self, queue: str | None = None, *, target: object = None, dry_run: bool = False) -> bool:
        """Resume a paused queue or target. Attempts that a pause moved wait in the queue named after the target, for
        the workers that serve it (`run_batch` serves all queues). Returns False if it was not paused. `dry_run`: only
        return that. Raises as `pause`."""
        name, table = queue_meant(queue, target), table_of(self._model)
        is_dry = flag(dry_run, "dry_run")
        if is_dry:
            return name in self._run_checked("resume", lambda engine: pauses.paused(engine, table))
        return self._change("resume", lambda engine: pauses.resume(engine, table, name))

    def paused(self) -> list[QueueState]:
        """Return the paused queues: by whom, since when and why. Raises as `run_batch`."""
        return [one for one in self.queues() if one.paused_at is not None]

    def queues(self) -> list[QueueState]:
        """Return the paused and limited queues, by name. Limits come from the database and from the targets of this
        process. Raises as `run_batch`."""
        found = self._run_checked("queues", lambda engine: pauses.queue_states(engine, table_of(self._model)))
        known = {one.name: one for one in found}
        for name, limit in target_limits().items():
            one = known.get(name, QueueState(name, None, None, None, None, None))
            known[name] = replace(one, max_running=limit.max_running, rate=limit.rate)
        return [known[name] for name in sorted(known)]

    def backlog(self, queues: Iterable[str] = ()) -> list[Depth]:
        """Count the due, later and claimed attempts of each queue: of these queues and of those with claims; without
        names, of all queues. Raises as `run_batch`."""
        wanted = scope_of(queues, ()).queues
        return self._run_checked("backlog", lambda engine: depths(engine, table_of(self._model), wanted))

    def workers(self) -> list[WorkerInfo]:
        """Return the workers of these attempts on all machines, and then those that died within the last day. Raises as
        `run_batch`."""
        return self._run_checked("workers", lambda engine: running_workers(engine, table_of(self._model), self._lease))

    def runs(self, *, limit: int = 50, after: int | None = None) -> tuple[RunInfo, ...]:
        """Read when `run_batch` ran, on whatever machine, with its figures and why it stopped: the newest run first.

        `limit`: how many, up to 10,000; the newest 2,000 are kept. `after`: the `id` of a run, to go on with older
        ones. A run that was killed has left none, and one that runs has left none yet. Raises as `run_batch`.
        """
        check_event_page(limit, after)
        return self._read("runs", lambda session: runs_of(session, table_of(self._model), limit, after))

    def rotate_keys(
        self, *, page: int = 500, encryptor: str | None = None, pending_only: bool = False, to_policy: bool = False,
        dry_run: bool = False, stop: threading.Event | None = None, tell: Callable[[int], object] | None = None,
    ) -> RotationReport:  # fmt: skip
        """Encrypt arguments again under the first key of their encryptor, beside running workers. Rows that have that
        key are skipped, so that it can be repeated. Ended attempts are included, unless `pending_only`.

        `page`: rows in a transaction. `encryptor`: only rows of this one. `to_policy`: also rows whose target now asks
        for another encryptor. `dry_run`: only count them, as `left`. `stop`: once it is set, the current page is the
        last. `tell`: called with the number of rows done. Raises as `run_batch`, and UnknownEncryptor.
        """
        at_least(1, page, "page")
        check_text(encryptor, "encryptor")
        check_event(stop, "stop")
        check_function(tell, "tell", "tell(rows)")
        table = table_of(self._model)
        policy = encryptor_of_policy if flag(to_policy, "to_policy") else None
        chosen = Selection(encryptor, flag(pending_only, "pending_only"), policy)
        if flag(dry_run, "dry_run"):
            return RotationReport(left=self._run_checked("rotate_keys", lambda engine: count(engine, table, chosen)))
        return self._change(
            "rotate_keys", lambda engine: rotate(engine, table, chosen, page=page, stop=stop, tell=tell)
        )

    def key_uses(self) -> list[KeyUse]:
        """Count the attempts of each key, with the keys that only this process or only a row knows. Reads the whole
        table. Raises as `run_batch`."""
        return self._run_checked("key_uses", lambda engine: key_uses(engine, table_of(self._model)))

    def reveal(self, attempt_id: uuid.UUID | str, *, reason: str) -> ShownArguments:
        """Decrypt the arguments of one attempt, and record in its events that the actor of `acting(...)` has seen them,
        and why. What its target redacts stays hidden. Raises as `outbox.attempts.arguments`."""
        check_text(reason, "reason")
        if not reason.strip():
            raise ConfigurationError("reason: say why, for the events")
        table = table_of(self._model)

        def work(engine: Engine) -> ShownArguments:
            with Session(engine) as session, session.begin():
                return revealed(session)

        def revealed(session: Session) -> ShownArguments:
            attempt = session.get(self._model, id_meant(session, table, attempt_id))
            if attempt is None:
                raise UnknownAttempt(f"there is no attempt {attempt_id}")
            shown = shown_arguments(attempt, decrypt=True)
            record_verb(session.connection(), table, (table.name, str(attempt.id)), "reveal", reason, {}, {})
            return shown

        return self._change("reveal", work)

    def prune(
        self, older_than: Age | None = None, *, statuses: str | Iterable[str] | None = None, target: object = None,
        queue: str | None = None, keep_events: bool = False, keep_tokens: Age | None = None, page: int = 500,
        dry_run: bool = False, stop: threading.Event | None = None, tell: Callable[[int], object] | None = None,
    ) -> PruneReport:  # fmt: skip
        """Delete attempts that ended longer ago than `older_than`, by the database's clock, beside running workers. An
        attempt whose token is still remembered is emptied instead, so that `ensure` still finds it.

            outbox.prune("30d")

        `older_than`: "30d", "12h", a timedelta or seconds; left out, as `keep=` of the targets and the application
        says, without `statuses`, `target` and `queue`. `statuses`: left out, "succeeded", "expired" and "canceled";
        "failed" only if it is named. `target` (or its name, or that of a call), `queue`: only these. `keep_events`:
        leave their events; their notes stay in any case. `keep_tokens`: left out, as `AsyncTask(keep_tokens=...)` says.
        `page`: rows in a transaction. `dry_run`: only count. `stop`: once it is set, the current page is the last.
        `tell`: called with the number of attempts so far.

        Rows are deleted on the database: the listeners of your model do not hear of it. Raises as `run_batch`, and
        ConfigurationError without an age, and with the nearest name for a target or queue that nobody knows.
        """
        retention = self._retention(older_than, statuses, target, queue, keep_tokens)
        retention = replace(retention, keep_events=flag(keep_events, "keep_events"))
        is_dry = flag(dry_run, "dry_run")
        at_least(1, page, "page")
        check_event(stop, "stop")
        check_function(tell, "tell", "tell(attempts)")
        run = self._run_checked if is_dry else self._change
        report = run("prune", lambda engine: prune(
            engine, self._model, retention, page=page, is_dry=is_dry, stop=stop, tell=tell or (lambda _: None)
        ))  # fmt: skip
        if report.is_empty and (target is not None or queue is not None):
            named = filters_of((), target, None, queue, None, None, None, None)
            self._read("prune", lambda session: refuse_unknown(session, self._model, named))
        return report

    def _retention(
        self, older_than: Age | None, statuses: str | Iterable[str] | None, target: object, queue: str | None,
        keep_tokens: Age | None,
    ) -> Retention:  # fmt: skip
        tokens = self._keeping.tokens if keep_tokens is None else age(keep_tokens, name="keep_tokens")
        check_text(queue, "queue")
        if older_than is not None:
            length = age(older_than, name="older_than")
            ages = tuple((one, length) for one in statuses_of(statuses))
            named = filters_of((), target, None, queue, None, None, None, None)
            whole = self._read("prune", lambda session: with_whole_names(session, table_of(self._model), named)).target
            calls = [((), None)] if whole is None else calls_named(whole)
            return Retention(tuple(Rule(ages, names, queue, method) for names, method in calls), tokens)
        retention = self._keeping.retention()
        if not retention.rules or statuses is not None or target is not None or queue is not None:
            raise ConfigurationError('prune needs an age: prune(older_than="30d") deletes what ended longer ago')
        return replace(retention, keep_tokens=tokens)
