"""job_share(): what each rank of each engine of a job reserves; refuses what no node could ever give; pure."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cluster.job import PoolingJob
from pooling.config import ModelSpec
from pooling.errors import ConfigError

_ROUNDING = 1e-6  # of a share that is divided by the ranks and added up again

Node = Mapping[str, float]


class JobShare(NamedTuple):
    """CPUs and GPUs of each rank, CPU threads of a whole engine, and the model as the engines are to run it."""

    cpus: float
    gpus: float
    threads: int
    spec: ModelSpec


def job_share(job: PoolingJob, nodes: Sequence[Node], *, own_node: bool, may_grow: bool = False) -> JobShare:
    """nodes: what each has, in Ray's names. own_node: Ray runs for this job alone, on this machine.

    Reading, writing and Ray Data itself are left one CPU in Ray's books, not in threads.
    Raises ConfigError for what could never be given: the job would wait for ever.
    """
    ranks = job.spec.tensor_parallel_size
    devices = job.concurrency * ranks
    all_cpus = sum(node.get("CPU", 0.0) for node in nodes) or 1.0
    all_gpus = sum(node.get("GPU", 0.0) for node in nodes)
    gpus = job.num_gpus / ranks if job.num_gpus is not None else float(bool(all_gpus) and job.spec.device != "cpu")
    if job.num_cpus is not None:
        cpus = job.num_cpus / ranks
        threads = math.ceil(cpus)
    else:
        largest = _most("CPU", _with_gpus(nodes, gpus * ranks) or nodes)
        cpus = _floor(min(largest / ranks, (all_cpus - 1) / devices, 1.0 if gpus else all_cpus))
        threads = int(all_cpus // devices) or 1
    if own_node:
        _refuse_too_many(job, {"CPU": cpus * ranks, "GPU": gpus * ranks}, {"CPU": all_cpus - 1, "GPU": all_gpus})
    if not may_grow:
        _refuse_scattered(ranks, cpus * ranks, gpus * ranks, nodes)
    return JobShare(cpus, gpus, threads * ranks, _spec(job.spec, gpus))


def _refuse_too_many(job: PoolingJob, engine: Mapping[str, float], most: Mapping[str, float]) -> None:
    for name, each in engine.items():
        if each * job.concurrency > most[name] + _ROUNDING:
            raise ConfigError(
                f"{job.concurrency} engines of {each:g} {name}s need {each * job.concurrency:g}, but this machine has "
                f"{most[name]:g} to give; lower --concurrency or --num-{name.lower()}s"
            )


def _refuse_scattered(ranks: int, cpus: float, gpus: float, nodes: Sequence[Node]) -> None:
    """An engine is on one node, all its ranks too."""
    fitting = _with_gpus(nodes, gpus)
    most_gpus, most_cpus = _most("GPU", nodes), _most("CPU", fitting)
    of, lower = (f" of {ranks} ranks", " or --tensor-parallel-size") if ranks > 1 else ("", "")
    if not fitting:
        raise ConfigError(
            f"an engine{of} needs {gpus:g} GPUs on one node, but the most that a node has is {most_gpus:g}; "
            f"lower --num-gpus{lower}"
        )
    if cpus > most_cpus + _ROUNDING:
        beside = f" with {gpus:g} GPUs" if gpus else ""
        raise ConfigError(
            f"an engine{of} needs {cpus:g} CPUs on one node, but the most that a node{beside} has is {most_cpus:g}; "
            f"lower --num-cpus{lower}"
        )


def _spec(spec: ModelSpec, gpus: float) -> ModelSpec:
    """An engine that has no GPU in Ray's books still sees those of its node."""
    return spec.model_copy(update={"device": "cpu"}) if spec.device == "auto" and not gpus else spec


def _with_gpus(nodes: Sequence[Node], gpus: float) -> list[Node]:
    return [node for node in nodes if node.get("GPU", 0.0) + _ROUNDING >= gpus]


def _most(name: str, nodes: Sequence[Node]) -> float:
    return max((node.get(name, 0.0) for node in nodes), default=0.0)


def _floor(number: float) -> float:
    """To hundredths: Ray counts no finer than ten thousandths."""
    return math.floor(100 * number) / 100
