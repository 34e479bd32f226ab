"""A CLIP of ViT-B/32's shape: images a second beside other libraries, and texts that wait beside images over HTTP.

    python -m benchmarks.images [--libraries raypool sentence-transformers infinity] [--rounds 5] [--no-server]

Random weights. Pictures of 224 x 224 are read from PNG files in every library's own
process; the libraries take turns as in offline.py. Then the service: one client
sends one short text after another, alone and beside a client that sends eight
pictures a request.
"""

import argparse
import asyncio
import base64
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: make the packages beside this directory importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import aiohttp
import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks import machine
from benchmarks.http_client import Client
from benchmarks.load import OtherLoad
from benchmarks.offline import Entrant, end_workers_when_ended
from benchmarks.peers import HOME, PEERS
from benchmarks.servers import SERVERS
from benchmarks.shapes import MINILM, MODELS
from benchmarks.tables import shown, table
from benchmarks.texts import texts_of
from benchmarks.tokens import write_tokenizer
from benchmarks.workers import Worker, WorkerFailed
from pooling.loading.source import locate

_VOCABULARY = 30_522  # of MiniLM's tokenizer, whose pieces it has
_SIZE, _COUNT, _A_REQUEST = 224, 64, 8
_SPECIAL = {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>", "pad": "<|endoftext|>"}
_LIBRARIES = ("raypool", "sentence-transformers", "infinity")


def directory(models: Path = MODELS, config: CLIPConfig | None = None) -> Path:
    """Where the model's files are; they are written on first use. config: None has the shape of ViT-B/32."""
    place = models / "clip-vit-b32"
    if not place.exists():
        part = place.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        config = config or CLIPConfig()
        config.text_config.bos_token_id, config.text_config.eos_token_id = 0, 1
        config.text_config.vocab_size = _VOCABULARY
        with torch.random.fork_rng():
            torch.manual_seed(0)
            CLIPModel(config).save_pretrained(part)
        template = ("<|startoftext|> $A <|endoftext|>", "<|startoftext|> $A <|endoftext|> $B <|endoftext|>")
        write_tokenizer(locate(MINILM), part, _SPECIAL, template, False, config.text_config.max_position_embeddings)
        CLIPImageProcessorPil().save_pretrained(part)
        part.rename(place)
    return place


def pictures(place: Path = HOME / "pictures") -> list[Path]:
    """Each another one; written on first use."""
    place.mkdir(parents=True, exist_ok=True)
    files = [place / f"{number}.png" for number in range(_COUNT)]
    for number, file in enumerate(files):
        if not file.exists():
            coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(coarse).resize((_SIZE, _SIZE), Image.Resampling.BICUBIC).save(file)
    return files


def compare(libraries: Sequence[str], model: Path, files: Sequence[Path], args: argparse.Namespace) -> None:
    """Prints what each library reached, and how far ours is from it."""
    log = HOME / "images"
    log.mkdir(parents=True, exist_ok=True)
    sets = log / "sets.json"
    names = [str(file) for file in files]
    sets.write_text(json.dumps({"warm": names[:_A_REQUEST], "all": names}), encoding="utf-8")
    workers: dict[str, Worker] = {}
    rates: dict[str, list[float]] = {}
    samples: dict[str, list[list[float]]] = {}
    others = OtherLoad()
    try:
        for name in libraries:
            worker = Entrant(name, args.dtype).start(args.threads, log / f"{name}.log")
            workers[name] = worker
            try:
                about = {"library": name, "model": str(model), "task": "images", "dtype": args.dtype}
                worker.ask("load", **about, threads=args.threads, sets=str(sets))
                worker.ask("run", set="warm")
            except WorkerFailed as failure:
                print(f"{name} is left out: {failure}", file=sys.stderr, flush=True)
                workers.pop(name).end()
        if "raypool" not in workers:
            return
        for number in range(args.rounds):
            order = list(workers)
            for name in order[number % len(order) :] + order[: number % len(order)]:
                answer = workers[name].ask("run", set="all")
                rates.setdefault(name, []).append(len(files) / answer["seconds"])
                samples[name] = answer["sample"]
    finally:
        used = sum(worker.cpu_s() for worker in workers.values())
        for worker in workers.values():
            worker.end()
    rows = []
    for name, found in rates.items():
        ratios = [ours / theirs for ours, theirs in zip(rates["raypool"], found, strict=True)]
        spread = f"{min(found):.1f} to {max(found):.1f}"
        ratio = "" if name == "raypool" else f"{statistics.median(ratios):.2f}x"
        rows.append([name, f"{statistics.median(found):.1f}", spread, ratio, f"{_cosine(samples, name):.5f}"])
    print(table(["library", "images/s, median", "spread", "ours over it", "least cosine with ours"], rows))
    print(f"\nOther processes used {others.cores(used):.2f} cores meanwhile.\n", flush=True)


def _cosine(samples: dict[str, list[list[float]]], name: str) -> float:
    a, b = (np.array(samples[one]) for one in ("raypool", name))
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b))
    return float((a * b).sum(1).min())


async def beside(url: str, name: str, files: Sequence[Path], seconds: float) -> None:
    """Prints how long one text takes alone and beside pictures."""
    uris = [f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}" for file in files]
    bodies = [
        {"model": name, "images": uris[start : start + _A_REQUEST], "embedding_types": ["base64"]}
        for start in range(0, len(uris), _A_REQUEST)
    ]
    texts = [[text] for text in texts_of(12, 64)]
    async with Client(url, name) as client, aiohttp.ClientSession() as session:
        await client.load(texts, 1, seconds / 4)
        alone = await client.load(texts, 1, seconds)
        over, answered = asyncio.Event(), 0

        async def send() -> None:
            nonlocal answered
            while not over.is_set():
                async with session.post(f"{url}/v2/embed", json=bodies[answered % len(bodies)]) as response:
                    response.raise_for_status()
                    await response.read()
                answered += 1

        start = time.perf_counter()
        sending = asyncio.create_task(send())
        await asyncio.sleep(1)
        together = await client.load(texts, 1, 2 * seconds)
        over.set()
        await sending
        rate = answered * _A_REQUEST / (time.perf_counter() - start)
    rows = [
        [what, *(f"{shown(seen.quantile_ms(share))} ms" for share in (0.5, 0.99))]
        for what, seen in (("alone", alone), (f"beside {rate:.1f} images/s", together))
    ]
    print(table(["one text of 12 words", "p50", "p99"], rows))
    print(f"\np50 beside images: {together.quantile_ms(0.5) / alone.quantile_ms(0.5):.2f}x that alone")


def serve(model: Path, files: Sequence[Path], args: argparse.Namespace) -> None:
    server = SERVERS["raypool"]

    async def answers(url: str) -> bool:
        async with Client(url, server.model_name) as client:
            return await client.answers()

    with server.running(model, args.dtype, args.threads, lambda url: asyncio.run(answers(url))) as url:
        asyncio.run(beside(url, server.model_name, files, args.seconds))


def main() -> None:
    end_workers_when_ended()
    args = _arguments()
    torch.set_num_threads(args.threads)
    model, files = directory(), pictures()
    print(f"{machine.cpu()}, {args.threads} threads, {args.dtype}, commit {machine.commit()}, {machine.today()}\n")
    compare(args.libraries, model, files, args)
    if args.server:
        serve(model, files, args)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    built: list[Any] = [name for name in _LIBRARIES if name not in PEERS or PEERS[name].is_built]
    parser.add_argument("--libraries", nargs="+", choices=built, default=built, help="default: all that are built")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of texts alone; twice as long beside images")
    parser.add_argument("--server", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default=machine.machine_dtype())
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of every library")
    args = parser.parse_args()
    if "raypool" not in args.libraries:
        parser.error("--libraries needs raypool, with which the others are compared")
    return args


if __name__ == "__main__":
    main()
