"""What each engine replica reserves of the cluster. Pure: settings and totals in, numbers out."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from deployments.config import ModelConfig


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
