"""Spans and metrics of OpenTelemetry, after its conventions for messaging; it needs `async-task[otel]`.

    from async_task.integrations.opentelemetry import OpenTelemetry

    outbox = AsyncTask(SessionLocal, telemetry=OpenTelemetry())

1. A call that is written down has a PRODUCER span, in the trace of whoever writes it. The row keeps its traceparent.
2. Each try has a CONSUMER span in a trace of its own, linked to that one: retries go on for days, and nobody reads a
   trace that lasts for days. It is the current span in the target.
3. A span of a try is ended when its outcome is committed, with the time at which the call ended.

No span and no metric holds an argument, or the message of an error, which may quote one.
"""

import atexit
import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from opentelemetry import context as context_api
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from async_task.attempts.telemetry import CallsToWrite
from async_task.attempts.tolerated import Tolerated
from async_task.outcomes import Outcome, Retried
from async_task.queue.hooks import CallFacts
from async_task.version import __version__

SYSTEM = NAME = "async_task"
"""The messaging system; the tracer and the meter."""
DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)
LAGS = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 600, 3600, 21_600)
"""Boundaries of the histograms, in seconds, unless a view of the program says otherwise."""
LONGEST_WAIT = 60.0
"""Seconds for which the span of a call that has ended waits for its outcome."""
_TRACEPARENT = "traceparent"
_propagator = TraceContextTextMapPropagator()
Attributes = dict[str, str | int | bool]


class OpenTelemetry:
    """What `AsyncTask(telemetry=...)` takes. `tracer_provider`, `meter_provider`: left out, the global ones, which may
    also be set later. One may serve several applications."""

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer_provider, self._meter_provider = tracer_provider, meter_provider
        self._tracer = trace.get_tracer(NAME, __version__, tracer_provider)
        self._meters = _Meters(metrics.get_meter(NAME, __version__, meter_provider))
        self._tolerated = Tolerated("OpenTelemetry")
        self._unsettled = _Unsettled(self._tolerated)

    @contextlib.contextmanager
    def writing(self, calls: CallsToWrite) -> Iterator["CallWriting"]:
        """A PRODUCER span round the writing of these calls."""
        about = _about(calls.verb, calls.target, calls.method, calls.queue)
        type_, identity = _kind_of_writing(calls)
        with self._tracer.start_as_current_span(
            calls.verb if calls.call is None else f"{calls.verb} {calls.call}",
            kind=SpanKind.PRODUCER, attributes={**about, **identity, "messaging.operation.type": type_},
            record_exception=False, set_status_on_exception=False,
        ) as span:  # fmt: skip
            try:
                yield CallWriting(span, self._meters, about, calls.number)
            except BaseException as error:
                _fail(span, error)
                raise

    @contextlib.contextmanager
    def performing(self, facts: CallFacts) -> Iterator[None]:
        """A CONSUMER span round a try, linked to the one in which the call was written down."""
        about = _about_try(facts)
        identity: Attributes = {
            "messaging.operation.type": "process", "messaging.message.id": str(facts.id), "async_task.try": facts.number
        }  # fmt: skip
        span = self._tracer.start_span(
            f"process {facts.call}", Context(), SpanKind.CONSUMER, about | identity, _links(facts.trace_context)
        )
        token, began = context_api.attach(trace.set_span_in_context(span)), time.perf_counter()
        try:
            with self._tolerated:  # a meter that raises loses no span
                self._meters.begin(facts, about)
            yield
        except BaseException as error:
            about = {**about, **_fail(span, error)}  # an SDK may keep the one that its instruments were given
            raise
        finally:
            context_api.detach(token)
            with self._tolerated:
                self._meters.duration.record(time.perf_counter() - began, about)
            self._unsettled.add(facts, span)

    def settled(self, facts: CallFacts, outcome: Outcome) -> None:
        """End the span of a try with its outcome, and count that."""
        said = _said(outcome)
        with self._tolerated:
            self._meters.outcomes.add(1, {**_about_try(facts), "async_task.outcome": said})
        self._unsettled.end(facts, said)

    def crashed(self, facts: CallFacts, outcome: Outcome) -> None:
        """Count a try that was lost with its process, and with it its span."""
        self._meters.outcomes.add(1, {**_about_try(facts), "async_task.outcome": "crashed"})

    def flush(self) -> None:
        """End the spans that wait for an outcome, and export everything; in a process that was forked from one that
        has counted tries, no metrics: that exports its own counts, which are here too."""
        self._unsettled.end_all()
        providers: list[object] = [self._tracer_provider or trace.get_tracer_provider()]
        if self._meters.counted_by in (None, os.getpid()):
            providers.append(self._meter_provider or metrics.get_meter_provider())
        for provider in providers:
            if (export := getattr(provider, "force_flush", None)) is not None:  # without an SDK there is none
                with self._tolerated:
                    export()


class CallWriting:
    """The writing of one or more calls: what the rows keep of its span, and what became of it."""

    def __init__(self, span: Span, meters: "_Meters", about: Attributes, number: int) -> None:
        self._span, self._meters, self._about, self._number = span, meters, about, number

    @property
    def trace_context(self) -> str | None:
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, trace.set_span_in_context(self._span, Context()))
        return carrier.get(_TRACEPARENT)

    def found(self, attempt_id: uuid.UUID) -> None:
        self._span.set_attributes({"messaging.message.id": str(attempt_id), "async_task.found": True})

    def committed(self) -> None:
        self._meters.sent.add(self._number, self._about)


class _Unsettled:
    """The spans of calls that have ended, until their outcomes are committed, or are known to be nobody's."""

    def __init__(self, tolerated: Tolerated) -> None:
        self._tolerated = tolerated
        self._spans: dict[tuple[uuid.UUID, int], _Ended] = {}
        self._pid = os.getpid()
        atexit.register(self.end_all)

    def add(self, facts: CallFacts, span: Span) -> None:
        if not span.is_recording():
            return
        self._forget_parent()
        self._spans[facts.id, facts.number] = _Ended(span, time.time_ns(), time.monotonic())
        with contextlib.suppress(StopIteration, RuntimeError):  # another thread adds or ends one just now
            key = next(iter(self._spans))
            if self._spans[key].since < time.monotonic() - LONGEST_WAIT:
                self._end(key)

    def end(self, facts: CallFacts, outcome: str) -> None:
        self._end((facts.id, facts.number), outcome)

    def end_all(self) -> None:
        self._forget_parent()
        for key in list(self._spans):
            with self._tolerated:
                self._end(key)

    def _end(self, key: tuple[uuid.UUID, int], outcome: str | None = None) -> None:
        if (one := self._spans.pop(key, None)) is not None:
            if outcome is not None:
                one.span.set_attribute("async_task.outcome", outcome)
            one.span.end(one.at)

    def _forget_parent(self) -> None:
        """In a process that was forked from the one of these spans: they are ended there."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._spans.clear()


class _Ended(NamedTuple):
    """`at`: when the call ended, in nanoseconds since 1970. `since`: the same by `time.monotonic`."""

    span: Span
    at: int
    since: float


class _Meters:
    """Those of the conventions, and ours."""

    def __init__(self, meter: metrics.Meter) -> None:
        self.sent = meter.create_counter(
            "messaging.client.sent.messages", "{message}", "Calls that were written down, and committed."
        )
        self.consumed = meter.create_counter("messaging.client.consumed.messages", "{message}", "Tries that began.")
        self.duration = meter.create_histogram(
            "messaging.process.duration", "s", "Duration of the call.", explicit_bucket_boundaries_advisory=DURATIONS
        )
        self.lag = meter.create_histogram(
            "async_task.lag", "s", "From when a try was due to its claim.", explicit_bucket_boundaries_advisory=LAGS
        )
        self.outcomes = meter.create_counter("async_task.outcomes", "{outcome}", "Outcomes that were committed.")
        self.counted_by: int | None = None
        """The process that has counted the first try."""

    def begin(self, facts: CallFacts, about: Attributes) -> None:
        self.counted_by = self.counted_by or os.getpid()
        self.consumed.add(1, about)
        if facts.started_at is not None:
            self.lag.record(max(0.0, (facts.started_at - facts.due_at).total_seconds()), about)


def _about(operation: str, target: str | None, method: str | None, queue: str | None) -> Attributes:
    """What spans and metrics have in common. What is None is left out."""
    attributes = {
        "messaging.system": SYSTEM, "messaging.operation.name": operation, "messaging.destination.name": queue,
        "async_task.target": target, "async_task.method": method,
    }  # fmt: skip
    return {name: value for name, value in attributes.items() if value is not None}


def _about_try(facts: CallFacts) -> Attributes:
    return _about("process", facts.target, facts.method, facts.queue)


def _kind_of_writing(calls: CallsToWrite) -> tuple[str, Attributes]:
    """The type of the operation, and what tells this one from others: a "create" span is of one message."""
    if calls.attempt_id is None:
        return "send", {"messaging.batch.message_count": calls.number}
    return "create", {"messaging.message.id": str(calls.attempt_id)}


def _links(trace_context: str | None) -> Sequence[Link]:
    """To the span of this traceparent; none for what is no traceparent."""
    if trace_context is None:
        return ()
    found = _propagator.extract({_TRACEPARENT: trace_context}, Context())
    span_context = trace.get_current_span(found).get_span_context()
    return (Link(span_context),) if span_context.is_valid else ()


def _fail(span: Span, error: BaseException) -> Attributes:
    """Say on the span of which class the error is, and no more; returns that."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    span.set_attribute("error.type", name)
    span.set_status(Status(StatusCode.ERROR, name))
    return {"error.type": name}


def _said(outcome: Outcome) -> str:
    """`succeeded`, `retried`, ...; `again` for a poll that is not finished, which is no error."""
    if isinstance(outcome, Retried) and outcome.error is None:
        return "again"
    return type(outcome).__name__.lower()
