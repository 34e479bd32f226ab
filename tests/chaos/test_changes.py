"""Changes under load: a new configuration, and a node that goes."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.chaos.conftest import NODE, Chaos
from tests.chaos.load import Load
from tests.chaos.test_kills import BODY, CLIENTS, REQUESTS
from tests.deployments.conftest import serve, wait_until


def test_a_new_configuration_under_load_fails_no_request(service: Chaos) -> None:
    engines, routers = service.replicas(), service.replicas("router")
    with Load(f"{service.url}/v1/embeddings", BODY, CLIENTS) as load:
        wait_until(lambda: load.done > 100)
        service.deploy(max_model_len=200)
        wait_until(service.whole)
        wait_until(lambda: load.done >= REQUESTS)
    print(f"\nrolling update: {load}")
    assert not {*engines} & {*service.replicas()}
    assert not {*routers} & {*service.replicas("router")}
    assert load.failed == 0


@pytest.fixture
def added(service: Chaos) -> Iterator[list[Any]]:
    """Two nodes more; afterwards the service is as it was."""
    nodes = [service.cluster.add_node(num_cpus=1, **NODE) for _ in range(2)]
    yield nodes
    service.deploy()
    wait_until(service.whole)
    for node in nodes:
        if node in service.cluster.worker_nodes:
            service.cluster.remove_node(node)


def test_what_ran_on_a_node_that_is_gone_runs_on_another(service: Chaos, added: list[Any]) -> None:
    service.deploy(replicas=3)
    wait_until(lambda: service.whole(replicas=3))
    ids = {node.node_id: node for node in added}
    gone = next(node for node in nodes_of("engine-bert") if node in ids)  # the first node has room for two of three
    engines_there, routers_there = nodes_of("engine-bert").count(gone), nodes_of("router").count(gone)
    with Load(f"{service.url}/v1/embeddings", BODY, CLIENTS) as load:
        wait_until(lambda: load.done > 100)
        service.cluster.remove_node(ids[gone], allow_graceful=False)
        wait_until(lambda: gone not in nodes_of("engine-bert") and service.whole(replicas=3), seconds=120)
        wait_until(lambda: load.done >= REQUESTS)
    print(f"\nnode removed with {engines_there} of 3 engine replicas and {routers_there} of 2 routers: {load}")
    assert load.failed <= CLIENTS * bool(routers_there)
    assert len(nodes_of("engine-bert")) == 3


def nodes_of(deployment: str) -> list[str]:
    """On which node each replica of a deployment runs."""
    details = serve.context._get_global_client().get_serve_details()
    replicas = details["applications"]["raypool"]["deployments"][deployment]["replicas"]
    return [replica["node_id"] for replica in replicas if replica.get("node_id")]  # one that starts has none yet
