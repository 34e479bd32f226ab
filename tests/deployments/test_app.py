"""build(): what Serve is told to deploy, and that every file in configs/ can be built."""

from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.serve._private.build_app import build_app
from ray.serve.schema import ServeDeploySchema

from deployments.app import build
from deployments.config import ServiceConfig
from deployments.scaling import QueuedTokens
from deployments.token_router import TokenRouter
from tests.checkpoints import MINILM

# tests/test_kuberay.py has the one that is a manifest for Kubernetes, with a Serve config in it.
CONFIGS = [path for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")) if path.stem != "kuberay"]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for `serve build`: other tests may have one running, which has no room for most of these."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


def deployments(**settings: Any) -> dict[str, Any]:
    application = build(ServiceConfig.model_validate(settings))
    return {deployment.name: deployment for deployment in build_app(application, name="raypool").deployments}


def test_a_router_and_an_engine_deployment_for_each_model() -> None:
    found = deployments(
        models=[
            {"source": MINILM, "name": "minilm", "replicas": 2, "num_cpus": 1.5},
            {"source": "org/other", "autoscaling": {"min": 0, "max": 4, "downscale_delay_s": 5}},
        ],
        router={"replicas": 3, "num_cpus": 1},
    )
    assert sorted(found) == ["engine-minilm", "engine-org-other", "router"]
    router, fixed, scaled = found["router"], found["engine-minilm"], found["engine-org-other"]
    assert (router.num_replicas, router.ray_actor_options["num_cpus"]) == (3, 1)
    assert (fixed.num_replicas, fixed.ray_actor_options["num_cpus"]) == (2, 1.5)
    scaling = scaled._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.downscale_delay_s) == (0, 4, 5)
    assert isinstance(scaling.policy.get_policy()(**scaling.policy.policy_kwargs), QueuedTokens)
    routing = fixed._deployment_config.request_router_config
    assert routing.get_request_router_class() is TokenRouter
    assert routing.request_router_kwargs == {"small_tokens": 1_024}
    assert all(deployment.max_ongoing_requests >= 512 for deployment in found.values())


def test_a_replica_of_a_model_that_is_split_reserves_room_for_all_its_ranks_on_one_node() -> None:
    model = {"source": MINILM, "name": "minilm", "device": "cuda", "tensor_parallel_size": 4, "num_cpus": 8}
    engine = deployments(models=[model])["engine-minilm"]
    config = engine._replica_config
    assert config.placement_group_bundles == [{"CPU": 2.0, "GPU": 1.0}] * 4
    assert config.placement_group_strategy == "STRICT_PACK"
    assert (engine.ray_actor_options["num_cpus"], engine.ray_actor_options["num_gpus"]) == (2.0, 1.0)


def test_those_with_the_most_ranks_are_placed_first_and_the_first_model_stays_the_default() -> None:
    ranks = {"one": 1, "two": 2, "eight": 8, "other": 1}
    models = [
        {"source": MINILM, "name": name, "device": "cuda", "tensor_parallel_size": size} for name, size in ranks.items()
    ]
    found = deployments(models=models)
    assert [*found] == ["engine-eight", "engine-two", "engine-one", "engine-other", "router"]
    config, handles = found["router"].init_args
    assert [model.name for model in config.models] == [*ranks]
    assert {name: handle.deployment_name for name, handle in handles.items()} == {
        f"engine-{name}": f"engine-{name}" for name in ranks
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_is_one_that_serve_takes_and_can_be_built(path: Path) -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    # Unless someone asks for more, as who runs many nodes must.
    assert config.http_options.host == ("0.0.0.0" if path.stem == "many-gpus" else "127.0.0.1")
    (application,) = config.applications
    assert (application.name, application.import_path) == ("raypool", "deployments.app:build")
    found = deployments(**application.args)
    assert len(found) == 1 + len(application.args["models"])


def test_there_are_config_files() -> None:
    assert {"demo", "cpu", "one-gpu", "many-gpus", "many-models", "tensor-parallel"} <= {path.stem for path in CONFIGS}
