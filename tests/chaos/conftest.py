"""A Ray cluster of two nodes on this machine with Serve behind HAProxy, for tests that break parts of it.

Ray's own test cluster starts a raylet for each node. `service` answers at /:
one small model in two replicas that fail when an input asks for it, and two
routers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.faults import FaultyReplica, deployed_with
from tests.deployments.conftest import _flags, _free_ports, ray, serve, wait_until

STEP_TIMEOUT_S = 2.0
REPLICAS = 2
NODE: dict[str, Any] = {"node_ip_address": "127.0.0.1", "object_store_memory": 100 << 20}


@dataclass
class Chaos:
    """Where the service answers, and how to deploy another configuration of it."""

    cluster: Any
    url: str
    model: str

    def config(self, **model: Any) -> dict[str, Any]:
        one = {"source": self.model, "name": "bert", "dtype": "float32", "num_cpus": 0.4, "replicas": REPLICAS}
        return {
            "models": [{**one, "step_timeout_s": STEP_TIMEOUT_S, **model}],
            "router": {"replicas": 2},
            "limits": {"request_timeout_s": 60},
        }

    def deploy(self, **model: Any) -> None:
        """Returns when it runs. A configuration that runs already is changed replica by replica."""
        from deployments.app import build
        from deployments.config import ServiceConfig

        with deployed_with(FaultyReplica):
            serve.run(build(ServiceConfig.model_validate(self.config(**model))), name="raypool", route_prefix="/")

    def healthy(self) -> bool:
        return httpx.get(f"{self.url}/health", trust_env=False, timeout=10).status_code == 200

    def replicas(self, deployment: str = "engine-bert", application: str = "raypool") -> list[str]:
        """The actors of a deployment that run."""
        names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        return sorted(name for name in names if f"::{application}#{deployment}#" in name)

    def whole(self, replicas: int = REPLICAS) -> bool:
        """Whether the service runs at full strength, all parts of it started."""
        status = serve.status().applications["raypool"]
        counts = [states.replica_states for states in status.deployments.values()]
        return (
            status.status == "RUNNING"
            and all(set(states) == {"RUNNING"} for states in counts)
            and len(self.replicas()) == replicas
            and self.healthy()
        )


@pytest.fixture(scope="package")
def chaos(checkpoint: Callable[[str], Path]) -> Iterator[Chaos]:
    from ray.cluster_utils import Cluster

    port, stats, metrics = _free_ports(3)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in _flags(stats, metrics).items():
            environment.setenv(name, value)
        # The autoscaler hears of tokens every ten seconds in production.
        environment.setenv("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")
        # As that flag says, had it been set when this process imported ray: all on 127.0.0.1.
        environment.setattr(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False)
        if ray.is_initialized():
            ray.shutdown()
        cluster = Cluster()
        cluster.add_node(num_cpus=1, include_dashboard=False, **NODE)
        ray.init(address=cluster.address, log_to_driver=False)
        try:
            # One HAProxy: those of two nodes on one machine would want the same port.
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            found = Chaos(cluster, f"http://127.0.0.1:{port}", str(checkpoint("bert")))
            found.deploy()
            wait_until(found.whole)
            yield found
        finally:
            serve.shutdown()
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture
def service(chaos: Chaos) -> Chaos:
    """The service at full strength, whatever the test before has done to it."""
    wait_until(chaos.whole)
    return chaos
