"""A forward pass that raises, runs out of memory or hangs: its caller is told, the service says so and mends itself."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.chaos.conftest import Chaos
from tests.chaos.faults import HANGS, RAISES, RUNS_OUT_OF_MEMORY
from tests.deployments.conftest import wait_until

DEADLINE_S = 60  # the service's own


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (RAISES, "the forward pass failed: RuntimeError"),
        (RUNS_OUT_OF_MEMORY, "the forward pass failed: RuntimeError"),  # as torch says it on a CPU
        (HANGS, "a forward pass did not end within 2 s"),
    ],
    ids=["raises", "runs out of memory", "hangs"],
)
def test_a_forward_pass_that_fails_at_every_replica(service: Chaos, fault: int, said: str) -> None:
    before = service.replicas()
    with health_of(service) as seen:
        response = post(service, fault)
        assert response.status_code == 503, response.text
        # A router asks its replicas for their health once a second, so /health may be that much late.
        wait_until(lambda: service.whole() and not {*before} & {*service.replicas()} and seen[-1] == 200)
    print(f"\n{said}: {response.status_code} after {response.elapsed.total_seconds():.1f} s; /health said {seen}")
    assert response.elapsed.total_seconds() < DEADLINE_S
    assert "the engine failed 3 times under this request, the last time because" in message(response)
    assert said in message(response)
    assert seen[0] == seen[-1] == 200
    assert 503 in seen
    assert post(service, 7).status_code == 200


def test_a_hang_costs_its_caller_no_more_than_the_time_it_allows(service: Chaos) -> None:
    before = service.replicas()
    response = post(service, HANGS, {"x-request-timeout-seconds": "1"})
    assert response.status_code == 504
    assert "was not answered within its" in message(response)
    wait_until(
        lambda: service.whole() and service.replicas() != before
    )  # though nobody waits, the watchdog has seen it
    assert len({*before} & {*service.replicas()}) == 1


@contextmanager
def health_of(service: Chaos) -> Iterator[list[int]]:
    """What /health says meanwhile, each change once."""
    seen, over = [200 if service.healthy() else 503], threading.Event()

    def ask() -> None:
        while not over.wait(0.1):
            status = 200 if service.healthy() else 503
            if status != seen[-1]:
                seen.append(status)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def post(service: Chaos, first_id: int, headers: dict[str, str] | None = None) -> httpx.Response:
    body = {"model": "bert", "input": [[first_id, 8, 9]]}
    return httpx.post(f"{service.url}/v1/embeddings", json=body, headers=headers, timeout=90, trust_env=False)


def message(response: httpx.Response) -> str:
    return str(response.json()["error"]["message"])
