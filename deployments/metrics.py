"""What a router counts, and how the counts of all routers and engines become one page for Prometheus."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.samples import Sample

from deployments.dispatch import Vitals

CONTENT_TYPE = CONTENT_TYPE_LATEST
# From one short text on a GPU to a bulk request on a CPU.
_LATENCY_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
# The parts of a latency, from a short text's tokenising on.
_PART_S = (0.0001, 0.0005, *_LATENCY_S)
PARTS = ("tokenise", "queue", "forward", "encode")


class RouterMetrics:
    """The counts of one router process since it started.

    `model` is a name of the configuration, or empty where a request named none
    that is served: what clients invent must not become a label.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        # To find a series by its labels takes longer than to count in it.
        self._series = cache(self._find_series)
        self._part = cache(lambda model, task, part: self._parts.labels(model, task, part))
        by = ("model", "task", "status")
        self._requests = Counter("raypool_requests", "Requests answered", by, registry=self._registry)
        self._inputs = Counter("raypool_inputs", "Inputs of answered requests", by, registry=self._registry)
        self._tokens = Counter("raypool_tokens", "Tokens of answered requests", by, registry=self._registry)
        self._seconds = Histogram(
            "raypool_request_seconds",
            "From a request's parsed body to its answer, before encoding",
            ("model", "task"),
            buckets=_LATENCY_S,
            registry=self._registry,
        )
        self._parts = Histogram(
            "raypool_request_part_seconds",
            "Where the time of an answered request went: tokenise, queue, forward, encode",
            ("model", "task", "part"),
            buckets=_PART_S,
            registry=self._registry,
        )
        self._queued = Gauge(
            "raypool_queued_tokens", "Tokens that wait or run, by this router", ("model",), registry=self._registry
        )

    def answered(self, model: str, task: str, status: int, inputs: int, tokens: int, seconds: float) -> None:
        """Counts a request that reached a model, whatever became of it."""
        requests, all_inputs, all_tokens, latency = self._series(model, task, str(status))
        requests.inc()
        all_inputs.inc(inputs)
        all_tokens.inc(tokens)
        latency.observe(seconds)

    def spent(self, model: str, task: str, parts: dict[str, float]) -> None:
        """Counts where the time of an answered request went, in seconds by the names of PARTS."""
        for part, value in parts.items():
            self._part(model, task, part).observe(value)

    @contextmanager
    def encoding(self, model: str, task: str) -> Iterator[None]:
        """Counts how long an answer takes to be written."""
        started = time.monotonic()
        yield
        self.spent(model, task, {"encode": time.monotonic() - started})

    def refused(self, status: int) -> None:
        """Counts a request that was refused before it reached a model."""
        self._requests.labels("", "", str(status)).inc()

    def _find_series(self, model: str, task: str, status: str) -> tuple[Counter, Counter, Counter, Histogram]:
        labels = (model, task, status)
        counters = (self._requests.labels(*labels), self._inputs.labels(*labels), self._tokens.labels(*labels))
        return (*counters, self._seconds.labels(model, task))

    def families(self, queued_tokens: dict[str, int], lost_slices: dict[str, int]) -> list[Metric]:
        """The counts as plain data; given what each model has queued now, and has lost since the start."""
        for model, tokens in queued_tokens.items():
            self._queued.labels(model).set(tokens)
        lost = CounterMetricFamily("raypool_lost_slices", "Slices that an engine replica died under", labels=["model"])
        for model, count in lost_slices.items():
            lost.add_metric([model], count)
        return [*self._registry.collect(), lost]


def page(routers: dict[str, list[Metric]], engines: dict[str, list[Vitals]]) -> bytes:
    """All routers' counts by `router`, and all engine replicas' by `model` and `replica`, as Prometheus text."""
    return generate_latest(_Collected([*_merged(routers), *_engine_families(engines)]))


class _Collected:
    """Families that are known already, in the shape that generate_latest asks for."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _merged(routers: dict[str, list[Metric]]) -> list[Metric]:
    merged: dict[str, Metric] = {}
    for router, families in routers.items():
        for family in families:
            into = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                if sample.name.endswith("_created"):
                    continue  # when each series began: twice the page, and nobody asks
                labels = {**sample.labels, "router": router}
                into.samples.append(Sample(sample.name, labels, sample.value, sample.timestamp, sample.exemplar))
    return list(merged.values())


def _engine_families(engines: dict[str, list[Vitals]]) -> list[Metric]:
    healthy = Metric("raypool_engine_healthy", "Whether the engine replica can serve", "gauge")
    families = {"healthy": healthy}
    for model, replicas in engines.items():
        for one in replicas:
            labels = {"model": model, "replica": one.replica}
            healthy.add_sample(healthy.name, labels, float(one.healthy))
            for name, value in one.stats.items():
                family = families.setdefault(
                    name, Metric(f"raypool_engine_{name}", f"The engine replica's {name.replace('_', ' ')}", "gauge")
                )
                family.add_sample(family.name, labels, float(value))
            for name, steps in one.steps.items():
                title = f"raypool_engine_step_{name}"
                family = families.setdefault(title, Metric(title, f"{name} of one forward pass", "histogram"))
                for bound, count in steps.cumulative():
                    family.add_sample(f"{title}_bucket", {**labels, "le": bound}, float(count))
                family.add_sample(f"{title}_count", labels, float(steps.count))
                family.add_sample(f"{title}_sum", labels, float(steps.total))
    return list(families.values())
