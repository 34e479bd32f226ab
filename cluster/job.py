"""run_job(): texts or pictures in files -> answers in files, over Ray Data; a job that was broken off goes on."""

import json
import math
import time
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, model_validator

from cluster.files import locate, make_directory
from cluster.formats import FormatName
from cluster.job_input import JobInput, look_at_input, refuse_columns
from cluster.ledger import Done, Ledger
from cluster.node import ray_node
from cluster.output_formats import OUTPUT_FORMATS, OutputFormatName
from cluster.row_task import RowTaskName, row_task
from pooling.config import ModelSpec, Settings, check_gpus
from pooling.errors import ConfigError, EngineFailure, StartupError
from pooling.intake import Intake
from pooling.loading.preflight import refuse_bad_source

# What may differ between the runs of one job: where it reads and who does the work, not what is written.
_FREE = {"input", "output", "concurrency", "num_cpus", "num_gpus"}
_FREE_OF_SPEC = {"enforce_eager", "step_timeout_s"}
_OUTPUT_COLUMNS: dict[RowTaskName, str] = {
    "embed": "embedding",
    "classify": "probs",
    "score": "score",
    "reward": "reward",
}
# Which settings a task has beside those that all have.
_OF_TASK: dict[RowTaskName, set[str]] = {
    "embed": {"column", "image_column", "dimensions", "use_activation", "prompt_name"},
    "classify": {"column", "image_column", "label_column", "use_activation"},
    "score": {"query_column", "document_column", "use_activation", "prompt_name"},
    "reward": {"column", "use_activation"},
}


class PoolingJob(Settings):
    """One offline job: what to read, what to ask of it, where to write.

    output_column None is named for the task. num_cpus and num_gpus are of each
    engine, shared by its ranks; None shares out what the cluster has.
    """

    task: RowTaskName = "embed"
    input: str
    output: str
    spec: ModelSpec
    input_format: FormatName | None = None
    output_format: OutputFormatName = "parquet"
    column: str = "text"
    image_column: str | None = Field(None, min_length=1, description="embed or classify its pictures, not texts")
    query_column: str = "query"
    document_column: str = "document"
    output_column: str | None = None
    label_column: str = "label"
    error_column: str = "error"
    dimensions: int | None = Field(None, gt=0)
    use_activation: bool | None = None
    prompt_name: str | None = None
    truncate: bool = False
    batch_size: int = Field(2048, gt=0, description="rows handed to an engine at once, and of each file written")
    concurrency: int = Field(1, gt=0, description="engines that work at once")
    num_cpus: float | None = Field(None, gt=0)
    num_gpus: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        check_gpus(self.spec, self.num_gpus)
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        if self.task == "score":
            return (self.query_column, self.document_column)
        return (self.image_column or self.column,)

    @property
    def texts(self) -> tuple[str, ...]:
        """Those of them that must be text."""
        return self.columns if self.image_column is None else ()

    @property
    def answers(self) -> tuple[str, ...]:
        """The columns that are written beside those of the input."""
        name = self.output_column or _OUTPUT_COLUMNS[self.task]
        labels = (self.label_column,) if self.task == "classify" else ()
        return (name, *labels, self.error_column)

    def asked(self) -> dict[str, Any]:
        """As row_task() takes it."""
        names = ("dimensions", "use_activation", "prompt_name", "truncate")
        return {"images": self.image_column is not None, **{name: getattr(self, name) for name in names}}

    def pooler_options(self) -> dict[str, Any]:
        """As the task's class of cluster.dataset takes them."""
        options = {name: getattr(self, name) for name in sorted(_OF_TASK[self.task])}
        if self.task == "embed":
            options["normalize"] = options.pop("use_activation")
        return {
            "model": self.spec,
            "output_column": self.answers[0],
            "error_column": self.error_column,
            "truncate": self.truncate,
            **options,
        }

    def identity(self, job_input: JobInput) -> dict[str, Any]:
        """What decides which rows are written, and what is in them."""
        settings = self.model_dump(mode="json", exclude={**dict.fromkeys(_FREE, True), "spec": _FREE_OF_SPEC})
        return {**settings, "input_format": job_input.format, "files": [list(file) for file in job_input.files]}


@dataclass(frozen=True, slots=True)
class JobReport:
    """What a job did: rows written, how many of them have no answer, how many an earlier run had written, how long."""

    rows: int
    errors: int
    seconds: float
    output: str
    earlier_rows: int = 0

    def __str__(self) -> str:
        bad = f", {self.errors} without an answer (see the error column)" if self.errors else ""
        now = self.rows - self.earlier_rows
        speed = f"{now} rows in {self.seconds:.1f} s, {now / max(self.seconds, 1e-9):.0f} rows/s"
        if self.earlier_rows:
            speed = f"done by an earlier run: {self.earlier_rows} rows; by this one: {speed if now else 'none'}"
        return f"{self.rows} rows{bad}: {self.output} ({speed})"


def run_job(job: PoolingJob) -> JobReport:
    """Runs a job on the cluster that RAY_ADDRESS names, or on this machine, or what is left of it.

    Raises ConfigError for files, columns or settings that cannot be right,
    StartupError if the model cannot run, EngineFailure if the job broke off.
    """
    job_input = look_at_input(job.input, job.input_format, job.columns, job.texts)
    refuse_columns(job_input.schema.names, job.columns, job.answers)
    _refuse_output_in_input(job)
    OUTPUT_FORMATS[job.output_format].check(job_input.schema)
    refuse_bad_source(job.spec.source)
    row_task(Intake.load(job.spec), job.task, **job.asked())
    ledger = Ledger(make_directory(job.output))
    done = ledger.open(job.identity(job_input))
    start = time.monotonic()
    if not ledger.finished:
        if files := _unfinished(job, job_input, done):
            with ray_node():
                start = time.monotonic()
                try:
                    _work(job, job_input, files, done.rows, ledger.output)
                except StartupError:
                    ledger.withdraw()
                    raise
        OUTPUT_FORMATS[job.output_format].finish(ledger)
        ledger.finish()
    seconds = time.monotonic() - start
    all_done = ledger.done()
    return JobReport(all_done.rows, all_done.errors, seconds, ledger.output, done.rows)


def _refuse_output_in_input(job: PoolingJob) -> None:
    """The next run of the job would read what this one wrote."""
    (source_files, source), (output_files, output) = locate(job.input), locate(job.output)
    if source_files.equals(output_files) and f"{output}/".startswith(f"{source.rstrip('/')}/"):
        raise ConfigError(f"output {job.output!r} is in the input {job.input!r}; give a directory outside of it")


def _unfinished(job: PoolingJob, job_input: JobInput, done: Done) -> list[dict[str, Any]]:
    """The files that have, or may have, parts which are not done."""
    files = []
    for place, (file, rows) in enumerate(zip(job_input.files, job_input.rows, strict=True)):
        parts = done.parts.get(place, set())
        if rows is None or len(parts) < math.ceil(rows / job.batch_size):
            files.append({"file": place, "name": file.name, "done": json.dumps(sorted(parts))})
    return files


def _work(job: PoolingJob, job_input: JobInput, files: list[dict[str, Any]], done_rows: int, output: str) -> None:
    from ray.exceptions import RayError

    from cluster.failure import last_line, refusal
    from cluster.pipeline import run_pipeline

    try:
        run_pipeline(job, job_input, files, done_rows, output)
    except RayError as error:
        report = str(error)
        broken = EngineFailure(f"the job broke off: {last_line(report)}; the same command goes on with it")
        raise refusal(report) or broken from None
