"""run_pipeline(): read -> pool -> write on Ray Data, with as many engines as were asked for."""

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy
from tqdm import tqdm

from cluster.actor_groups import ActorGroups, alone_with_actors
from cluster.job import PoolingJob
from cluster.job_input import JobInput
from cluster.node import starts_own_node
from cluster.stages import PoolParts, ReadParts, WriteParts
from pooling.errors import ConfigError

# Reading and writing wait more than they compute. A whole CPU in Ray's books for each would be one that engines
# cannot have, and a reader that waits for the engines would keep the writers from theirs.
_TASK_CPUS = 0.01


def run_pipeline(
    job: PoolingJob, job_input: JobInput, files: list[dict[str, Any]], done_rows: int, output: str
) -> None:
    """Does what is left of the files; shows the rows on a terminal."""
    groups: ActorGroups | None = None
    cpus, gpus, threads = _share(job)
    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus}
    if job.spec.tensor_parallel_size > 1:
        groups = ActorGroups(job.spec.tensor_parallel_size, cpus, gpus)
        options["ray_remote_args_fn"] = groups.options
    try:
        with (
            _quiet(),
            tqdm(total=job_input.total, initial=done_rows, unit=" rows", disable=None, dynamic_ncols=True) as bar,
        ):
            for written in _pipeline(job, job_input, files, output, threads, options).iter_rows():
                bar.update(written["rows"])
    finally:
        if groups is not None:
            groups.remove()


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data tells its log file how it goes; the terminal has the bar, and the reason if the job breaks off."""
    console = [
        handler for handler in logging.getLogger("ray.data").handlers if isinstance(handler, logging.StreamHandler)
    ]
    levels = [handler.level for handler in console]
    with warnings.catch_warnings():
        # Of a job with fewer files or parts than tasks that may run.
        warnings.filterwarnings("ignore", r"The (min|max)imum number of concurrent", UserWarning)
        # Until Ray 2.64; the only way that 2.60 has to give each actor a placement group of its own.
        warnings.filterwarnings("ignore", "`ray_remote_args_fn` is deprecated")
        try:
            for handler in console:
                handler.setLevel(logging.CRITICAL)
            yield
        finally:
            for handler, level in zip(console, levels, strict=True):
                handler.setLevel(level)


def _pipeline(
    job: PoolingJob,
    job_input: JobInput,
    files: list[dict[str, Any]],
    output: str,
    threads: int | None,
    options: dict[str, Any],
) -> Dataset:
    at_once = TaskPoolStrategy(size=max(2, job.concurrency))
    dataset = ray.data.from_items(files, override_num_blocks=len(files))
    context = dataset.context
    context.enable_progress_bars = False  # those count blocks
    context.target_max_block_size = 1  # every part is handed on when it is there
    alone_with_actors(context)
    return (
        dataset.map_batches(
            ReadParts(job_input.format, job_input.schema, job.texts, job.batch_size),
            batch_size=1,
            batch_format="pyarrow",
            compute=at_once,
            num_cpus=_TASK_CPUS,
        )
        .map_batches(
            PoolParts,
            fn_constructor_args=(job.task,),
            fn_constructor_kwargs={**job.pooler_options(), "threads": threads},
            batch_size=1,
            batch_format="pyarrow",
            # Two parts in each engine: one is tokenised while the other is in the forward pass.
            compute=ActorPoolStrategy(
                size=job.concurrency, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True
            ),
            udf_modifying_row_count=False,
            **options,
        )
        .map_batches(
            WriteParts(output, job.output_format, job.error_column),
            batch_size=1,
            batch_format="pyarrow",
            compute=at_once,
            num_cpus=_TASK_CPUS,
        )
    )


def _share(job: PoolingJob) -> tuple[float, float, int | None]:
    """CPUs, GPUs and threads of each device of each engine.

    Reading, writing and Ray Data itself are left one CPU in Ray's books, not in threads.
    Raises ConfigError where this machine could never give so many: the job would wait for ever.
    """
    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's is untyped
    all_cpus, all_gpus = has.get("CPU", 1.0), has.get("GPU", 0.0)
    devices = job.concurrency * job.spec.tensor_parallel_size
    gpus = job.num_gpus
    if gpus is None:
        gpus = 1.0 if all_gpus and job.spec.device != "cpu" else 0.0
    if job.num_cpus is not None:
        cpus, threads = job.num_cpus, None
    else:
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's is untyped
        largest = max(node["Resources"].get("CPU", 0.0) for node in nodes if node["Alive"])
        cpus = _floor(min(largest, (all_cpus - 1) / devices, 1.0 if gpus else all_cpus))
        threads = int(all_cpus // devices) or 1
    for name, each, most in (("CPU", cpus, all_cpus - 1), ("GPU", gpus, all_gpus)):
        if starts_own_node() and each * devices > most:
            raise ConfigError(
                f"{devices} engines of {each:g} {name}s need {each * devices:g}, but this machine has "
                f"{most:g} to give; lower --concurrency or --num-{name.lower()}s"
            )
    return cpus, gpus, threads


def _floor(number: float) -> float:
    """To hundredths: Ray counts no finer than ten thousandths."""
    return math.floor(100 * number) / 100
