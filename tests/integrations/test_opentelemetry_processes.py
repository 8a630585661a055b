"""Telemetry across processes: child processes and supervised workers export before they end; and who needs none has
none."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine

from async_task import Attempt
from databases import Database
from elsewhere import PATIENCE, await_
from workers import at_rest

pytestmark = pytest.mark.long

Write = Callable[..., Attempt]
APPLICATION = """
import os, pathlib, sys, time
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from async_task import AsyncTask, Attempt, policy, target
from async_task.integrations.opentelemetry import OpenTelemetry

provider = TracerProvider()
file = open("spans", "a", buffering=1)
exporter = ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(indent=None) + chr(10))
provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=3_600_000))
trace.set_tracer_provider(provider)

@target("traced.shop")
class Shop:
    @staticmethod
    def note() -> None:
        context = trace.get_current_span().get_span_context()
        pathlib.Path("noted").write_text(trace.format_trace_id(context.trace_id))

    @staticmethod
    @policy(isolate=True)
    def note_alone() -> None:
        Shop.note()

    @staticmethod
    @policy(isolate=True, timeout=0.3)
    def hang() -> None:
        time.sleep(3600)

outbox = AsyncTask(os.environ["ASYNC_TASK_DATABASE_URL"], telemetry=OpenTelemetry())
"""


@pytest.fixture
def run(alone: None, database: Database, engine: Engine, tmp_path: pathlib.Path) -> Callable[..., Any]:
    """`run("outbox.run_batch()")`: a program that has imported this application."""
    (tmp_path / "traced.py").write_text(APPLICATION)

    def run(program: str) -> "subprocess.CompletedProcess[str]":
        ended = subprocess.run(
            [sys.executable, "-W", "error::DeprecationWarning:async_task", "-c", textwrap.dedent(program)],
            cwd=tmp_path, env=_environment(database), capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        return ended

    return run


def _environment(database: Database) -> dict[str, str]:
    return {**os.environ, "ASYNC_TASK_DATABASE_URL": database.sync_url}


def spans_in(folder: pathlib.Path, kind: str) -> list[Any]:
    spans = [json.loads(line) for line in (folder / "spans").read_text().splitlines()]
    return [one for one in spans if one["kind"] == f"SpanKind.{kind}"]


def noted(folder: pathlib.Path) -> str:
    """The trace that was current in the target."""
    return "0x" + (folder / "noted").read_text()


@pytest.mark.only_on("postgresql", "sqlite")
@pytest.mark.parametrize("verb", ["outbox.run_batch()", "outbox.perform(attempt_id)"])
def test_a_call_in_a_child_process_has_its_span_there_which_is_exported_before_the_child_ends(
    run: Callable[..., Any], tmp_path: pathlib.Path, verb: str
) -> None:
    run(f"""
        from traced import *
        attempt_id = outbox.write(lambda session: Attempt.options(session=session).call(Shop.note_alone).id)
        outbox.close()
        {verb}
    """)
    [span], [producer] = spans_in(tmp_path, "CONSUMER"), spans_in(tmp_path, "PRODUCER")
    assert span["context"]["trace_id"] == noted(tmp_path)
    assert span["attributes"]["async_task.outcome"] == "succeeded"
    assert [one["context"]["span_id"] for one in span["links"]] == [producer["context"]["span_id"]]


@pytest.mark.only_on("postgresql")
def test_a_call_that_is_killed_with_its_process_leaves_no_span_and_the_others_do(
    run: Callable[..., Any], engine: Engine, tmp_path: pathlib.Path
) -> None:
    run("""
        from traced import *
        for function in (Shop.note_alone, Shop.hang):
            outbox.write(lambda session: Attempt.options(session=session, max_attempts=1).call(function))
        outbox.run_batch()
    """)
    assert at_rest(engine)
    assert [one["name"] for one in spans_in(tmp_path, "CONSUMER")] == ["process traced.shop.note_alone"]


@pytest.mark.only_on("postgresql")
def test_supervised_workers_export_before_they_end(
    run: Callable[..., Any], engine: Engine, database: Database, tmp_path: pathlib.Path
) -> None:
    words = ["worker", "--app", "traced:outbox", "--processes", "2", "--poll", "50ms"]
    with subprocess.Popen(
        [sys.executable, "-m", "async_task", *words],
        cwd=tmp_path,
        env=_environment(database),
        stderr=subprocess.DEVNULL,
    ) as working:
        try:
            run("""
                from traced import *
                outbox.write(lambda session: Attempt.options(session=session).call(Shop.note).id)
            """)
            await_(lambda: at_rest(engine), "the call is made")
            working.send_signal(signal.SIGTERM)
            assert working.wait(PATIENCE) == 143
        finally:
            working.kill()
    [span] = spans_in(tmp_path, "CONSUMER")
    assert (span["name"], span["context"]["trace_id"]) == ("process traced.shop.note", noted(tmp_path))
    assert span["attributes"]["async_task.outcome"] == "succeeded"


@pytest.mark.only_on("sqlite")
def test_a_forked_process_does_not_end_the_spans_of_the_process_before_it(
    run: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    run("""
        from traced import *
        import datetime as dt, uuid
        from async_task import CallFacts

        now, telemetry = dt.datetime.now(dt.UTC), outbox._hooks.observer
        with telemetry.performing(CallFacts(uuid.uuid4(), "traced.shop", "note", "default", 1, now, now)):
            pass
        if (pid := os.fork()) == 0:
            telemetry.flush()
            os._exit(0)
        os.waitpid(pid, 0)
        telemetry.flush()
    """)
    assert len(spans_in(tmp_path, "CONSUMER")) == 1


@pytest.mark.only_on("sqlite")
def test_a_forked_process_does_not_export_what_the_process_before_it_has_counted(
    run: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    run("""
        from traced import *
        import datetime as dt, uuid
        from opentelemetry.sdk.metrics import MeterProvider
        from async_task import CallFacts

        provider, exported = MeterProvider(), []
        provider.force_flush = lambda: exported.append(os.getpid())
        now, telemetry = dt.datetime.now(dt.UTC), OpenTelemetry(meter_provider=provider)
        if (pid := os.fork()) == 0:  # as a supervised worker: before anything was counted
            telemetry.flush()
            os._exit(len(exported))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
        with telemetry.performing(CallFacts(uuid.uuid4(), "traced.shop", "note", "default", 1, now, now)):
            pass
        if (pid := os.fork()) == 0:
            telemetry.flush()
            os._exit(len(exported))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        telemetry.flush()
        assert exported == [os.getpid()]
    """)


@pytest.mark.only_on("sqlite")
def test_without_telemetry_nothing_of_it_is_imported(
    alone: None, engine: Engine, database: Database, tmp_path: pathlib.Path
) -> None:
    program = """
        import sys
        from async_task import AsyncTask, Attempt, target

        @target("plain")
        def plain() -> None: ...

        outbox = AsyncTask(sys.argv[1])
        outbox.write(lambda session: Attempt.options(session=session).call(plain))
        outbox.write(lambda session: Attempt.create_many(session, [{"target": plain}] * 5))
        assert outbox.run_batch().succeeded == 6
        outbox.gauges()
        names = ("opentelemetry", "prometheus_client", "sentry_sdk", "structlog")
        print([one for one in sys.modules if one.partition(".")[0] in names or "integrations" in one])
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program), database.sync_url]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "[]\n", "")
