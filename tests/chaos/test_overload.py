"""Ten times what the engines can do: everyone hears something, and the work goes on at full speed."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.conftest import Chaos
from tests.chaos.faults import SLOW_TOKEN_S, SlowReplica, deployed_with
from tests.chaos.load import Load
from tests.deployments.conftest import serve, wait_until

# CHAOS_SECONDS=60 for as long as a service should stand it; the run of every day is shorter.
SECONDS = float(os.environ.get("CHAOS_SECONDS", "6"))
TOKENS = 100
REPLICAS = 2
CAPACITY = REPLICAS / (TOKENS * SLOW_TOKEN_S)  # requests a second
MOST_GROWTH_BYTES = 200 << 20
BODY: dict[str, Any] = {"model": "slow", "input": [[7] * TOKENS]}


@pytest.fixture
def slow(service: Chaos) -> Iterator[str]:
    """An application of its own, whose engines and not this machine are the bottleneck."""
    from deployments.app import build
    from deployments.config import ServiceConfig

    model = {"source": service.model, "name": "slow", "dtype": "float32", "num_cpus": 0.05, "replicas": REPLICAS}
    config = {"models": [model], "limits": {"max_queued_tokens": 4_000}}
    with deployed_with(SlowReplica):
        serve.run(build(ServiceConfig.model_validate(config)), name="slow", route_prefix="/slow")
    wait_until(lambda: httpx.get(f"{service.url}/slow/health", trust_env=False).status_code == 200)
    yield f"{service.url}/slow/v1/embeddings"
    serve.delete("slow")


def test_overload_is_refused_and_costs_no_throughput(slow: str) -> None:
    peak = answered_a_second(Load(slow, BODY, clients=16), min(SECONDS, 10))
    before = memory()
    load = Load(slow, BODY, clients=100, rate=10 * CAPACITY)
    rate = answered_a_second(load, SECONDS)
    growth = memory() - before
    print(f"\n{10 * CAPACITY:g} requests a second for {SECONDS:g} s: {load}")
    print(f"answered {rate:.1f} a second, at the peak {peak:.1f}, by design {CAPACITY:g}; {growth / 2**20:+.0f} MiB")
    assert set(load.statuses) <= {200, 429, 503}
    assert load.statuses[429] > load.statuses[200]  # else it was no overload
    assert rate > 0.8 * peak
    assert growth < MOST_GROWTH_BYTES


def answered_a_second(load: Load, seconds: float) -> float:
    with load:
        wait_until(lambda: load.statuses[200] > 2 * CAPACITY)
        answered, started = load.statuses[200], time.monotonic()
        time.sleep(seconds)
        return (load.statuses[200] - answered) / (time.monotonic() - started)


def memory() -> int:
    """Bytes that routers, engines and HAProxy hold."""
    held = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "cmdline").read_bytes().split(b"\0")[0]
            if b"ServeReplica" in name or b"haproxy" in name:
                held += int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            continue  # it has ended meanwhile
    assert held
    return held
