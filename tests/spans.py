"""What OpenTelemetry's own SDK has exported, as tests read it."""

from typing import Any, NamedTuple

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, format_span_id, format_trace_id

from async_task.integrations.opentelemetry import OpenTelemetry


class Exported(NamedTuple):
    """An SDK whose exporters keep all in memory, and the telemetry that uses it."""

    tracers: TracerProvider
    spans: InMemorySpanExporter
    metrics: InMemoryMetricReader
    telemetry: OpenTelemetry

    def of_kind(self, kind: SpanKind) -> list[ReadableSpan]:
        """In the order of their ends."""
        return [one for one in self.spans.get_finished_spans() if one.kind is kind]

    @property
    def producers(self) -> list[ReadableSpan]:
        return self.of_kind(SpanKind.PRODUCER)

    @property
    def consumers(self) -> list[ReadableSpan]:
        return self.of_kind(SpanKind.CONSUMER)

    @property
    def outcomes(self) -> list[Any]:
        return [(one.attributes or {}).get("async_task.outcome") for one in self.consumers]

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """The points of a metric: attributes, and the value, or the number and the sum of a histogram."""
        data = self.metrics.get_metrics_data()
        found = [
            metric
            for resource in (() if data is None else data.resource_metrics)
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
        ]
        return [(dict(one.attributes), _value(one)) for metric in found for one in metric.data.data_points]


def _value(point: Any) -> Any:
    return point.value if hasattr(point, "value") else (point.count, point.sum)


def exported(**options: Any) -> Exported:
    """`options`: of the TracerProvider."""
    spans, metrics = InMemorySpanExporter(), InMemoryMetricReader()
    tracers = TracerProvider(shutdown_on_exit=False, **options)
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    meters = MeterProvider([metrics], shutdown_on_exit=False)
    return Exported(tracers, spans, metrics, OpenTelemetry(tracer_provider=tracers, meter_provider=meters))


def traceparent(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"


def linked(span: ReadableSpan) -> list[str]:
    """The traceparents of the spans that it is linked to."""
    return [
        f"00-{format_trace_id(one.context.trace_id)}-{format_span_id(one.context.span_id)}-{one.context.trace_flags:02x}"
        for one in span.links
    ]
