"""The spans of the demo, where OpenTelemetry's SDK is installed: one call, and its tries, as lines of text."""

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

from async_task_cli.demo.stage import check

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class Traces:
    """The spans that this process has ended; None are kept without the SDK (`is_there`)."""

    def __init__(self) -> None:
        self._spans = _kept_spans()

    @property
    def is_there(self) -> bool:
        return self._spans is not None

    def lines_about(self, attempt_id: uuid.UUID) -> Iterator[str]:
        """The span that wrote a call down, and that of its last try, which is linked to it. Raises Untrue."""
        assert self._spans is not None
        own = [
            one for one in self._spans.get_finished_spans() if _value(one, "messaging.message.id") == str(attempt_id)
        ]
        written, tries = own[:1], own[1:]
        check(
            len(written) == 1 and len(tries) > 0, "a call has a span, and each of its tries", [one.name for one in own]
        )
        last, begin = tries[-1], written[0].get_span_context()
        links = [one.context.span_id for one in last.links]
        check(begin is not None and links == [begin.span_id], "the span of a try is linked to that of its call", links)
        for span in (written[0], last):
            yield f"{span.name:27}  trace {_trace_of(span)}"
        number, outcome = _value(last, "async_task.try"), _value(last, "async_task.outcome")
        yield f"Try {number} {outcome}. Its span is linked to the first one, {links[0]:016x}."


def _kept_spans() -> "InMemorySpanExporter | None":
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    except ModuleNotFoundError:
        return None
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)
    return spans


def _value(span: "ReadableSpan", name: str) -> object:
    return (span.attributes or {}).get(name)


def _trace_of(span: "ReadableSpan") -> str:
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}"
