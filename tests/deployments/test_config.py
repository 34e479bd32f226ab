from typing import Any

import pytest

from deployments.config import ModelConfig, ServiceConfig
from pooling.config import ModelSpec, parse_settings
from pooling.errors import ConfigError

MODEL = {"source": "org/model"}


def service(**settings: Any) -> ServiceConfig:
    return parse_settings(ServiceConfig, {"models": [MODEL], **settings}, "args")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"models": []}, "models is empty"),
        ({"models": [MODEL, MODEL]}, "two models have the served name 'org/model'"),
        ({"models": [{"source": "a/b"}, {"source": "c", "name": "a-b"}]}, "two models have the deployment name"),
        ({"models": [{**MODEL, "replica": 2}]}, "unknown setting 'replica'; known settings are: source, name"),
        ({"models": [{**MODEL, "replicas": 0}]}, "models.0.replicas: Input should be greater than 0"),
        ({"models": [{**MODEL, "replicas": 1, "autoscaling": {"max": 2}}]}, "replicas or autoscaling, not both"),
        ({"models": [{**MODEL, "autoscaling": {"min": 3, "max": 2}}]}, "min is 3, which is more than max, 2"),
        ({"models": [{**MODEL, "device": "cpu", "num_gpus": 1}]}, "device is cpu, but num_gpus is 1"),
        (
            {"models": [{**MODEL, "tensor_parallel_size": 0}]},
            "models.0.tensor_parallel_size: Input should be greater than 0",
        ),
        ({"api_key": ["a"]}, "unknown setting 'api_key'"),
        ({"api_keys": [""]}, "api_keys holds an empty key"),
        ({"limits": {"max_inputs": 0}}, "limits.max_inputs"),
        ({"router": {"replicas": 0}}, "router.replicas"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        service(**settings)
    assert said in caught.value.detail


def test_the_engine_gets_its_part_of_a_model(checkpoint: Any) -> None:
    model = ModelConfig(source="a", name="b", dtype="float32", replicas=3, max_batch_tokens=7)
    assert model.spec == ModelSpec(source="a", name="b", dtype="float32", max_batch_tokens=7)


@pytest.mark.parametrize(
    ("name", "deployment"),
    [("minilm", "engine-minilm"), ("BAAI/bge-m3", "engine-BAAI-bge-m3"), ("python:a/b#c", "engine-python-a-b-c")],
)
def test_a_deployment_name_is_made_of_the_models(name: str, deployment: str) -> None:
    assert ModelConfig(source=name).deployment_name == deployment


def test_the_queue_is_as_long_as_the_limit_or_as_the_replicas_are_many() -> None:
    model = ModelConfig(source="a", replicas=2)
    assert service(limits={"max_queued_tokens": 7}).queued_tokens(model) == 7
    assert service().queued_tokens(model) == 2 * 512 * 1_024
    assert service().queued_tokens(ModelConfig(source="a", device="cuda")) == 512 * 16_384
