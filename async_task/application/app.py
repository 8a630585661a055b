"""The application: the database, the model, the targets, and the verbs that perform attempts and say what waits."""

import os
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

from sqlalchemy.orm import Session

from async_task.application.clock import ApplicationClock
from async_task.application.hooks import check_message_hook, guarded, hooks_of, observed
from async_task.application.validation import (
    Overlap,
    at_least,
    check_class,
    check_coroutines,
    check_event,
    check_function,
    check_numbers,
    check_overlap,
    flag,
    from_now,
    import_module,
    listed,
    module_names,
    scope_of,
    uuid_of,
    worker_settings,
)
from async_task.attempts.attempt import Attempt, BaseAttempt
from async_task.attempts.messages import OnMessage, set_message_hook
from async_task.attempts.telemetry import Telemetry, set_telemetry
from async_task.database.engines import Database, Source
from async_task.encryption.encryptors import Encryptor, encryptor_names, register_encryptor
from async_task.errors import AlreadyRunning, ConfigurationError
from async_task.outcomes import Outcome
from async_task.queue.hooks import Around, OnCrashed, OnExpired, OnFailed, OnRetried, OnSucceeded, set_around
from async_task.queue.worker_names import check_worker_name
from async_task.schedule.schedule import Schedule
from async_task.schema.tables import table_of
from async_task.targets.keeping import Age, Keep
from async_task.targets.registry import registered_targets
from async_task.targets.retry import Duration, duration
from async_task.wakeup.notify import switch_notify
from async_task.worker.batch_preview import BatchPreview, preview
from async_task.worker.batch_report import BatchReport, Progress
from async_task.worker.jobs import AttemptBatchJob, AttemptJob, BaseAttemptBatchJob, BaseAttemptJob, own_run
from async_task.worker.lone_call import LoneCall
from async_task.worker.runtime import Runtime
from async_task.worker.signals import interrupts_later
from async_task.worker.supervisor import Supervisor
from async_task.worker.worker import AttemptWorker
from async_task.worker.workload import PerformClaim


class AsyncTask(ApplicationClock):
    """Performs and reads the attempts of one application.

        outbox = AsyncTask("postgresql+psycopg://localhost/shop", modules=["shop.outbox"])
        outbox.worker().run()

    `database`: a URL, Engine, AsyncEngine, sessionmaker, async_sessionmaker, or the object of Flask-SQLAlchemy, whose
    engine is found at first use, without an application context. `model`: the model of the attempts.
    `modules`: imported here, so that their targets are registered. `encryptors`: registered here under their names.
    `lease`: seconds or a timedelta for which a claim counts without a lock, at least 0.03 s. `attempt_job`,
    `batch_job`: your subclasses. `notify`: whether commits of this process notify sleeping workers of other processes
    (PostgreSQL only); without it, they find new attempts by polling. `keep`: how long workers keep attempts that have
    ended: "30d" or a timedelta for those that succeeded, expired or were canceled, or a mapping by status; left out,
    only targets with a `keep=` of their own are pruned. `keep_tokens`: how long an idempotence token is remembered
    after its attempt has ended; left out, for ever. `schedule`: the calls that clocks enqueue (`clock`). Raises
    ConfigurationError.

    `around(facts)`: returns a context manager, sync or async, in which each call is made; or a sequence of such
    functions, the first one outermost. It is given `CallFacts`. What it raises fails the try, before the target is
    called if it was raised on entering; an error of the target that it swallows counts all the same (`docs/hooks.md`).

    `on_succeeded(facts, outcome)`, `on_retried`, `on_failed`, `on_expired`: called with `CallFacts` and a `Succeeded`,
    `Retried` (`error` is None for a poll, `Again`), `Failed` or `Expired` after a try, or a sweep, has ended so: once,
    after its commit, in the process that has written it (a worker, a batch, `perform`, a sweep, or a child process);
    `on_failed` also when an operation (`Pollable`) is given up. `on_crashed(facts, outcome)`: the same when a try was
    lost with its process, and counted: with a `Retried`, or a `Failed` at the limit of crashes, after which `on_failed`
    is called too. What they raise is logged. A process that dies between the commit and the hook does not call it.

    `on_message(user, kind, text)`: called after the commit with a `MessageKind` and a sentence for the user of a job:
    when a note was added, when the job has not succeeded for 24 hours and a try fails (once for each submission), when
    it succeeds after that, and when it was canceled. The user is what `message_user` of an attempt or a `Pollable`, or
    `asyncable_user` of a model, returns; without one there is no message. The text names the job and holds no error. It
    is called in the process that has written it: give each process the same. Of several applications of one model in a
    process, the last one decides. What it raises is logged.

    `telemetry`: traces and measures what is written down and performed: `OpenTelemetry()`, from
    `async_task.integrations.opentelemetry`. Of several applications of one model in a process, the last one decides
    about what is written down.

    All verbs are synchronous, also over an AsyncEngine. In a coroutine: `await asyncio.to_thread(outbox.run_batch)`.
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
        keep: Keep | None = None,
        keep_tokens: Age | None = None,
        schedule: Schedule | None = None,
        around: Around | Sequence[Around] = (),
        on_succeeded: OnSucceeded | None = None,
        on_retried: OnRetried | None = None,
        on_failed: OnFailed | None = None,
        on_expired: OnExpired | None = None,
        on_crashed: OnCrashed | None = None,
        on_message: OnMessage | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        watching = guarded(telemetry)
        super().__init__(
            Source(database), model, keep=keep, keep_tokens=keep_tokens, lease=lease, schedule=schedule,
            hooks=observed(hooks_of(
                around, on_succeeded=on_succeeded, on_retried=on_retried, on_failed=on_failed, on_expired=on_expired,
                on_crashed=on_crashed,
            ), watching),
        )  # fmt: skip
        check_message_hook(on_message)
        check_class(attempt_job, BaseAttemptJob, "attempt_job")
        check_class(batch_job, BaseAttemptBatchJob, "batch_job")
        names = module_names(modules)
        for encryptor in listed(encryptors, "encryptors takes a list: encryptors=[MyEncryptor()]"):
            register_encryptor(encryptor)
        switch_notify(table_of(model), flag(notify, "notify"))
        set_message_hook(table_of(model), on_message)
        set_telemetry(table_of(model), watching)
        set_around(table_of(model), self._hooks)
        self._attempt_job, self._batch_job = attempt_job, batch_job
        for module in names:
            import_module(module)
        self._check_schedule()

    @property
    def target_names(self) -> list[str]:
        """The names of the targets that this process knows."""
        return [one.name for one in registered_targets()]

    @property
    def encryptor_names(self) -> list[str]:
        """The names of the encryptors that this process knows or that an installed package provides."""
        return encryptor_names()

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

        It leaves a record, which `runs` reads. Raises ConfigurationError for invalid values and inside of an event
        loop, UnknownTarget, SchemaMismatch without tables, and SQLAlchemy's OperationalError if the database cannot be
        reached.
        """
        deadline = None if max_seconds is None else from_now(duration(max_seconds, name="max_seconds"))
        check_numbers(limit, concurrency)
        check_overlap(overlap)
        check_event(stop, "stop")
        check_function(progress, "progress", "progress(report)")
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
        return self._run_checked(
            "preview_batch", lambda engine: preview(engine, table_of(self._model), self._lease, scope)
        )

    def perform(
        self, attempt_id: uuid.UUID | str, *, abandonable: bool = False,
        before: Callable[[Session], object] | None = None,
    ) -> Outcome:  # fmt: skip
        """Perform this attempt now if it is due, and return its outcome. Raises as `run_batch`.

        `before`: called with a session in the transaction that claims the attempt, for example to retry it: no worker
        takes it in between. What it raises is raised here, and nothing is written.

        `abandonable`: on a thread of its own. What the handler of a signal raises in this thread meanwhile, as a second
        Ctrl-C does, then abandons the call: its claim is released, uncharged, although the call may go on.
        """
        wanted = uuid_of(attempt_id)
        is_abandonable = flag(abandonable, "abandonable")
        check_function(before, "before", "before(session)")
        with interrupts_later(), self._runtime("perform") as runtime:
            job = self._attempt_job(runtime)
            job.before = before
            return LoneCall(job, wanted).perform() if is_abandonable else job.perform(wanted)

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
        clock: bool = False,
        name: str | None = None,
    ) -> AttemptWorker | Supervisor:
        """A worker, which performs attempts as they become due until it is stopped: `outbox.worker().run()`.

        `processes`: 1 works in this process. With more, a supervisor forks that number of worker processes, replaces
        one that dies, recovers its attempts at once, and handles SIGTERM and SIGINT (see `Supervisor.run`). All other
        options are for each process.

        `concurrency`: worker threads, each with a connection. `queues`: only these; a mapping gives the maximum of
        threads for each (None: all). `async_concurrency`: maximum of running coroutines. `settle_within`: seconds
        within which a finished call is committed, together with others; 0: each has its own commit. `poll`: seconds
        between two polls of an idle worker. `grace`: seconds that calls may take after `stop`. `listen`: whether to
        LISTEN on PostgreSQL, on a connection of its own; not possible through a pooler in transaction mode. Without it
        an engine that was made from a URL prepares no statements either, for the same reason. `clock`: whether each
        process is a clock too; several are harmless.

        `name`: takes over from a dead worker of the same name, whose attempts it recovers at once, on whatever machine
        that was; for places whose next process has the name of the last one, such as a StatefulSet. With `processes`
        the names are NAME-1 to NAME-N. `run` raises AlreadyRunning if a living worker has the name, or takes it over.

        Raises ConfigurationError for an invalid value, and for `processes` on a system without fork. `run` raises as
        `run_batch` does.
        """
        settings = worker_settings(
            self._lease, concurrency=concurrency, queues=queues, async_concurrency=async_concurrency,
            settle_within=settle_within, poll=poll, grace=grace, listen=listen,
        )  # fmt: skip
        if not settings.listen:
            self._source.stop_preparing()
        beside = self._clock_beside if flag(clock, "clock") else nullcontext
        if clock:
            self._check_clock()

        given = check_worker_name(name)

        def worker(own_name: str | None) -> AttemptWorker:
            def runtime() -> Runtime:
                return self._runtime("worker", own_name, has_sessions=settings.listen)

            return AttemptWorker(runtime, settings, own_job=self._own_job, beside=beside)

        if at_least(1, processes, "processes") == 1:
            return worker(given)
        check_worker_name(given and f"{given}-{processes}")
        if not hasattr(os, "fork"):
            raise ConfigurationError("processes is 1 on this system, which cannot fork a process")
        check = partial(self._check_before_change, "worker")
        return Supervisor(
            lambda number: worker(given and f"{given}-{number}"),
            settings,
            processes,
            self._source,
            table_of(self._model),
            check=check,
            hooks=self._hooks,
        )

    def _own_job(self, runtime: Runtime) -> PerformClaim | None:
        return own_run(self._attempt_job(runtime))

    def _runtime(self, verb: str, name: str | None = None, *, has_sessions: bool = True) -> Runtime:
        self._check_before_change(verb)
        check_coroutines(engine_is_async=self._source.is_async)
        return Runtime(
            self._source, self._model, self._lease, self._keeping, name,
            has_sessions=has_sessions, hooks=self._hooks,
        )  # fmt: skip
