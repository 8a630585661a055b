"""The application: the database, the model, the targets, and the verbs that perform and read attempts."""

import datetime as dt
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from async_task.attempts.attempt import Attempt, BaseAttempt
from async_task.attempts.browse import Attempts
from async_task.attempts.call_problems import CallProblem, problems_of
from async_task.attempts.pages import clock_of
from async_task.database.engines import Database, Source
from async_task.database.lanes import has_loop_running, open_lane
from async_task.encryption.encryptors import Encryptor, encryptor_names, register_encryptor
from async_task.encryption.rotation import KeyUse, RotationReport, Selection, count, key_uses, rotate
from async_task.errors import AlreadyRunning, ConfigurationError
from async_task.outcomes import Outcome
from async_task.queue import pauses
from async_task.queue.backlog import Depth, depths
from async_task.queue.pauses import QueueState
from async_task.queue.sweep import SweepReport, sweep
from async_task.queue.workers import WorkerInfo, running_workers
from async_task.schema import versions
from async_task.schema.audit import current_actor
from async_task.schema.tables import table_of
from async_task.targets.registry import encryptor_of_policy, registered_targets
from async_task.targets.registry import limits as target_limits
from async_task.targets.retry import Duration, duration
from async_task.validation import (
    Overlap,
    at_least,
    check_class,
    check_model,
    check_numbers,
    check_overlap,
    from_now,
    import_module,
    lanes_by_queue,
    listed,
    module_names,
    queue_meant,
    scope_of,
    uuid_of,
)
from async_task.wakeup.notify import switch_notify
from async_task.worker.batch_preview import BatchPreview, preview
from async_task.worker.batch_report import BatchReport, Progress
from async_task.worker.interrupts import interrupts_later
from async_task.worker.jobs import AttemptBatchJob, AttemptJob, BaseAttemptBatchJob, BaseAttemptJob, own_run
from async_task.worker.runtime import Runtime
from async_task.worker.supervisor import Supervisor
from async_task.worker.worker import AttemptWorker, WorkerSettings
from async_task.worker.workload import PerformClaim

T = TypeVar("T")
TAKES = {"perform": ", attempt_id", "read": ", work", "write": ", work"}
"""The required arguments of a verb, as an error message names them."""


class AsyncTask:
    """Performs and reads the attempts of one application.

        app = AsyncTask("postgresql+psycopg://localhost/shop", modules=["shop.outbox"])
        app.worker().run()

    `database`: a URL, Engine, AsyncEngine, sessionmaker or async_sessionmaker. `model`: the model of the attempts.
    `modules`: imported here, so that their targets are registered. `encryptors`: registered here under their names.
    `lease`: seconds or a timedelta for which a claim counts without a lock, at least 0.03 s. `attempt_job`,
    `batch_job`: your subclasses. `notify`: whether commits of this process notify sleeping workers of other processes
    (PostgreSQL only); without it, they find new attempts by polling. Raises ConfigurationError.

    All verbs are synchronous, also over an AsyncEngine. In a coroutine: `await asyncio.to_thread(app.run_batch)`.
    """

    def __init__(
        self,
        database: Database,
        *,
        model: type[BaseAttempt] = Attempt,
        modules: Sequence[str] = (),
        encryptors: Iterable[Encryptor] = (),
        lease: Duration = 5,
        attempt_job: type[BaseAttemptJob] = AttemptJob,
        batch_job: type[BaseAttemptBatchJob] = AttemptBatchJob,
        notify: bool = True,
    ) -> None:
        self._source = Source(database)
        check_model(model)
        check_class(attempt_job, BaseAttemptJob, "attempt_job")
        check_class(batch_job, BaseAttemptBatchJob, "batch_job")
        names = module_names(modules)
        for encryptor in listed(encryptors, "encryptors takes a list: encryptors=[MyEncryptor()]"):
            register_encryptor(encryptor)
        switch_notify(table_of(model), notify)
        self._model = model
        self._lease = duration(lease, name="lease")
        if self._lease < dt.timedelta(milliseconds=30):
            raise ConfigurationError("lease is at least 0.03 s: three heartbeats must fit into it")
        self._attempt_job = attempt_job
        self._batch_job = batch_job
        self._is_checked = False
        for module in names:
            import_module(module)

    @property
    def model(self) -> type[BaseAttempt]:
        """The model of the attempts."""
        return self._model

    @property
    def address(self) -> str:
        """The URL of the database, without its password."""
        return self._source.address

    @property
    def lease(self) -> dt.timedelta:
        """The time for which a claim counts without a lock."""
        return self._lease

    @property
    def table_name(self) -> str:
        """The name of the attempts' table, with its schema where it has one."""
        return table_of(self._model).fullname

    @property
    def target_names(self) -> list[str]:
        """The names of the targets that this process knows."""
        return [one.name for one in registered_targets()]

    @property
    def encryptor_names(self) -> list[str]:
        """The names of the encryptors that this process knows or that an installed package provides."""
        return encryptor_names()

    @property
    def attempts(self) -> Attempts:
        """Reads attempts: `app.attempts.list(status="failed")`, `.get(id)`, `.events(id)`, `.counts()`, ..."""
        return Attempts(self._model, self._read_checked)

    def run_batch(
        self,
        limit: int | None = None,
        *,
        concurrency: int = 4,
        stop: threading.Event | None = None,
        max_seconds: Duration | None = None,
        queues: Iterable[str] = (),
        targets: Iterable[object] = (),
        overlap: Overlap = "allow",
        progress: Progress | None = None,
    ) -> BatchReport:
        """Recover, expire, then perform everything that was due when it began, once, in `concurrency` threads; calls of
        coroutine functions run beside these, up to 100 at once.

        `limit`: the maximum number of attempts. `stop`: once it is set, nothing further is started, and running calls
        are finished. `max_seconds` (or a timedelta): the same after that time, and the report says how many are `left`.
        `queues`, `targets` (or their names): perform only what waits in these, and calls one of these; orphans and
        overdue attempts are swept everywhere. Several queues take turns.

        `overlap`, when another batch is running on these attempts, on whatever machine: "allow" that, "skip" (do
        nothing; the report names it in `overlapped`), or "fail" (do nothing, and raise AlreadyRunning). A batch that
        was killed counts as running for one lease. `progress(report)`: called at the beginning and after each commit
        with the report so far, in which `left` is what is still to be started; on a thread of the batch, one at a time.

        Raises ConfigurationError for invalid values and inside of an event loop, UnknownTarget, SchemaMismatch without
        tables, and SQLAlchemy's OperationalError if the database cannot be reached.
        """
        deadline = None if max_seconds is None else from_now(duration(max_seconds, name="max_seconds"))
        check_numbers(limit, concurrency)
        check_overlap(overlap)
        scope = scope_of(queues, targets)
        with self._runtime("run_batch") as runtime:
            runtime.prepare_children()
            other = runtime.begin_run(alone=overlap != "allow")
            if other is not None and overlap == "fail":
                raise AlreadyRunning(f"another batch is running: {other}; nothing was done")
            if other is not None:
                return BatchReport(overlapped=other)
            job = self._batch_job(runtime, self._attempt_job(runtime))
            job.scope, job.deadline, job.progress = scope, deadline, progress
            job.stop = stop or job.stop
            return job.perform(limit, concurrency)

    def preview_batch(self, *, queues: Iterable[str] = (), targets: Iterable[object] = ()) -> BatchPreview:
        """Return what `run_batch` would find now, without writing anything. Raises as `run_batch`."""
        scope = scope_of(queues, targets)
        self._check_once("preview_batch")
        return self._run("preview_batch", lambda engine: preview(engine, table_of(self._model), self._lease, scope))

    def perform(self, attempt_id: uuid.UUID | str) -> Outcome:
        """Perform this attempt now if it is due, and return its outcome. Raises as `run_batch`."""
        wanted = uuid_of(attempt_id)
        with interrupts_later(), self._runtime("perform") as runtime:
            return self._attempt_job(runtime).perform(wanted)

    def worker(
        self,
        *,
        concurrency: int = 4,
        queues: Iterable[str] | Mapping[str, int | None] = (),
        async_concurrency: int = 100,
        settle_within: Duration = 0.005,
        poll: Duration = 1.0,
        grace: Duration = 30.0,
        listen: bool = True,
        processes: int = 1,
    ) -> AttemptWorker | Supervisor:
        """A worker, which performs attempts as they become due until it is stopped: `app.worker().run()`.

        `processes`: 1 works in this process. With more, a supervisor forks that number of worker processes, replaces
        one that dies, recovers its attempts at once, and handles SIGTERM and SIGINT (see `Supervisor.run`). All other
        options are for each process.

        `concurrency`: worker threads, each with a connection. `queues`: only these; a mapping gives the maximum of
        threads for each (None: all). `async_concurrency`: maximum of running coroutines. `settle_within`: seconds
        within which a finished call is committed, together with others; 0: each has its own commit. `poll`: seconds
        between two polls of an idle worker. `grace`: seconds that calls may take after `stop`. `listen`: whether to
        LISTEN on PostgreSQL, on a connection of its own; not possible through a pooler in transaction mode.

        Raises ConfigurationError for an invalid value, and for `processes` on a system without fork. `run` raises as
        `run_batch` does.
        """
        settings = WorkerSettings(
            concurrency=at_least(1, concurrency, "concurrency"),
            queues=lanes_by_queue(queues),
            async_concurrency=at_least(1, async_concurrency, "async_concurrency"),
            settle_within=duration(settle_within, name="settle_within").total_seconds(),
            poll=duration(poll, name="poll").total_seconds(),
            grace=duration(grace, name="grace").total_seconds(),
            listen=listen,
        )
        longest = self._lease.total_seconds() / 2
        if not 0.01 <= settings.poll <= 3600:
            raise ConfigurationError(f"poll is from 0.01 s to an hour: it was {settings.poll:g} s")
        if settings.settle_within > longest:
            raise ConfigurationError(f"settle_within is at most half of the lease, {longest:g} s")

        def worker() -> AttemptWorker:
            return AttemptWorker(lambda: self._runtime("worker"), settings, own_job=self._own_job)

        if at_least(1, processes, "processes") == 1:
            return worker()
        if not hasattr(os, "fork"):
            raise ConfigurationError("processes is 1 on this system, which cannot fork a process")
        check = partial(self._check_once, "worker")
        return Supervisor(worker, settings, processes, self._source, table_of(self._model), check=check)

    def _own_job(self, runtime: Runtime) -> PerformClaim | None:
        return own_run(self._attempt_job(runtime))

    def sweep(self) -> SweepReport:
        """Recover orphans, then expire overdue attempts. Raises as `run_batch`."""
        return self._run("sweep", lambda engine: sweep(engine, table_of(self._model), self._lease))

    def pause(self, queue: str | None = None, *, target: object = None, reason: str | None = None) -> bool:
        """Pause a queue, or a target (or its name): nothing more of it starts until `resume`. Running calls finish.

        If the target shares its queue, its claims are released into a queue named after it. Returns False if it was
        paused already. `acting(...)` says who paused it. `app.perform` ignores pauses.

        Raises ConfigurationError unless exactly one of the two is given, UnknownTarget, and as `run_batch`.
        """
        name = queue_meant(queue, target)
        if reason is not None and not isinstance(reason, str):
            raise ConfigurationError(f"reason is a text, not {type(reason).__name__}")
        by, table = current_actor(), table_of(self._model)
        self._check_once("pause")
        return self._run("pause", lambda engine: pauses.pause(engine, table, name, by=by, reason=reason))

    def resume(self, queue: str | None = None, *, target: object = None) -> bool:
        """Resume a paused queue or target. Attempts that a pause moved wait in the queue named after the target, for
        the workers that serve it (`run_batch` serves all queues). Returns False if it was not paused. Raises as
        `pause`."""
        name, table = queue_meant(queue, target), table_of(self._model)
        self._check_once("resume")
        return self._run("resume", lambda engine: pauses.resume(engine, table, name))

    def paused(self) -> list[QueueState]:
        """Return the paused queues: by whom, since when and why. Raises as `run_batch`."""
        return [one for one in self.queues() if one.paused_at is not None]

    def queues(self) -> list[QueueState]:
        """Return the paused and limited queues, by name. Limits come from the database and from the targets of this
        process. Raises as `run_batch`."""
        self._check_once("queues")
        found = self._run("queues", lambda engine: pauses.queue_states(engine, table_of(self._model)))
        known = {one.name: one for one in found}
        for name, limit in target_limits().items():
            one = known.get(name, QueueState(name, None, None, None, None, None))
            known[name] = replace(one, max_running=limit.max_running, rate=limit.rate)
        return [known[name] for name in sorted(known)]

    def backlog(self, queues: Iterable[str] = ()) -> list[Depth]:
        """Count the due, later and claimed attempts of each queue: of these queues and of those with claims; without
        names, of all queues. Raises as `run_batch`."""
        wanted = scope_of(queues, ()).queues
        self._check_once("backlog")
        return self._run("backlog", lambda engine: depths(engine, table_of(self._model), wanted))

    def workers(self) -> list[WorkerInfo]:
        """Return the workers of these attempts on all machines, and those that died within the last day. Raises as
        `run_batch`."""
        self._check_once("workers")
        return self._run("workers", lambda engine: running_workers(engine, table_of(self._model)))

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
        if type(page) is not int or page < 1:
            raise ConfigurationError(f"page is a whole number of at least 1: it was {page!r}")
        table = table_of(self._model)
        chosen = Selection(encryptor, pending_only, encryptor_of_policy if to_policy else None)
        self._check_once("rotate_keys")
        if dry_run:
            return RotationReport(left=self._run("rotate_keys", lambda engine: count(engine, table, chosen)))
        return self._run("rotate_keys", lambda engine: rotate(engine, table, chosen, page=page, stop=stop, tell=tell))

    def key_uses(self) -> list[KeyUse]:
        """Count the attempts of each key, with the keys that only this process or only a row knows. Reads the whole
        table. Raises as `run_batch`."""
        self._check_once("key_uses")
        return self._run("key_uses", lambda engine: key_uses(engine, table_of(self._model)))

    def create_schema(self) -> None:
        """Create the missing tables, for tests and demos; other programs migrate. Raises SchemaMismatch for tables of
        another version."""
        self._run("create_schema", lambda engine: versions.create(engine, self._model))

    def check_schema(self) -> None:
        """Raise SchemaMismatch unless the tables exist in the version that this library needs."""
        self._run("check_schema", lambda engine: versions.check(engine, self._model))
        self._is_checked = True

    def check_calls(self) -> list[CallProblem]:
        """Return why this process cannot perform some waiting calls: unknown targets, methods or encryptors, missing
        keys, plain text where the target names an encryptor. Reads the whole table. Raises as `run_batch`."""
        return self._read_checked("check_calls", lambda session: problems_of(session, table_of(self._model)))

    def schema_version(self) -> int | None:
        """Return the version of the tables in the database; None if there are no tables or they have no version."""
        return self._run("schema_version", lambda engine: versions.version_in(engine, self._model))

    def close(self) -> None:
        """Close the idle connections of the pool that was made from a URL. A later verb opens new ones."""
        self._source.close()

    def now(self) -> dt.datetime:
        """Return the time of the database, which decides what is due and what expires. Raises as `run_batch`."""
        return self._read("now", clock_of)

    def read(self, work: Callable[[Any], T]) -> T:
        """Return `work(session)`, called in a transaction of its own, on either kind of engine: to read rows."""
        return self._read("read", work)

    def _read(self, verb: str, work: Callable[[Session], T]) -> T:
        def in_session(engine: Engine) -> T:
            with Session(engine, expire_on_commit=False) as session, session.begin():
                return work(session)

        return self._run(verb, in_session)

    def _read_checked(self, verb: str, work: Callable[[Session], T]) -> T:
        self._check_once(verb)
        return self._read(verb, work)

    def write(self, work: Callable[[Any], T]) -> T:
        """Return `work(session)`, called in a transaction that commits when it returns: to change attempts by their
        methods (`cancel`, `retry_now`, ...). The session is of your own class."""

        def in_session(engine: Engine) -> T:
            with self._source.session(engine) as session, session.begin():
                return work(session)

        return self._run("write", in_session)

    def _runtime(self, verb: str) -> Runtime:
        self._check_once(verb)
        return Runtime(self._source, self._model, self._lease)

    def _run(self, verb: str, work: Callable[[Engine], T]) -> T:
        _refuse_loop(verb)
        with open_lane(self._source) as lane:
            return lane.run(lambda: work(lane.engine))

    def _check_once(self, verb: str) -> None:
        _refuse_loop(verb)
        if not self._is_checked:
            self.check_schema()


def _refuse_loop(verb: str) -> None:
    if has_loop_running():
        given = f"app.{verb}{TAKES.get(verb, '')}"
        raise ConfigurationError(f"app.{verb}() would block this event loop: await asyncio.to_thread({given})")
