"""What the engines of a job reserve of a cluster, and what is refused instead of waited for."""

from typing import Any

import pytest

from cluster.job import PoolingJob
from cluster.job_share import JobShare, Node, job_share
from pooling.config import parse_settings
from pooling.errors import ConfigError

EIGHT_GPUS = {"CPU": 64.0, "GPU": 8.0}
HEAD = {"CPU": 128.0}


def job(ranks: int = 1, device: str = "auto", **settings: Any) -> PoolingJob:
    spec = {"source": "org/model", "tensor_parallel_size": ranks, "device": device}
    return parse_settings(PoolingJob, {"input": "in", "output": "out", "spec": spec, **settings}, "job")


def share(asked: PoolingJob, *nodes: Node, own_node: bool = False, **how: bool) -> JobShare:
    return job_share(asked, nodes, own_node=own_node, **how)


def test_what_is_asked_for_is_of_a_whole_engine_and_shared_by_its_ranks() -> None:
    assert share(job(ranks=4, num_cpus=8, num_gpus=4), EIGHT_GPUS)[:3] == (2.0, 1.0, 8)
    assert share(job(num_cpus=1.5), {"CPU": 8})[:3] == (1.5, 0.0, 2)


def test_threads_are_of_a_whole_engine() -> None:
    """Rank 0 divides them by the ranks."""
    assert share(job(concurrency=2), {"CPU": 16})[:3] == (7.5, 0.0, 8)
    assert share(job(ranks=2, concurrency=2), {"CPU": 16})[:3] == (3.75, 0.0, 8)
    assert share(job(ranks=2, num_cpus=0.5), {"CPU": 2})[:3] == (0.25, 0.0, 2)


def test_ranks_that_are_on_one_node_ask_for_no_more_than_it_has() -> None:
    """However much there is on all nodes together."""
    assert share(job(ranks=4), *[{"CPU": 6}] * 4).cpus == 1.5
    assert share(job(ranks=8), {"CPU": 4, "GPU": 8}, HEAD).cpus == 0.5


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            job(ranks=4, num_cpus=12),
            "of 4 ranks needs 12 CPUs on one node, but the most that a node with 4 GPUs has is 8",
        ),
        (job(ranks=8), "of 8 ranks needs 8 GPUs on one node, but the most that a node has is 4"),
        (job(num_gpus=5), "an engine needs 5 GPUs on one node, but the most that a node has is 4; lower --num-gpus$"),
        (job(device="cpu", num_cpus=129), "needs 129 CPUs on one node, but the most that a node has is 128"),
    ],
)
def test_an_engine_that_no_node_has_room_for_is_refused(asked: PoolingJob, message: str) -> None:
    nodes = [HEAD, *[{"CPU": 8.0, "GPU": 4.0}] * 4]
    with pytest.raises(ConfigError, match=message):
        share(asked, *nodes)
    share(asked, *nodes, may_grow=True)


def test_engines_are_counted_as_engines() -> None:
    with pytest.raises(ConfigError, match="2 engines of 4 CPUs need 8, but this machine has 7 to give"):
        share(job(ranks=2, concurrency=2, num_cpus=4), {"CPU": 8}, own_node=True)
    with pytest.raises(ConfigError, match="2 engines of 2 GPUs need 4, but this machine has 3 to give"):
        share(job(ranks=2, concurrency=2), {"CPU": 8, "GPU": 3}, own_node=True)
    share(job(ranks=3, concurrency=1, num_cpus=7), {"CPU": 8}, own_node=True)


def test_engines_without_a_gpu_use_none() -> None:
    asked = job(num_gpus=0)
    assert share(asked, EIGHT_GPUS).spec.device == "cpu"
    assert asked.spec.device == "auto"  # what the ledger has
    assert share(job(), EIGHT_GPUS).spec.device == "auto"
    assert share(job(device="cuda", num_gpus=0), EIGHT_GPUS).spec.device == "cuda"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": 4, "num_gpus": 2}, "num_gpus is 2, but tensor_parallel_size is 4 and each rank has a GPU"),
        ({"device": "cpu", "num_gpus": 1}, "device is cpu, but num_gpus is 1"),
    ],
)
def test_gpus_that_cannot_be_right_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        job(**settings)
