"""What one GPU does with models from bge-base to 8B, as one run of ten minutes without Ray and without files.

    python -m benchmarks.gpu.run --out DIR [--shapes bge-base ...] [--seconds 1]
    python -m benchmarks.gpu.run --out DIR --device cpu --tiny     # that it runs at all

Through Engine.pool, as a replica does. For steps of 4k to 64k tokens, of inputs of
512 tokens and of short ones: tokens per second, and the share of the bf16 matmul
rate measured just before and after. Then the time of one query of 32 tokens, alone
on the device. DIR gets gpu.json and gpu.md; both are written anew after each model,
so that a run which is cut short leaves what it has.
"""

import argparse
import asyncio
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: make the packages beside this directory importable
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
import transformers
from transformers import AutoConfig

from benchmarks.flops import ModelFlops
from benchmarks.gpu.random_model import random_model
from benchmarks.gpu.shapes import SHAPES, tiny
from benchmarks.peak import Peak
from benchmarks.tables import shown, table
from benchmarks.texts import short_lengths
from pooling import Engine, ModelSpec, PackedBatch

_STEPS = (4_096, 8_192, 16_384, 32_768, 65_536)
_TINY_STEPS = (512, 1_024)
_LONG, _QUERY = 512, 32
# Steps under way, as in the engine: one on the device, the next behind it. More would be joined in one step.
_AHEAD = 2
_DIFFERENT = 3


@dataclass(frozen=True)
class Throughput:
    """inputs: `512 tokens` or `short`. share: of the matmul rate."""

    step_tokens: int
    inputs: str
    tokens_per_s: float
    share: float


@dataclass
class Result:
    """One model: how it ran, its throughput, and the milliseconds of one query.

    peak: operations per second of the matmul beside it. failure: why it has no more.
    """

    shape: str
    path: str = ""
    load_s: float = 0.0
    peak: float = 0.0
    throughput: list[Throughput] = field(default_factory=list)
    p50_ms: float | None = None
    p99_ms: float | None = None
    memory_gib: float | None = None
    failure: str | None = None

    def best(self, inputs: str) -> Throughput | None:
        runs = [run for run in self.throughput if run.inputs == inputs]
        return max(runs, key=lambda run: run.tokens_per_s, default=None)


class Subject:
    """One model on the device, and what is asked of it."""

    def __init__(self, engine: Engine, flops: ModelFlops, peak: Peak, result: Result) -> None:
        self._engine, self._flops, self._peak, self._result = engine, flops, peak, result
        self._draw = np.random.default_rng(0)

    async def measure(self, steps: Sequence[int], seconds: float, queries: int) -> None:
        for step in steps:
            for inputs in (f"{_LONG} tokens", "short"):
                batches = [self._batch(self._lengths(inputs, step, seed)) for seed in range(_DIFFERENT)]
                await self._throughput(step, inputs, batches, seconds)
        await self._singles(queries)

    async def _throughput(self, step: int, inputs: str, batches: list[PackedBatch], seconds: float) -> None:
        for batch in batches:  # what is compiled or allocated on first use
            await self._engine.pool(batch)
        self._peak.measure()
        place, done, start = cycle(batches), [], time.perf_counter()

        async def one() -> None:
            while time.perf_counter() - start < seconds:
                batch = next(place)
                await self._engine.pool(batch)
                done.append(batch)

        await asyncio.gather(*(one() for _ in range(_AHEAD)))
        elapsed = time.perf_counter() - start
        self._peak.measure()
        rate = statistics.mean(self._peak.rates[self._peak.best_size][-2:])
        share = sum(self._flops.of(batch.lengths) for batch in done) / elapsed / rate
        tokens = sum(batch.tokens for batch in done)
        self._result.throughput.append(Throughput(step, inputs, tokens / elapsed, share))

    async def _singles(self, queries: int) -> None:
        """One query after another, each alone and each another one."""
        times = []
        for _ in range(queries + queries // 10 + 1):
            batch = self._batch(np.array([_QUERY], np.int32))
            start = time.perf_counter()
            await self._engine.pool(batch)
            times.append((time.perf_counter() - start) * 1e3)
        warm = times[-queries:]
        self._result.p50_ms, self._result.p99_ms = map(float, np.percentile(warm, [50, 99]))

    @staticmethod
    def _lengths(inputs: str, step: int, seed: int) -> np.ndarray:
        return short_lengths(step, seed) if inputs == "short" else np.full(max(1, step // _LONG), _LONG, np.int32)

    def _batch(self, lengths: np.ndarray) -> PackedBatch:
        """Random ids, none of which is a special token."""
        ids = self._draw.integers(10, self._engine.card.vocab_size, int(lengths.sum())).astype(np.int32)
        return PackedBatch(ids, lengths.astype(np.int32), task=self._engine.card.tasks[0])


def measure(name: str, args: argparse.Namespace, peak: Peak) -> Result:
    """Builds one model, measures it and forgets it. A failure is a part of the result: the next model goes on."""
    result = Result(name)
    for rates in peak.rates.values():
        rates.clear()
    peak.measure()
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        with tempfile.TemporaryDirectory() as directory:
            _measure(result, tiny(SHAPES[name]) if args.tiny else SHAPES[name], args, peak, Path(directory) / "model")
    except Exception as error:
        result.failure = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    gc.collect()
    if args.device == "cuda":
        result.memory_gib = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.empty_cache()
    result.peak = statistics.median(peak.rates[peak.best_size])
    return result


def _measure(result: Result, config: Mapping[str, Any], args: argparse.Namespace, peak: Peak, directory: Path) -> None:
    steps, start = args.steps or (_TINY_STEPS if args.tiny else _STEPS), time.perf_counter()
    with random_model(config, directory) as source:
        how = {"device": args.device, "dtype": args.dtype, "enforce_eager": args.enforce_eager}
        how["quantization"] = args.quantization
        spec = ModelSpec(source=source, max_batch_tokens=max(steps), **how)
        engine = Engine.load(spec)
    try:
        result.load_s = time.perf_counter() - start
        result.path = _facts(engine)
        flops = ModelFlops.count(AutoConfig.from_pretrained(directory))
        asyncio.run(Subject(engine, flops, peak, result).measure(steps, args.seconds, args.queries))
    finally:
        engine.close()


def _facts(engine: Engine) -> str:
    described = engine._runner.describe()
    graphs = described["cuda_graphs"]
    facts = [described[name] for name in ("path", "dtype", "device", "quantization") if described[name]]
    facts += [f"graphs {graphs}"] if graphs else []
    return ", ".join(facts)


def markdown(results: Sequence[Result], about: str) -> str:
    """The best step of each model, and below it every step."""
    head = [
        "model",
        "512 tokens: tokens/s",
        "of the matmul rate",
        "short: tokens/s",
        "of the matmul rate",
        "in steps of",
    ]
    best = table([*head, "one query: p50", "p99"], (_best(result) for result in results))
    every = table(["model", "step", "inputs", "tokens/s", "of the matmul rate"], _every(results))
    failures = "".join(f"\n{result.shape}: {result.failure}\n" for result in results if result.failure)
    return f"{about}\n\n{best}\n{failures}\n{every}\n"


def _best(result: Result) -> list[str]:
    long, short = result.best(f"{_LONG} tokens"), result.best("short")
    cells = [cell for run in (long, short) for cell in (_rate(run), f"{run.share:.1%}" if run else "")]
    steps = " and ".join(f"{run.step_tokens:,}" for run in (long, short) if run)
    times = [f"{shown(time)} ms" if time is not None else "" for time in (result.p50_ms, result.p99_ms)]
    return [result.shape, *cells, steps, *times]


def _rate(run: Throughput | None) -> str:
    return f"{run.tokens_per_s:,.0f}" if run else ""


def _every(results: Sequence[Result]) -> list[list[str]]:
    return [
        [result.shape, f"{run.step_tokens:,}", run.inputs, _rate(run), f"{run.share:.1%}"]
        for result in results
        for run in result.throughput
    ]


def about(args: argparse.Namespace, peak: Peak, results: Sequence[Result]) -> str:
    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    rate = statistics.median(result.peak for result in results) / 1e12
    return (
        f"{device}, {args.dtype}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {sys.version.split()[0]}; nn.Linear reaches {shown(rate)} TFLOP/s at tokens x in x out = "
        f"{peak.best_size}."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    args = _arguments(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    peak = Peak(getattr(torch, args.dtype), device, [(256, 256, 256)] if args.tiny else None)
    results = []
    for name in args.shapes:
        results.append(measure(name, args, peak))
        print(f"{name}: {results[-1]}", file=sys.stderr, flush=True)
        machine = about(args, peak, results)
        text = markdown(results, machine)
        (args.out / "gpu.md").write_text(text, encoding="utf-8")
        content = {"about": machine, "results": [asdict(result) for result in results]}
        (args.out / "gpu.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    print(text)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for gpu.json and gpu.md")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--tiny", action="store_true", help="models small enough for a test on a CPU")
    parser.add_argument("--steps", nargs="+", type=int, help="tokens of a step; default: 4k to 64k")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement of throughput")
    parser.add_argument("--enforce-eager", action="store_true", help="without CUDA graphs, to see what they bring")
    parser.add_argument("--quantization", choices=["fp8", "int8"], help="8-bit linear layers; how close is told")
    parser.add_argument("--queries", type=int, default=300)
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device; give --device cpu --tiny to see that the run works")
    return args


if __name__ == "__main__":
    main()
