from typing import Any

from deployments.config import ModelConfig
from deployments.resources import Cluster, Resources, share_out


def share(models: list[dict[str, Any]], cpus: float, gpus: float = 0, reserved: float = 0) -> list[Resources]:
    configs = [ModelConfig(source=str(index), **model) for index, model in enumerate(models)]
    return share_out(configs, Cluster(cpus, min(cpus, 16), gpus), reserved)


def test_one_model_on_a_laptop_computes_with_all_of_it() -> None:
    assert share([{}], cpus=8) == [Resources("cpu", 8.0, 0.0, 8)]
    assert share([{}], cpus=8, reserved=1) == [Resources("cpu", 7.0, 0.0, 7)]


def test_replicas_on_cpus_get_equal_whole_shares() -> None:
    assert share([{"replicas": 2}, {}], cpus=8) == [Resources("cpu", 2.0, 0.0, 2)] * 2


def test_more_replicas_than_cpus_still_all_start() -> None:
    given = share([{"replicas": 3}, {"autoscaling": {"max": 2}}], cpus=2)
    assert given == [Resources("cpu", 0.4, 0.0, 1)] * 2
    assert 5 * given[0].num_cpus <= 2
    assert share([{"num_cpus": 2.0}, {}], cpus=2)[1].num_cpus == 0.01


def test_no_replica_asks_for_more_than_a_node_has() -> None:
    assert share([{}], cpus=64) == [Resources("cpu", 16.0, 0.0, 16)]


def test_what_is_asked_for_is_given() -> None:
    assert share([{"num_cpus": 1.5}, {}], cpus=8)[0] == Resources("cpu", 1.5, 0.0, 1)


def test_auto_is_cuda_where_there_is_a_gpu() -> None:
    assert share([{}], cpus=8, gpus=1) == [Resources("cuda", 1.0, 1.0, 1)]
    assert share([{"num_gpus": 0.25}], cpus=8, gpus=1) == [Resources("cuda", 1.0, 0.25, 1)]
    assert share([{"device": "cpu"}], cpus=8, gpus=1) == [Resources("cpu", 8.0, 0.0, 8)]
    assert share([{"num_gpus": 0}], cpus=8, gpus=1)[0].device == "cpu"
