"""run_job(): a column of Parquet files -> vectors in Parquet files, over Ray Data."""

import math
import time
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as arrow_compute
import pyarrow.dataset as arrow_dataset
import ray
from pydantic import Field
from ray.data import ActorPoolStrategy, read_parquet
from ray.exceptions import RayError

from cluster.dataset import Embedder, refuse_columns, row_request
from cluster.failure import last_line, refusal
from cluster.files import find_parquet, locate, make_empty_directory, refuse_no_text
from cluster.node import ray_node, starts_own_node
from cluster.sink import OrderedParquet
from pooling.config import ModelSpec, Settings
from pooling.errors import ConfigError, EngineFailure
from pooling.intake import Intake
from pooling.loading.preflight import refuse_bad_source

_EMBEDDER_SETTINGS = {
    "column",
    "output_column",
    "error_column",
    "dimensions",
    "normalize",
    "prompt_name",
    "truncate",
}


class EmbedJob(Settings):
    """One offline job: what to read, how to embed it, where to write.

    num_cpus and num_gpus are for each engine; None shares out what the cluster has.
    """

    input: str
    output: str
    spec: ModelSpec
    column: str = "text"
    output_column: str = "embedding"
    error_column: str = "error"
    dimensions: int | None = Field(None, gt=0)
    normalize: bool | None = None
    prompt_name: str | None = None
    truncate: bool = False
    batch_size: int = Field(2048, gt=0, description="rows handed to an engine at once")
    concurrency: int = Field(1, gt=0, description="engines that work at once")
    num_cpus: float | None = Field(None, gt=0)
    num_gpus: float | None = Field(None, ge=0)


@dataclass(frozen=True, slots=True)
class JobReport:
    """What a job did: rows written, how many of them have no vector, and how long it took."""

    rows: int
    errors: int
    seconds: float
    output: str

    def __str__(self) -> str:
        bad = f", {self.errors} without a vector (see the error column)" if self.errors else ""
        return f"{self.rows} rows{bad} in {self.seconds:.1f} s, {self.rows / self.seconds:.0f} rows/s: {self.output}"


def run_job(job: EmbedJob) -> JobReport:
    """Runs a job on the cluster that RAY_ADDRESS names, or on this machine; rows keep their order.

    Raises ConfigError for files, columns or settings that cannot be right,
    StartupError if the model cannot run, EngineFailure if the job broke off.
    """
    files = find_parquet(job.input)
    refuse_columns(refuse_no_text(files[0], job.column), job.column, job.output_column, job.error_column)
    refuse_bad_source(job.spec.source)
    row_request(Intake.load(job.spec), job.dimensions, job.normalize, job.prompt_name, job.truncate)
    output = make_empty_directory(job.output)
    with ray_node():
        start = time.monotonic()
        try:
            _run(job, files, output)
        except RayError as error:
            report = str(error)
            raise refusal(report) or EngineFailure(f"the job broke off: {last_line(report)}") from None
        seconds = time.monotonic() - start
    rows, bad = _count(job, output)
    return JobReport(rows, bad, seconds, output)


def _run(job: EmbedJob, files: list[str], output: str) -> None:
    dataset = read_parquet(files, file_extensions=None)
    dataset.context.execution_options.preserve_order = True
    cpus, gpus, threads = _share(job)
    dataset.map_batches(
        Embedder,
        fn_constructor_args=(job.spec,),
        fn_constructor_kwargs={**job.model_dump(include=_EMBEDDER_SETTINGS), "threads": threads},
        batch_format="pyarrow",
        batch_size=job.batch_size,
        # Two batches in each engine: one is tokenised while the other is in the forward pass.
        compute=ActorPoolStrategy(
            size=job.concurrency, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True
        ),
        num_cpus=cpus,
        num_gpus=gpus,
        udf_modifying_row_count=False,
    ).write_datasink(OrderedParquet(output))


def _share(job: EmbedJob) -> tuple[float, float, int | None]:
    """CPUs, GPUs and threads of each engine.

    Ray Data lists, reads and writes files on one CPU at least. That waits more
    than it computes, so engines leave it one CPU in Ray's books, not in threads.
    Raises ConfigError where this machine could never give so many: the job would wait for ever.
    """
    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's is untyped
    all_cpus, all_gpus = has.get("CPU", 1.0), has.get("GPU", 0.0)
    gpus = job.num_gpus
    if gpus is None:
        gpus = 1.0 if all_gpus and job.spec.device != "cpu" else 0.0
    if job.num_cpus is not None:
        cpus, threads = job.num_cpus, None
    else:
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's is untyped
        largest = max(node["Resources"].get("CPU", 0.0) for node in nodes if node["Alive"])
        cpus = _floor(min(largest, (all_cpus - 1) / job.concurrency, 1.0 if gpus else all_cpus))
        threads = int(all_cpus // job.concurrency) or 1
    for name, each, most in (("CPU", cpus, all_cpus - 1), ("GPU", gpus, all_gpus)):
        if starts_own_node() and each * job.concurrency > most:
            raise ConfigError(
                f"{job.concurrency} engines of {each:g} {name}s need {each * job.concurrency:g}, but this machine has "
                f"{most:g} to give; lower --concurrency or --num-{name.lower()}s"
            )
    return cpus, gpus, threads


def _floor(number: float) -> float:
    """To hundredths: Ray counts no finer than ten thousandths."""
    return math.floor(100 * number) / 100


def _count(job: EmbedJob, output: str) -> tuple[int, int]:
    """Rows written, and how many of them have an error."""
    files, place = locate(output)
    written = arrow_dataset.dataset(place, filesystem=files, format="parquet")
    rows = written.count_rows()
    if rows == 0:  # then there is no file, and no column to look at
        return 0, 0
    return rows, written.count_rows(filter=arrow_compute.field(job.error_column).is_valid())
