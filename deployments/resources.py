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
    """What there is to share: CPUs in all, CPUs of the largest node, GPUs in all."""

    cpus: float
    largest_node_cpus: float
    gpus: float


class Resources(NamedTuple):
    """What one replica of a model reserves, and how many CPU threads it computes with."""

    device: Literal["cpu", "cuda"]
    num_cpus: float
    num_gpus: float
    threads: int


def share_out(models: Sequence[ModelConfig], cluster: Cluster, reserved_cpus: float) -> list[Resources]:
    """One Resources for each model, in order.

    `auto` is cuda if the cluster has a GPU. Models on a CPU that name no
    num_cpus get equal shares of what is left, whole CPUs if there are enough,
    else fractions, so that a small machine still starts them all.
    """
    devices = [_device(model, cluster) for model in models]
    asked = [
        model.num_cpus if model.num_cpus is not None else (1.0 if device == "cuda" else None)
        for model, device in zip(models, devices, strict=True)
    ]
    taken = reserved_cpus + sum(
        cpus * model.most_replicas for model, cpus in zip(models, asked, strict=True) if cpus is not None
    )
    sharers = sum(model.most_replicas for model, cpus in zip(models, asked, strict=True) if cpus is None)
    share = _share(cluster, cluster.cpus - taken, sharers)
    return [
        _resources(model, device, share if cpus is None else cpus)
        for model, device, cpus in zip(models, devices, asked, strict=True)
    ]


def refuse_too_much(service: ServiceConfig, cluster: Cluster) -> None:
    """Raises ConfigError where the replicas that must run need more than there is: they would wait for ever."""
    resources = share_out(service.models, cluster, service.router.reserved_cpus)
    counts = [model.fewest_replicas for model in service.models]
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


def running_cluster() -> Cluster:
    """What the running cluster has; this machine's CPUs where none runs, as for `serve build`."""
    if not ray.is_initialized():
        cpus = float(os.cpu_count() or 1)
        return Cluster(cpus, cpus, 0.0)
    nodes = [
        node["Resources"]
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]
    cpus_of = [float(node.get("CPU", 0.0)) for node in nodes]
    return Cluster(sum(cpus_of), max(cpus_of, default=1.0), sum(float(node.get("GPU", 0.0)) for node in nodes))


def _device(model: ModelConfig, cluster: Cluster) -> Literal["cpu", "cuda"]:
    if model.device != "auto":
        return model.device
    return "cuda" if cluster.gpus and model.num_gpus != 0 else "cpu"


def _share(cluster: Cluster, left: float, sharers: int) -> float:
    each = min(left / sharers, cluster.largest_node_cpus) if sharers else 0.0
    # Ray counts CPUs to four digits; two leave room for the sum of many shares.
    return float(math.floor(each)) if each >= 1 else max(0.01, math.floor(each * 100) / 100)


def _resources(model: ModelConfig, device: Literal["cpu", "cuda"], cpus: float) -> Resources:
    gpus = model.num_gpus if model.num_gpus is not None else float(device == "cuda")
    return Resources(device, cpus, gpus, max(1, int(cpus)))
