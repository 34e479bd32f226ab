"""Processes killed under load: what clients notice."""

import ray

from tests.chaos.conftest import Chaos
from tests.chaos.load import Load
from tests.deployments.conftest import wait_until
from tests.texts import words

BODY = {"model": "bert", "input": [words(4 + index, start=index) for index in range(4)]}
CLIENTS = 6
REQUESTS = 500


def test_an_engine_replica_killed_under_load_fails_no_request(service: Chaos) -> None:
    before = service.replicas()
    assert len(before) == 2
    with Load(f"{service.url}/v1/embeddings", BODY, CLIENTS) as load:
        wait_until(lambda: load.done > 100)
        kill(before[0])
        wait_until(lambda: service.whole() and before[0] not in service.replicas())
        wait_until(lambda: load.done >= REQUESTS)
    print(f"\nengine replica killed: {load}")
    assert load.done >= REQUESTS
    assert load.failed == 0


def test_a_router_killed_under_load_breaks_its_own_connections_alone(service: Chaos) -> None:
    before = service.replicas("router")
    assert len(before) == 2
    with Load(f"{service.url}/v1/embeddings", BODY, CLIENTS) as load:
        wait_until(lambda: load.done > 100)
        kill(before[0])
        wait_until(lambda: service.whole() and len(set(service.replicas("router")) - {before[0]}) == 2)
        wait_until(lambda: load.done >= REQUESTS)
    print(f"\nrouter killed: {load}")
    assert load.failed <= CLIENTS
    assert load.done >= REQUESTS


def test_requests_flow_while_the_controller_of_serve_is_gone(service: Chaos) -> None:
    engines = service.replicas()
    with Load(f"{service.url}/v1/embeddings", BODY, CLIENTS) as load:
        wait_until(lambda: load.done > 100)
        ray.kill(ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve"), no_restart=False)
        at_kill = load.done
        wait_until(lambda: load.done >= at_kill + REQUESTS)
        wait_until(service.whole)
    print(f"\ncontroller killed: {load}")
    assert load.failed == 0
    assert service.replicas() == engines  # it has taken them over, not started them again


def kill(name: str) -> None:
    """Kills the process of a replica, without notice."""
    ray.kill(ray.get_actor(name, namespace="serve"))
