"""What each engine replica reserves of the cluster."""

import math
import os
from collections.abc import Sequence
from typing import Literal, NamedTuple

import ray

from deployments.config import ModelConfig, ServiceConfig
from pooling.errors import ConfigError

# Of the sum of many shares.
_ROUNDING = 1e-6


class Cluster(NamedTuple):
    """What there is to share: CPUs in all, the most CPUs of a node, GPUs in all, the most GPUs of a node."""

    cpus: float
    largest_node_cpus: float
    gpus: float
    largest_node_gpus: float = 0.0


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
        cpus * _ranks(model) * model.most_replicas
        for model, cpus in zip(models, asked, strict=True)
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
    counts = [model.fewest_replicas * one.ranks for model, one in zip(service.models, resources, strict=True)]
    gpus = sum(one.num_gpus * count for one, count in zip(resources, counts, strict=True))
    cpus = service.router.reserved_cpus + sum(
        one.num_cpus * count for one, count in zip(resources, counts, strict=True)
    )
    for name, asked, there in (("GPU", gpus, cluster.gpus), ("CPU", cpus, cluster.cpus)):
        if asked > there + _ROUNDING:
            raise ConfigError(
                f"the models need {asked:g} {name}s, but this machine has {there:g}; lower replicas or "
                f"num_{name.lower()}s{', or set device: cpu' if name == 'GPU' else ''}"
            )


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
        return Cluster(cpus, cpus, 0.0, 0.0)
    nodes = [
        node["Resources"]
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]
    cpus_of = [float(node.get("CPU", 0.0)) for node in nodes]
    gpus_of = [float(node.get("GPU", 0.0)) for node in nodes]
    return Cluster(sum(cpus_of), max(cpus_of, default=1.0), sum(gpus_of), max(gpus_of, default=0.0))


def _device(model: ModelConfig, cluster: Cluster) -> Literal["cpu", "cuda"]:
    if model.device != "auto":
        return model.device
    return "cuda" if cluster.gpus and model.num_gpus != 0 else "cpu"


def _share(cluster: Cluster, left: float, sharers: int) -> float:
    each = min(left / sharers, cluster.largest_node_cpus) if sharers else 0.0
    # Ray counts CPUs to four digits; two leave room for the sum of many shares.
    return float(math.floor(each)) if each >= 1 else max(0.01, math.floor(each * 100) / 100)


def _resources(model: ModelConfig, device: Literal["cpu", "cuda"], cpus: float) -> Resources:
    ranks = _ranks(model)
    gpus = model.num_gpus / ranks if model.num_gpus is not None else float(device == "cuda")
    return Resources(device, cpus, gpus, max(1, int(cpus)) * ranks, ranks)


def _ranks(model: ModelConfig) -> int:
    return model.tensor_parallel_size
