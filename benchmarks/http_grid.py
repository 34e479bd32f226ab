"""The HTTP path beside other servers at every load: 1, 8 and 32 clients; 1, 16 and 256 texts a request.

    python -m benchmarks.http_grid [--model minilm] [--servers raypool vllm infinity] [--rounds 3]

In every round each server is started, warmed, put under each load and ended, and
the order turns. benchmarks/serve.py has what this leaves out: singles beside a
bulk, and the time to start.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: make the packages beside this directory importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import aiohttp
import torch
from transformers import AutoConfig

from benchmarks import machine
from benchmarks.flops import ModelFlops
from benchmarks.http_client import Client
from benchmarks.peak import Peak
from benchmarks.servers import SERVERS, Server
from benchmarks.shapes import SHAPES
from benchmarks.tables import ratio, shown, spread, table
from benchmarks.texts import short_texts
from pooling import Intake, ModelSpec, PoolingRequest

CLIENTS, TEXTS = (1, 8, 32), (1, 16, 256)
_OURS = "raypool"


@dataclass(frozen=True)
class Load:
    """What a server did under one load in one round. peak: operations per second of the matmul before and after."""

    server: str
    clients: int
    texts: int
    texts_per_s: float
    p50_ms: float
    p99_ms: float
    peak: float


@dataclass
class Grid:
    """flops: what the model needs for a text on average. failures: by server, or by server and load, why."""

    model: str
    flops: float
    loads: list[Load] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, data: dict[str, Any]) -> "Grid":
        """What asdict() made of one."""
        return cls(**data | {"loads": [Load(**load) for load in data["loads"]]})

    def servers(self) -> list[str]:
        return list(dict.fromkeys(load.server for load in self.loads))

    def rounds(self, server: str, clients: int, texts: int) -> list[Load]:
        return [one for one in self.loads if (one.server, one.clients, one.texts) == (server, clients, texts)]


def measure(args: argparse.Namespace) -> Grid:
    """Every server at every load, round after round. One that fails is named, and the others go on."""
    torch.set_num_threads(args.threads)
    directory = SHAPES[args.model].directory()
    texts = short_texts(4 * max(args.texts))
    batch = Intake.load(ModelSpec(source=str(directory))).tokenize(PoolingRequest(texts))
    flops = ModelFlops.count(AutoConfig.from_pretrained(directory)).of(batch.lengths) / len(texts)
    grid, peak = Grid(args.model, flops), Peak(getattr(torch, args.dtype), torch.device("cpu"))
    for number in range(args.rounds):
        first = number % len(args.servers)
        for name in args.servers[first:] + args.servers[:first]:
            print(f"round {number + 1} of {args.rounds}: {name}", file=sys.stderr, flush=True)
            try:
                _measure(SERVERS[name], directory, texts, args, peak, grid)
            except RuntimeError as error:
                grid.failures[name] = str(error).splitlines()[0]
                print(f"{name} is left out of this round: {error}", file=sys.stderr, flush=True)
    return grid


def _measure(server: Server, model: Path, texts: list[str], args: argparse.Namespace, peak: Peak, grid: Grid) -> None:
    async def answers(url: str) -> bool:
        async with Client(url, server.model_name) as client:
            return await client.answers()

    found: list[tuple[int, int, tuple[float, float, float]]] = []
    peak.measure()  # while no server runs: the threads of some compute when they are idle
    try:
        with server.running(model, args.dtype, args.threads, lambda url: asyncio.run(answers(url))) as url:
            for size, clients in product(args.texts, args.clients):
                batches = [texts[start : start + size] for start in range(0, len(texts), size)]
                try:
                    seen = asyncio.run(_load(url, server.model_name, batches, clients, args.seconds))
                except (aiohttp.ClientError, TimeoutError, RuntimeError) as error:
                    reason = (str(error) or type(error).__name__).splitlines()[0]
                    grid.failures[f"{server.name}, {clients} clients, {size} texts"] = reason
                    continue
                found.append((clients, size, seen))
    finally:
        peak.measure()
        beside = statistics.mean(peak.rates[peak.best_size][-2:])
        grid.loads += [Load(server.name, clients, size, *seen, beside) for clients, size, seen in found]


async def _load(
    url: str, name: str, batches: list[list[str]], clients: int, seconds: float
) -> tuple[float, float, float]:
    """Texts per second and the milliseconds of a request, median and 99th percentile."""
    async with Client(url, name) as client:
        await client.load(batches, min(clients, 2), seconds / 4)  # caches
        seen = await client.load(batches, clients, seconds)
    return seen.texts_per_s, seen.quantile_ms(0.5), seen.quantile_ms(0.99)


def lines(grid: Grid) -> Iterator[str]:
    """The table in Markdown, and what failed."""
    head = ["load", "server", "texts/s", "spread", "p50", "p99", "of the peak", "ours / it"]
    yield table(head, _rows(grid))
    for name, reason in grid.failures.items():
        yield f"\n{name}: {reason}"


def _rows(grid: Grid) -> Iterator[list[str]]:
    loads = list(dict.fromkeys((load.texts, load.clients) for load in grid.loads))
    for (texts, clients), server in product(loads, grid.servers()):
        rounds, ours = (grid.rounds(name, clients, texts) for name in (server, _OURS))
        if not rounds:
            continue
        rates = [one.texts_per_s for one in rounds]
        share = statistics.median(one.texts_per_s * grid.flops / one.peak for one in rounds)
        compared = ours and server != _OURS
        yield [
            f"{_many(clients, 'client')}, {_many(texts, 'text')} a request",
            server,
            shown(statistics.median(rates)),
            f"{spread(rates):.0%}",
            f"{shown(statistics.median(one.p50_ms for one in rounds))} ms",
            f"{shown(statistics.median(one.p99_ms for one in rounds))} ms",
            f"{share:.1%}",
            f"{ratio([one.texts_per_s for one in ours], rates, more_is_better=True):.2f}x" if compared else "",
        ]


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser(__doc__.splitlines()[0]).parse_args(arguments)
    start = time.perf_counter()
    grid = measure(args)
    print(f"{machine.cpu()}, {args.dtype}, {args.rounds} rounds, {time.perf_counter() - start:.0f} s\n")
    print("\n".join(lines(grid)))
    if args.json:
        Path(args.json).write_text(json.dumps(asdict(grid), indent=1), encoding="utf-8")


def parser(description: str) -> argparse.ArgumentParser:
    embedders = [name for name, shape in SHAPES.items() if shape.task == "embed"]
    built = [name for name, server in SERVERS.items() if server.peer is None or server.peer.is_built]
    same = [name for name in built if not name.endswith("-int8")]  # whose answers are
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", choices=embedders, default="minilm")
    parser.add_argument("--servers", nargs="+", choices=built, default=same, help="default: all that are built")
    parser.add_argument("--clients", nargs="+", type=int, default=list(CLIENTS))
    parser.add_argument("--texts", nargs="+", type=int, default=list(TEXTS), help="of a request")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default=machine.machine_dtype())
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="that a peer's engine uses")
    parser.add_argument("--json", metavar="FILE", help="write every round's figures there")
    return parser


if __name__ == "__main__":
    main()
