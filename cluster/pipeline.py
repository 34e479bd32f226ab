"""run_pipeline(): read -> pool -> write on Ray Data, with as many engines as were asked for."""

import logging
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
from cluster.job_share import JobShare, job_share
from cluster.node import starts_own_node
from cluster.stages import PoolParts, ReadParts, WriteParts

# Reading and writing wait more than they compute. A whole CPU in Ray's books for each would be one that engines
# cannot have, and a reader that waits for the engines would keep the writers from theirs.
_TASK_CPUS = 0.01


def run_pipeline(
    job: PoolingJob, job_input: JobInput, files: list[dict[str, Any]], done_rows: int, output: str
) -> None:
    """Does what is left of the files; shows the rows on a terminal."""
    groups: ActorGroups | None = None
    share = _share(job)
    options: dict[str, Any] = {"num_cpus": share.cpus, "num_gpus": share.gpus}
    if job.spec.tensor_parallel_size > 1:
        groups = ActorGroups(job.spec.tensor_parallel_size, share.cpus, share.gpus)
        options["ray_remote_args_fn"] = groups.options
    try:
        with (
            _quiet(),
            tqdm(total=job_input.total, initial=done_rows, unit=" rows", disable=None, dynamic_ncols=True) as bar,
        ):
            for written in _pipeline(job, job_input, files, output, share, options).iter_rows():
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
    share: JobShare,
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
            ReadParts(job_input.format, job_input.schema, job_input.texts, job.batch_size),
            batch_size=1,
            batch_format="pyarrow",
            compute=at_once,
            num_cpus=_TASK_CPUS,
        )
        .map_batches(
            PoolParts,
            fn_constructor_args=(job.task,),
            fn_constructor_kwargs={**job.pooler_options(), "model": share.spec, "threads": share.threads},
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


def _share(job: PoolingJob) -> JobShare:
    # Ray's own functions are untyped.
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # Ray's
    autoscaled = ray._private.state.state.get_max_resources_from_cluster_config() is not None
    return job_share(job, nodes, own_node=starts_own_node(), may_grow=autoscaled)
