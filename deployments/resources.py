"""What each engine replica reserves of the cluster."""

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import ray

from deployments.config import ModelConfig, ServiceConfig
from pooling.errors import ConfigError

log = logging.getLogger("raypool")

# Of the sum of many shares.
_ROUNDING = 1e-6
_LOOK_S = 1.0
_SIZES_SHOWN = 4


class Node(NamedTuple):
    """What a node has."""

    cpus: float
    gpus: float


class Cluster(NamedTuple):
    """What there is to share: CPUs in all, CPUs of the largest node, GPUs in all; of each node, where it is known."""

    cpus: float
    largest_node_cpus: float
    gpus: float
    nodes: tuple[Node, ...] = ()

    def __str__(self) -> str:
        whole = f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"
        if len(self.nodes) < 2:
            return f"this machine has {whole}"
        sizes = Counter(self.nodes).most_common(_SIZES_SHOWN)
        each = ", ".join(f"{count} of {node.cpus:g} CPUs and {node.gpus:g} GPUs" for node, count in sizes)
        more = ", and smaller numbers of others" if len(set(self.nodes)) > _SIZES_SHOWN else ""
        return f"the cluster has {whole} on {len(self.nodes)} nodes: {each}{more}"

    @property
    def largest_node_gpus(self) -> float:
        return max((node.gpus for node in self.nodes), default=self.gpus)


class Resources(NamedTuple):
    """What each rank of a replica reserves, and how many CPU threads the replica computes with.

    A replica has one rank, or tensor_parallel_size of them, all on one node.
    """

    device: Literal["cpu", "cuda"]
    num_cpus: float
    num_gpus: float
    threads: int
    ranks: int = 1


def share_out(models: Sequence[ModelConfig], cluster: Cluster, reserved_cpus: float) -> list[Resources]:
    """One Resources for each model, in order.

    `auto` is cuda if the cluster has a GPU. Models on a CPU that name no
    num_cpus get equal shares of what is left, whole CPUs if there are enough,
    else fractions, so that a small machine still starts them all; a rank of a
    model that is split gets as much as a replica of one that is not.
    """
    devices = [_device(model, cluster) for model in models]
    asked = [
        model.num_cpus / _ranks(model) if model.num_cpus is not None else (1.0 if device == "cuda" else None)
        for model, device in zip(models, devices, strict=True)
    ]
    taken = reserved_cpus + sum(
        cpus * _ranks(model) * _counted(model, _resources(model, device, cpus), cluster)
        for model, device, cpus in zip(models, devices, asked, strict=True)
        if cpus is not None
    )
    sharers = sum(
        _ranks(model) * model.most_replicas for model, cpus in zip(models, asked, strict=True) if cpus is None
    )
    share = _share(cluster, cluster.cpus - taken, sharers)
    return [
        _resources(model, device, share if cpus is None else cpus)
        for model, device, cpus in zip(models, devices, asked, strict=True)
    ]


def refuse_too_much(service: ServiceConfig, cluster: Cluster) -> None:
    """Raises ConfigError where the replicas that must run need more than there is: they would wait for ever."""
    resources = share_out(service.models, cluster, service.router.reserved_cpus)
    for model, one in zip(service.models, resources, strict=True):
        _refuse_scattered(model, one, cluster)
    counts = [model.fewest_replicas for model in service.models]
    gpus = sum(one.num_gpus * one.ranks * count for one, count in zip(resources, counts, strict=True))
    cpus = service.router.reserved_cpus + sum(
        one.num_cpus * one.ranks * count for one, count in zip(resources, counts, strict=True)
    )
    for name, asked, there in (("GPU", gpus, cluster.gpus), ("CPU", cpus, cluster.cpus)):
        if asked > there + _ROUNDING:
            raise ConfigError(
                f"the models need {asked:g} {name}s, but {cluster}; lower replicas or "
                f"num_{name.lower()}s{', or set device: cpu' if name == 'GPU' else ''}"
            )
    for model, one, count in zip(service.models, resources, counts, strict=True):
        places = _places(one, cluster)
        if count and places < count:
            raise ConfigError(
                f"the model `{model.served_name}` needs {one.num_cpus * one.ranks:g} CPUs and "
                f"{one.num_gpus * one.ranks:g} GPUs on one node "
                f"for each of its {count} replicas, but {cluster}: room for {places}"
            )


def warn_of_room(service: ServiceConfig, cluster: Cluster) -> None:
    """Says which models may never have as many replicas as autoscaling.max allows, unless the cluster grows."""
    resources = share_out(service.models, cluster, service.router.reserved_cpus)
    for model, one in zip(service.models, resources, strict=True):
        places = _places(one, cluster)
        if model.autoscaling is not None and places < model.autoscaling.max:
            log.warning(
                "%s: autoscaling.max is %d, but %s: room for %d replicas, unless it grows",
                model.served_name,
                model.autoscaling.max,
                cluster,
                places,
            )


def settled_cluster(service: ServiceConfig) -> Cluster:
    """The running cluster, once it has what must run of the service.

    With an autoscaler, the cluster as it may become: shares and devices are those
    that it was judged by. Waits wait_for_nodes_s for nodes that still join, as
    those of a cluster do that is just being started. Raises ConfigError if
    something is missing then.
    """
    deadline = time.monotonic() + service.wait_for_nodes_s
    while True:
        cluster = most_that_may_be(running_cluster())
        try:
            refuse_too_much(service, cluster)
        except ConfigError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_S)
        else:
            warn_of_room(service, cluster)
            return cluster


def _refuse_scattered(model: ModelConfig, resources: Resources, cluster: Cluster) -> None:
    """The ranks of a replica add up many times in each forward pass, through memory or links that one node has."""
    of_node = (
        ("GPU", resources.num_gpus, cluster.largest_node_gpus),
        ("CPU", resources.num_cpus, cluster.largest_node_cpus),
    )
    for name, each, there in of_node:
        if resources.ranks > 1 and each * resources.ranks > there + _ROUNDING:
            raise ConfigError(
                f"{model.served_name}: tensor_parallel_size is {resources.ranks}, but no node has "
                f"{each * resources.ranks:g} {name}s, the most is {there:g}; the ranks of a replica are on one node"
            )


def running_cluster() -> Cluster:
    """What the running cluster has; this machine's CPUs where none runs, as for `serve build`."""
    if not ray.is_initialized():
        cpus = float(os.cpu_count() or 1)
        return Cluster(cpus, cpus, 0.0)
    alive = [
        node["Resources"]
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]
    nodes = tuple(Node(float(node.get("CPU", 0.0)), float(node.get("GPU", 0.0))) for node in alive)
    largest = max((node.cpus for node in nodes), default=1.0)
    return Cluster(sum(node.cpus for node in nodes), largest, sum(node.gpus for node in nodes), nodes)


def most_that_may_be(cluster: Cluster) -> Cluster:
    """What the cluster has when its autoscaler has added all nodes that it may; itself, if it has no autoscaler."""
    state = ray._private.state.state
    limits = state.get_max_resources_from_cluster_config()
    if limits is None:
        return cluster
    cpus, gpus = float(limits.get("CPU", 0)), float(limits.get("GPU", 0))
    groups = [group.resources for group in state.get_cluster_config().node_group_configs if group.max_count]
    largest = max([cluster.largest_node_cpus, *(float(group["CPU"]) for group in groups if "CPU" in group)])
    # How many of each kind it would add is the autoscaler's to know: of GPUs only the sum is judged.
    return Cluster(max(cluster.cpus, cpus), largest, max(cluster.gpus, gpus))


def _places(one: Resources, cluster: Cluster) -> int:
    """For how many such replicas there is room, each on one node; every other taker left out of account."""
    nodes = cluster.nodes or (Node(cluster.cpus, cluster.gpus),)
    return sum(
        min(
            int((there + _ROUNDING) / (asked * one.ranks))
            for there, asked in ((node.cpus, one.num_cpus), (node.gpus, one.num_gpus))
            if asked
        )
        for node in nodes
    )


def _counted(model: ModelConfig, one: Resources, cluster: Cluster) -> int:
    """How many replicas others leave room for: autoscaling.max may be far more than there will ever be."""
    return max(model.fewest_replicas, min(model.most_replicas, _places(one, cluster)))


def _device(model: ModelConfig, cluster: Cluster) -> Literal["cpu", "cuda"]:
    if model.device != "auto":
        return model.device
    return "cuda" if cluster.gpus and model.num_gpus != 0 else "cpu"


def _share(cluster: Cluster, left: float, sharers: int) -> float:
    largest = cluster.largest_node_cpus
    each = min(left / sharers, largest) if sharers else 0.0
    nodes = cluster.nodes or (Node(largest, 0.0),) * min(sharers, int(cluster.cpus // (largest or 1.0)))
    for whole in range(math.floor(each), 0, -1):
        if sum(int(node.cpus // whole) for node in nodes) >= sharers:  # no replica spans two nodes
            return float(whole)
    # Ray counts CPUs to four digits; two leave room for the sum of many shares.
    return max(0.01, math.floor(min(each, 1.0) * 100) / 100)


def _resources(model: ModelConfig, device: Literal["cpu", "cuda"], cpus: float) -> Resources:
    ranks = _ranks(model)
    gpus = model.num_gpus / ranks if model.num_gpus is not None else float(device == "cuda")
    return Resources(device, cpus, gpus, max(1, int(cpus)) * ranks, ranks)


def _ranks(model: ModelConfig) -> int:
    return model.tensor_parallel_size
