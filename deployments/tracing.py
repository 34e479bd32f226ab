"""OpenTelemetry spans, where OTEL_EXPORTER_OTLP_ENDPOINT says where to send them; otherwise nothing is imported."""

import os
import time
from typing import TYPE_CHECKING, Any

from pooling import __version__
from pooling.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def tracer_of_environment() -> "Tracer | None":
    """None where no endpoint is named. Raises ConfigError if one is, and the exporter is not installed."""
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise ConfigError(
            f"{_ENDPOINTS[0]} is set, but the exporter is not installed: pip install 'raypool[otel]'"
        ) from None
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "raypool"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("raypool", __version__)


class Tracing:
    """ASGI middleware: a span for each request, the child of the caller's where it sends `traceparent`."""

    def __init__(self, app: Any, tracer: "Tracer") -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        attributes = {
            "http.request.method": scope["method"],
            "url.path": scope["path"],
            "raypool.request_id": headers.get("x-request-id", ""),
        }
        parent = TraceContextTextMapPropagator().extract(headers)
        name = f"{scope['method']} {scope['path']}"
        with self._tracer.start_as_current_span(name, parent, SpanKind.SERVER, attributes) as span:

            async def watched(message: Any) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(Status(StatusCode.ERROR))
                await send(message)

            await self._app(scope, receive, watched)


def add_parts(tracer: "Tracer", model: str, task: str, tokens: int, parts: dict[str, float]) -> None:
    """Child spans of the current one for the parts of an answer that has just come, each in seconds, in their order."""
    end = time.time_ns()
    at = end - sum(_ns(seconds) for seconds in parts.values())
    for name, seconds in parts.items():
        attributes: dict[str, str | int] = {"raypool.model": model, "raypool.task": task, "raypool.tokens": tokens}
        span: Span = tracer.start_span(name, start_time=at, attributes=attributes)
        at += _ns(seconds)
        span.end(at)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
