from typing import Any

import pytest
import ray
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

from deployments import resources
from deployments.config import ModelConfig, ServiceConfig
from deployments.resources import (
    Cluster,
    Node,
    Resources,
    most_that_may_be,
    refuse_too_much,
    settled_cluster,
    share_out,
    warn_of_room,
)
from pooling.config import parse_settings
from pooling.errors import ConfigError


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"device": "cuda"},
            "need 1 GPUs, but this machine has 2 CPUs and 0 GPUs; lower replicas or num_gpus, or set device: cpu",
        ),
        ({"num_cpus": 3}, "need 3 CPUs, but this machine has 2 CPUs and 0 GPUs; lower replicas or num_cpus"),
        ({"num_cpus": 1, "autoscaling": {"min": 3, "max": 4}}, "need 3 CPUs"),
    ],
)
def test_more_than_this_machine_has_is_refused_instead_of_waited_for(settings: dict[str, Any], message: str) -> None:
    service = ServiceConfig.model_validate({"models": [{"source": "a", **settings}]})
    with pytest.raises(ConfigError, match=message):
        refuse_too_much(service, Cluster(2, 2, 0))


def test_ranks_of_a_model_that_is_split_reserve_as_much_each() -> None:
    split = {"tensor_parallel_size": 2}
    assert share([split], cpus=8, gpus=2) == [Resources("cuda", 1.0, 1.0, 2, ranks=2)]
    assert share([{**split, "num_cpus": 6, "num_gpus": 2}], cpus=8, gpus=2) == [Resources("cuda", 3.0, 1.0, 6, ranks=2)]
    assert share([split, {}], cpus=9) == [Resources("cpu", 3.0, 0.0, 6, ranks=2), Resources("cpu", 3.0, 0.0, 3)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"device": "cuda"},
            "tensor_parallel_size is 4, but no node has 4 GPUs, the most is 2; the ranks of a replica",
        ),
        ({"device": "cpu", "num_cpus": 40}, "no node has 40 CPUs, the most is 16"),
        ({"device": "cuda", "num_gpus": 0.5}, "num_gpus is 0.5, but tensor_parallel_size is 4 and each rank has a GPU"),
    ],
)
def test_ranks_that_no_node_has_room_for_are_refused(settings: dict[str, Any], message: str) -> None:
    """However much there is on all nodes together."""
    model = {"source": "a", "tensor_parallel_size": 4, **settings}
    with pytest.raises(ConfigError, match=message):
        refuse_too_much(parse_settings(ServiceConfig, {"models": [model]}, "config"), cluster_of(*[Node(16, 2)] * 4))


def cluster_of(*nodes: Node) -> Cluster:
    cpus, gpus = (sum(column) for column in zip(*nodes, strict=True))
    return Cluster(cpus, max(node.cpus for node in nodes), gpus, nodes)


@pytest.mark.parametrize(
    ("settings", "nodes", "message"),
    [
        (
            {"num_cpus": 6},
            [Node(4, 0), Node(4, 0)],
            "`a` needs 6 CPUs and 0 GPUs on one node for each of its 1 replicas, but the cluster has 8 CPUs and 0 GPUs "
            "on 2 nodes: 2 of 4 CPUs and 0 GPUs: room for 0",
        ),
        ({"num_gpus": 2, "device": "cuda"}, [Node(4, 1), Node(4, 1)], "2 of 4 CPUs and 1 GPUs: room for 0"),
        ({"num_gpus": 1, "num_cpus": 8}, [Node(8, 0), Node(2, 4)], "needs 8 CPUs and 1 GPUs on one node"),
        ({"num_cpus": 3, "replicas": 3}, [Node(8, 0), Node(2, 0)], "each of its 3 replicas, .*: room for 2"),
    ],
)
def test_a_replica_that_fits_on_no_node_is_refused(settings: dict[str, Any], nodes: list[Node], message: str) -> None:
    service = ServiceConfig.model_validate({"models": [{"source": "a", **settings}]})
    with pytest.raises(ConfigError, match=message):
        refuse_too_much(service, cluster_of(*nodes))
    refuse_too_much(service, cluster_of(*nodes, Node(16, 8)))  # one that has the room


def test_shares_fit_on_the_nodes_that_there_are() -> None:
    nodes = cluster_of(*[Node(16, 0)] * 4)
    service = ServiceConfig.model_validate({"models": [{"source": "a", "replicas": 5}]})
    assert share_out(service.models, nodes, 0) == [Resources("cpu", 8.0, 0.0, 8)]  # 12 would be a fair share of all
    refuse_too_much(service, nodes)


def test_replicas_that_there_is_no_room_for_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    scaled = {"source": "a", "num_cpus": 2, "autoscaling": {"min": 1, "max": 9}}
    service = ServiceConfig.model_validate({"models": [scaled, {"source": "b", "replicas": 1}]})
    warn_of_room(service, cluster_of(Node(8, 0), Node(3, 0)))
    assert [record.message for record in caplog.records] == [
        "a: autoscaling.max is 9, but the cluster has 11 CPUs and 0 GPUs on 2 nodes: 1 of 8 CPUs and 0 GPUs, "
        "1 of 3 CPUs and 0 GPUs: room for 5 replicas, unless it grows"
    ]


class Autoscaler:
    """Ray's own reckoning, of node groups as an autoscaler reports them."""

    def __init__(self, *groups: tuple[int, dict[str, int]]) -> None:
        self._config = ClusterConfig(
            node_group_configs=[NodeGroupConfig(max_count=count, resources=node) for count, node in groups]
        )

    def put(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ray._private.state.state, "get_cluster_config", lambda: self._config)


def service_of(*models: dict[str, Any]) -> ServiceConfig:
    return ServiceConfig.model_validate({"wait_for_nodes_s": 0, "models": list(models)})


def test_a_cluster_with_an_autoscaler_is_judged_by_what_it_may_grow_to(monkeypatch: pytest.MonkeyPatch) -> None:
    Autoscaler((4, {"CPU": 16, "GPU": 1})).put(monkeypatch)
    now = cluster_of(Node(8, 0), Node(3, 0))
    refuse_too_much(service_of({"source": "a", "device": "cuda", "num_gpus": 4}), most_that_may_be(now))
    with pytest.raises(ConfigError, match=r"need 5 GPUs, but .* has 64 CPUs and 4 GPUs"):
        refuse_too_much(service_of({"source": "a", "device": "cuda", "num_gpus": 5}), most_that_may_be(now))
    Autoscaler().put(monkeypatch)
    assert most_that_may_be(now) is now


def test_ranks_may_be_on_a_node_that_an_autoscaler_has_still_to_add(monkeypatch: pytest.MonkeyPatch) -> None:
    Autoscaler((2, {"CPU": 32, "GPU": 8}), (0, {"CPU": 99})).put(monkeypatch)
    may_be = most_that_may_be(cluster_of(Node(2, 0)))
    split = {"source": "a", "device": "cuda", "tensor_parallel_size": 8}
    refuse_too_much(service_of({**split, "num_cpus": 32}), may_be)
    with pytest.raises(ConfigError, match="no node has 40 CPUs, the most is 32"):
        refuse_too_much(service_of({**split, "num_cpus": 40}), may_be)


def test_shares_are_of_the_cluster_that_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a head without CPUs, as it is before the first worker is there."""
    monkeypatch.setattr(resources, "running_cluster", lambda: cluster_of(Node(0, 0)))
    Autoscaler((2, {"CPU": 16, "GPU": 1}), (4, {"CPU": 16})).put(monkeypatch)
    auto, cpu = {"source": "a"}, {"source": "b", "device": "cpu", "replicas": 5}
    service = service_of(auto, cpu)
    assert share_out(service.models, settled_cluster(service), 0) == [
        Resources("cuda", 1.0, 1.0, 1),
        Resources("cpu", 16.0, 0.0, 16),
    ]
    service = service_of({**cpu, "replicas": 7})  # 13 would be a fair share, of which a node holds but one
    assert share_out(service.models, settled_cluster(service), 0) == [Resources("cpu", 8.0, 0.0, 8)]


def test_room_that_replicas_can_never_take_is_shared_out() -> None:
    scaled = {"device": "cuda", "autoscaling": {"min": 1, "max": 64}}
    assert share([scaled, {"device": "cpu"}], cpus=16, gpus=2)[1] == Resources("cpu", 14.0, 0.0, 14)
    asleep = {"num_cpus": 2.0, "device": "cpu", "autoscaling": {"min": 0, "max": 3}}
    assert share([asleep, {"device": "cpu"}], cpus=8)[1] == Resources("cpu", 2.0, 0.0, 2)


@pytest.mark.parametrize("replicas", [1, 3, 5, 7])
def test_shares_of_what_there_is_are_never_too_much(replicas: int) -> None:
    service = ServiceConfig.model_validate({"models": [{"source": "a", "replicas": replicas}]})
    refuse_too_much(service, Cluster(2, 2, 0))
    asleep = {"models": [{"source": "a", "num_cpus": 1, "autoscaling": {"min": 0, "max": 9}}]}
    refuse_too_much(ServiceConfig.model_validate(asleep), Cluster(2, 2, 0))
