"""What the service tells of itself: metrics that a parser reads and a dashboard uses, access logs, spans."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from deployments.http.app import build_http
from deployments.metrics import PARTS
from deployments.tracing import tracer_of_environment
from pooling.errors import ConfigError
from pooling.step_sizes import StepSizes
from tests.deployments.conftest import Service
from tests.deployments.local import LocalRouter

DASHBOARD = Path(__file__).parents[2] / "configs" / "grafana.json"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(page: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float:
    return sum(value for (found, at), value in samples.items() if found == name and labels.items() <= dict(at).items())


async def page(app: httpx.AsyncClient, local: LocalRouter) -> Samples:
    for model in local.models:
        model.engines._probed = -10.0  # what it knows of engines is up to a second old
    return parsed((await app.get("/metrics")).text)


async def test_the_time_of_a_request_is_told_in_its_parts(app: httpx.AsyncClient, local: LocalRouter) -> None:
    before = await page(app, local)
    await app.post("/v1/embeddings", json={"input": ["ba be"] * 50, "model": "chatty"})
    after = await page(app, local)
    seconds = {}
    for part in PARTS:
        labels = {"model": "chatty", "task": "embed", "part": part}
        name = "raypool_request_part_seconds"
        assert total(after, f"{name}_count", **labels) - total(before, f"{name}_count", **labels) == 1
        seconds[part] = total(after, f"{name}_sum", **labels) - total(before, f"{name}_sum", **labels)
    assert seconds["forward"] > 0
    assert seconds["tokenise"] > 0
    whole = "raypool_request_seconds_sum"
    spent = total(after, whole, model="chatty", task="embed") - total(before, whole, model="chatty", task="embed")
    assert sum(seconds.values()) - seconds["encode"] <= spent


async def test_the_steps_of_an_engine_are_told_by_their_size(app: httpx.AsyncClient, local: LocalRouter) -> None:
    before = await page(app, local)
    await app.post("/v1/embeddings", json={"input": ["ba be", "bi"], "model": "chatty"})
    after = await page(app, local)

    def grown(name: str, **labels: str) -> float:
        name = f"raypool_engine_step_{name}"
        return total(after, name, model="chatty", **labels) - total(before, name, model="chatty", **labels)

    assert (grown("inputs_count"), grown("inputs_sum"), grown("tokens_sum")) == (1, 2, 7)
    assert (grown("inputs_bucket", le="1.0"), grown("inputs_bucket", le="2.0")) == (0, 1)
    assert (grown("tokens_bucket", le="4.0"), grown("tokens_bucket", le="8.0"), grown("tokens_bucket", le="+Inf")) == (
        0,
        1,
        1,
    )


@pytest.mark.parametrize(("size", "bound"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (2**17, 2**17)])
def test_a_size_is_counted_up_to_the_power_of_two_above_it(size: int, bound: int) -> None:
    sizes = StepSizes()
    sizes.add(size)
    assert next(float(at) for at, count in sizes.cumulative() if count == 1) == bound
    assert (sizes.count, sizes.total) == (1, size)
    assert dict(sizes.cumulative())["+Inf"] == 1


def test_the_dashboard_shows_what_is_there(service: Service) -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"raypool_\w+", target["expr"])
    }
    assert len(asked) > 10
    with service.client() as client:
        client.post("/v1/embeddings", json={"input": "a"})
        samples = parsed(client.get("/metrics").text)
    assert asked - {name for name, _ in samples} == set()


async def test_each_request_leaves_a_line_with_its_id(
    local: LocalRouter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(local, "access_log", True)
    transport = httpx.ASGITransport(build_http(local))
    logging.getLogger("raypool.access").addHandler(caplog.handler)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://local") as client:
            answer = await client.post("/v1/embeddings", json={"input": "a"}, headers={"x-request-id": "r1"})
            await client.post("/v1/embeddings", json={}, headers={"x-request-id": "r2"})
    finally:
        logging.getLogger("raypool.access").removeHandler(caplog.handler)
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "raypool.access"]
    assert [(line["request_id"], line["status"]) for line in lines] == [("r1", 200), ("r2", 400)]
    assert (lines[0]["method"], lines[0]["path"], lines[0]["bytes_out"]) == (
        "POST",
        "/v1/embeddings",
        len(answer.content),
    )
    assert (lines[0]["bytes_in"], lines[0]["seconds"] > 0) == (len(b'{"input":"a"}'), True)


async def test_without_the_setting_nothing_is_logged(app: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    await app.post("/v1/embeddings", json={"input": "a"})
    assert not [record for record in caplog.records if record.name == "raypool.access"]


async def test_a_request_is_a_span_under_its_callers(local: LocalRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(local, "tracer", provider.get_tracer("test"))
    transport = httpx.ASGITransport(build_http(local))
    headers = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "x-request-id": "r1"}
    async with httpx.AsyncClient(transport=transport, base_url="http://local") as client:
        await client.post("/v1/embeddings", json={"input": "a"}, headers=headers)
    found: dict[str, Any] = {span.name: span for span in spans.get_finished_spans()}
    assert set(found) == {"POST /v1/embeddings", "tokenise", "queue", "forward"}
    request = found["POST /v1/embeddings"]
    assert (request.context.trace_id, request.parent.span_id) == (int("ab" * 16, 16), int("cd" * 8, 16))
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["raypool.request_id"] == "r1"
    for name in ("tokenise", "queue", "forward"):
        assert found[name].parent.span_id == request.context.span_id
        assert (found[name].attributes["raypool.model"], found[name].attributes["raypool.tokens"]) == ("minilm", 3)
        assert request.start_time <= found[name].start_time <= found[name].end_time <= request.end_time


def test_spans_are_sent_only_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert tracer_of_environment() is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"pip install 'raypool\[otel\]'"):
        tracer_of_environment()
