"""Telemetry that raises: it fails no call and no writing, and is logged once for each kind of error."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry.metrics import Counter, Histogram, MeterProvider, NoOpMeter, NoOpMeterProvider
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, SamplingResult
from opentelemetry.trace import NoOpTracer, NoOpTracerProvider, StatusCode
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

import outbox
from async_task import AsyncTask, Attempt, CallFacts, CallsToWrite, Outcome, Retried, Status
from async_task.attempts.telemetry import set_telemetry
from async_task.integrations.opentelemetry import OpenTelemetry
from async_task.schema.tables import table_of
from clockwork import row_of
from conftest import by_one_door
from outbox import act, act_brief_later, act_in_session, act_later, will
from spans import Exported, exported

CANARY = "canary-7355608"
Write = Callable[..., Attempt]
Sessions = sessionmaker[Session]


class OwnError(BaseException):
    """No Exception."""


def fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError(CANARY)


class FailingSampler(Sampler):
    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        raise RuntimeError(CANARY)

    def get_description(self) -> str:
        return "fails"


class FailingAtStart(SpanProcessor):
    def on_start(self, span: Span, parent_context: Any = None) -> None:
        raise RuntimeError(CANARY)


class FailingAtEnd(SpanProcessor):
    def on_end(self, span: ReadableSpan) -> None:
        raise RuntimeError(CANARY)


class FailingTracer(NoOpTracer):
    start_span = start_as_current_span = fail


class FailingTracers(NoOpTracerProvider):
    def get_tracer(self, *_: Any, **__: Any) -> FailingTracer:
        return FailingTracer()


class FailingMeter(NoOpMeter):
    def create_counter(self, *given: Any, **options: Any) -> Counter:
        made = super().create_counter(*given, **options)
        made.add = fail  # type: ignore[method-assign]
        return made

    def create_histogram(self, *given: Any, **options: Any) -> Histogram:
        made = super().create_histogram(*given, **options)
        made.record = fail  # type: ignore[method-assign]
        return made


class FailingMeters(NoOpMeterProvider):
    def get_meter(self, name: str, *_: Any, **__: Any) -> FailingMeter:
        return FailingMeter(name)


class FailingTelemetry:
    """Of an application: it raises where `where` says."""

    def __init__(self, where: str, error: BaseException) -> None:
        self._where, self._error = where, error

    def _at(self, place: str) -> None:
        if place == self._where:
            raise self._error

    @contextmanager
    def writing(self, calls: CallsToWrite) -> Iterator["FailingTelemetry"]:
        self._at("writing")
        yield self
        self._at("written")

    @property
    def trace_context(self) -> str | None:
        self._at("trace_context")
        return "x" * 65 if self._where == "long" else "00-1"

    def found(self, attempt_id: Any) -> None:
        self._at("found")

    def committed(self) -> None:
        self._at("committed")

    @contextmanager
    def performing(self, facts: CallFacts) -> Iterator[None]:
        self._at("performing")
        yield
        self._at("performed")

    def settled(self, facts: CallFacts, outcome: Outcome) -> None:
        self._at("settled")

    def crashed(self, facts: CallFacts, outcome: Outcome) -> None:
        self._at("crashed")

    def flush(self) -> None:
        self._at("flush")


PLACES = ["writing", "written", "trace_context", "long", "found", "committed", "performing", "performed", "settled"]


def with_processor(processor: SpanProcessor) -> Exported:
    seen = exported()
    seen.tracers.add_span_processor(processor)
    return seen


FAILING: dict[str, Callable[[], Any]] = {
    "sampler": lambda: exported(sampler=FailingSampler()).telemetry,
    "at start": lambda: with_processor(FailingAtStart()).telemetry,
    "at end": lambda: with_processor(FailingAtEnd()).telemetry,
    "tracer": lambda: OpenTelemetry(tracer_provider=FailingTracers(), meter_provider=NoOpMeterProvider()),
    "meter": lambda: OpenTelemetry(tracer_provider=exported().tracers, meter_provider=FailingMeters()),
    **{place: lambda place=place: FailingTelemetry(place, RuntimeError(CANARY)) for place in PLACES},  # type: ignore[misc]
    **{f"{place}, no Exception": lambda place=place: FailingTelemetry(place, OwnError()) for place in PLACES},  # type: ignore[misc]
}


@pytest.fixture
def observed(engine: Engine, door: str, async_engine_url: str) -> Iterator[Callable[..., AsyncTask]]:
    """An application with this telemetry, which is of no later test."""
    with contextlib.ExitStack() as until:

        def made(telemetry: Any) -> AsyncTask:
            app = outbox.application(engine, door, async_engine_url, lease=5, telemetry=telemetry)
            until.callback(app.close)
            until.callback(set_telemetry, table_of(app.model), None)
            return app

        yield made


@pytest.mark.in_turns
@by_one_door
@pytest.mark.parametrize("failing", list(FAILING))
def test_what_telemetry_raises_fails_no_writing_and_no_call(
    observed: Callable[..., AsyncTask],
    engine: Engine,
    sessions: Sessions,
    caplog: pytest.LogCaptureFixture,
    failing: str,
) -> None:
    app = observed(FAILING[failing]())
    will(lambda *_: None)
    with sessions.begin() as session:
        ids = [Attempt.options(session=session).call(called).id for called in (act, act, act_later, act_in_session)]
        ids += [Attempt.ensure(session, target=act, idempotence_token="one").id for _ in range(2)]
        Attempt.create_many(session, [{"target": act}] * 2)
    report = app.run_batch(concurrency=1)
    assert (report.claimed, report.succeeded) == (7, 7)
    for one in ids:
        row = row_of(engine, one)
        assert (row.status, row.num_errors, row.last_error) == (Status.SUCCEEDED, 0, None)
    said = [one for one in caplog.messages if " raised " in one]
    assert 1 <= len(said) == len(set(said)) <= 2, said  # once by the guard, once by OpenTelemetry of its meters
    assert all("elemetry raised " in one for one in said)
    assert CANARY not in caplog.text


@pytest.mark.slow
def test_a_meter_that_raises_loses_no_span(observed: Callable[..., AsyncTask], write: Write) -> None:
    seen = exported()
    meters: MeterProvider = FailingMeters()
    app = observed(OpenTelemetry(tracer_provider=seen.tracers, meter_provider=meters))
    will(lambda *_: None)
    for called in (act, act_later, act_in_session):
        app.perform(write(called).id)
    assert seen.outcomes == ["succeeded"] * 3
    assert {one.status.status_code for one in seen.consumers} == {StatusCode.UNSET}


def test_a_call_that_raises_counts_with_its_own_error_whatever_telemetry_raises(
    observed: Callable[..., AsyncTask], engine: Engine, write: Write
) -> None:
    app = observed(FailingTelemetry("performing", RuntimeError(CANARY)))

    def do(*_: object) -> None:
        raise outbox.Broken("its own")

    will(do)
    for called in (act, act_later):
        attempt = write(called)
        assert isinstance(app.perform(attempt.id), Retried)
        assert row_of(engine, attempt.id).last_error.startswith("Broken: its own")


def test_a_statement_that_fails_raises_its_own_error_whatever_telemetry_raises(
    observed: Callable[..., AsyncTask], sessions: Sessions
) -> None:
    class Raising(FailingTelemetry):
        @contextmanager
        def writing(self, calls: CallsToWrite) -> Iterator["FailingTelemetry"]:
            try:
                yield self
            finally:
                fail()

    observed(Raising("", RuntimeError()))
    rows = [{"target": act, "idempotence_token": "one"}]
    with sessions.begin() as session:
        Attempt.create_many(session, rows)
    with sessions() as session, pytest.raises(IntegrityError):
        Attempt.create_many(session, rows)


@pytest.mark.slow
@pytest.mark.parametrize("perform", ["perform", "run_batch"])
def test_a_call_at_its_time_limit_has_the_error_that_is_decided(
    observed: Callable[..., AsyncTask], engine: Engine, write: Write, perform: str
) -> None:
    seen = exported(sampler=ALWAYS_ON)
    app = observed(seen.telemetry)
    will(lambda: asyncio.sleep(60))
    attempt = write(act_brief_later)
    app.perform(attempt.id) if perform == "perform" else app.run_batch()
    assert row_of(engine, attempt.id).last_error.startswith("TimeoutError: the call took longer")
    [span] = seen.consumers
    assert span.attributes is not None
    assert (span.attributes["error.type"], span.attributes["async_task.outcome"]) == ("TimeoutError", "retried")
    assert span.status.description == "TimeoutError"
    assert [about["error.type"] for about, _ in seen.points("messaging.process.duration")] == ["TimeoutError"]
