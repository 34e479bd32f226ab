"""Clusters that cannot run a config, and replicas that come and go with the load."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.conftest import NODE, Chaos
from tests.chaos.faults import SlowReplica, deployed_with
from tests.chaos.load import Load
from tests.deployments.conftest import serve, wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def odd_node(service: Chaos, tmp_path: Path) -> Iterator[str]:
    """A node with another torch, and with a model that the first node lacks; its id."""
    for name in ("torch-9.9.0.dist-info", "only_there/model"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "torch-9.9.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.0\n")
    (tmp_path / "only_there" / "__init__.py").touch()
    node = service.cluster.add_node(num_cpus=0, env_vars={"PYTHONPATH": f"{tmp_path}:{ROOT}"}, **NODE)
    yield node.node_id
    service.cluster.remove_node(node)


def test_a_node_that_is_not_like_the_others_is_refused_by_name(service: Chaos, odd_node: str) -> None:
    from cluster.survey import survey
    from deployments.app import build
    from deployments.config import ServiceConfig
    from deployments.nodes import judge
    from pooling.errors import ConfigError, StartupError

    with pytest.raises(StartupError, match=r"node .* has torch \d.*, but others have \d"):
        build(ServiceConfig.model_validate(service.config()))
    found = survey(["python:only_there/model", service.model, "org/fetched-by-each-node"])
    assert {odd_node[:8] in node.node: node.versions["torch"] for node in found if node.versions}[True] == "9.9.0"
    assert all({*node.files} == {"python:only_there/model", service.model} for node in found)
    alike = [node._replace(versions=found[0].versions) for node in found]
    (lacks_it,) = [node.node for node in found if odd_node[:8] not in node.node]
    with pytest.raises(ConfigError) as caught:
        judge(alike)
    assert caught.value.detail.startswith(
        f"on node {lacks_it}: model source 'python:only_there/model' names the Python"
    )


def test_what_there_is_no_room_for_is_refused_by_serve_deploy_too(service: Chaos) -> None:
    from ray.serve.schema import ServeDeploySchema

    args = {"models": [{"source": service.model, "num_cpus": 64}], "wait_for_nodes_s": 0}
    application = {"name": "greedy", "route_prefix": "/greedy", "import_path": "deployments.app:build", "args": args}
    schema = ServeDeploySchema.model_validate({"applications": [application]})
    serve.context._get_global_client().deploy_apps(schema)
    wait_until(lambda: serve.status().applications["greedy"].status == "DEPLOY_FAILED", seconds=90)
    assert "the models need 64 CPUs, but this machine has 1 CPUs" in serve.status().applications["greedy"].message
    serve.delete("greedy")
    assert service.healthy()


def test_a_cold_model_wakes_for_a_request_grows_with_tokens_and_sleeps_again(service: Chaos) -> None:
    from deployments.app import build
    from deployments.config import ServiceConfig

    scaling = {"min": 0, "max": 2, "target_queued_tokens": 500, "look_back_s": 11, "upscale_delay_s": 0}
    model: dict[str, Any] = {"source": service.model, "name": "sleepy", "dtype": "float32", "num_cpus": 0.05}
    model["autoscaling"] = {**scaling, "downscale_delay_s": 2}
    with deployed_with(SlowReplica):
        serve.run(build(ServiceConfig.model_validate({"models": [model]})), name="sleepy", route_prefix="/sleepy")
    url, body = f"{service.url}/sleepy/v1/embeddings", {"input": [[7] * 200]}

    def replicas() -> int:
        return len(service.replicas("engine-sleepy", "sleepy"))

    wait_until(lambda: httpx.get(f"{service.url}/sleepy/health", trust_env=False).status_code == 200)
    assert replicas() == 0  # which is a state in order, as /health says
    first = httpx.post(url, json=body, trust_env=False, timeout=60)
    assert first.status_code == 200, first.text  # it waited for the replica that it woke
    with Load(url, body, clients=8) as load:
        wait_until(lambda: replicas() == 2)
    print(f"\nscaled up: {load}")
    assert load.failed == 0
    wait_until(lambda: replicas() == 0, seconds=120)
    serve.delete("sleepy")
