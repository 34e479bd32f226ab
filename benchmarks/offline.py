"""LLM.embed and LLM.score beside the libraries that a user would pick instead, each in a process of its own.

    python -m benchmarks.offline [--models minilm bge-base ...] [--libraries raypool vllm ...] [--rounds 5]

Every library keeps its model loaded in a process of its own Python and is asked
in turns; while one computes, the others are stopped (benchmarks/workers.py). The
order turns from round to round. The matmul peak is measured between any two runs,
and the share printed is that of the mean of the peaks before and after. A library
that does not start or fails is named in one line, and the others go on.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

if __package__ in (None, ""):  # run as a file: make the packages beside this directory importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from transformers import AutoConfig

from benchmarks import machine, texts
from benchmarks.flops import ModelFlops
from benchmarks.load import OtherLoad
from benchmarks.offline_tables import Answered, Found, Started, print_found
from benchmarks.peak import Peak
from benchmarks.peers import HOME, PEERS
from benchmarks.shapes import SHAPES, Shape
from benchmarks.workers import Worker, WorkerFailed
from pooling import Intake, ModelSpec, PoolingRequest

# The last of ours with linear layers of 8-bit numbers, where the CPU has products of them.
OURS = ("raypool", "raypool-int8") if torch.cpu._is_vnni_supported() else ("raypool",)
LIBRARIES = (*OURS, *(name for name in ("sentence-transformers", "infinity", "vllm") if name in PEERS))
# What a user of sentence-transformers gets without asking for another number format.
_ITS_DEFAULT = ("sentence-transformers", "float32")
_ROOT = Path(__file__).resolve().parent.parent
_LOGS = HOME / "offline"
_SETS: dict[str, dict[str, Callable[[int], list[Any]]]] = {
    "embed": {
        "short": texts.short_texts,
        "long": texts.long_texts,
        "mixed": texts.mixed_texts,
        "instructed": texts.instructed_texts,
    },
    "score": {"short": texts.short_groups, "long": texts.long_groups, "mixed": texts.mixed_groups},
}
_COUNTS = {
    "embed": {"short": 1_024, "long": 192, "mixed": 384, "instructed": 384},
    "score": {"short": 512, "long": 96, "mixed": 192},
}
# Of the curve of throughput over length, which has about as many tokens at each.
_LENGTHS, _TOKENS = (8, 16, 32, 64, 128, 256, 512), 16_384
_SINGLES = 20
_WARM = 32


@dataclass(frozen=True)
class Entrant:
    """One library in one number format."""

    library: str
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.library} {self.dtype}"

    def start(self, threads: int, log: Path) -> Worker:
        if self.library in OURS:
            own = {"PYTHONPATH": str(_ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
            return Worker(Path(sys.executable), {**os.environ, **own}, log)
        peer = PEERS[self.library]
        return Worker(peer.python, peer.environment(threads), log)


@dataclass(frozen=True)
class Texts:
    """What every library is asked of one model: sets by name, and the lengths in tokens of each."""

    sets: dict[str, list[Any]]
    lengths: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, shape: Shape, directory: Path, names: Sequence[str], scale: float, sweep: bool) -> "Texts":
        """scale: how many of the texts are taken. sweep: also sets of texts that are all of one length."""
        known = [name for name in names if name in _SETS[shape.task]]
        sets = {name: _SETS[shape.task][name](max(16, int(scale * _COUNTS[shape.task][name]))) for name in known}
        if sweep and shape.task == "embed":
            for length in _LENGTHS:
                sets[f"{length} tokens"] = texts.texts_of(length - 2, max(8, int(scale * _TOKENS) // length))
        intake = Intake.load(ModelSpec(source=str(directory)))
        requests = {name: PoolingRequest(_flat(inputs)) for name, inputs in sets.items()}
        return cls(sets, {name: intake.tokenize(request).lengths for name, request in requests.items()})

    def written(self, shape: Shape, file: Path) -> Path:
        """With a few of each kind to warm up, and one text to ask alone."""
        short = texts.texts_of(12, 1)[0]
        one = (short, [short]) if shape.task == "score" else short
        warm = [item for inputs in self.sets.values() for item in inputs[: _WARM if shape.task == "embed" else 2]]
        file.write_text(json.dumps(self.sets | {"warm": warm, "one": one}), encoding="utf-8")
        return file


def entrants(libraries: Sequence[str], dtype: str) -> list[Entrant]:
    """Each library in the machine's number format; of sentence-transformers its default too."""
    chosen = [Entrant(name, dtype) for name in libraries]
    if _ITS_DEFAULT[0] in libraries and dtype != _ITS_DEFAULT[1]:
        chosen.append(Entrant(*_ITS_DEFAULT))
    return chosen


class Comparison:
    """All libraries on one model."""

    def __init__(self, shape: Shape, args: argparse.Namespace, peak: Peak, directory: Path) -> None:
        self._shape, self._args, self._peak, self._directory = shape, args, peak, directory
        self._model = shape.directory()
        self._texts = Texts.of(shape, self._model, args.sets, args.scale * shape.scale, args.sweep)
        self._file = self._texts.written(shape, directory / f"{shape.name}.json")
        self._one = json.loads(self._file.read_text(encoding="utf-8"))["one"]
        self._workers: dict[Entrant, Worker] = {}
        self.found = Found(shape.name, shape.like, shape.task)

    def run(self) -> Found:
        flops = ModelFlops.count(AutoConfig.from_pretrained(self._model))
        for name, lengths in self._texts.lengths.items():
            self.found.describe(name, len(lengths), int(lengths.sum()), flops.of(lengths))
        try:
            for entrant in entrants(self._args.libraries, self._args.dtype):
                self._start(entrant)
            self._peak.measure()
            for number in range(self._args.rounds):
                for name in self._texts.sets:
                    for entrant in self._turn(number):
                        self._run(entrant, name)
                for entrant in self._turn(number):
                    self._singles(entrant)
        finally:
            for worker in self._workers.values():
                worker.end()
        return self.found

    def _turn(self, number: int) -> list[Entrant]:
        """Those that still run, another one first in every round."""
        order = list(self._workers)
        first = number % len(order) if order else 0
        return order[first:] + order[:first]

    def _start(self, entrant: Entrant) -> None:
        """As often as asked for, each time in a new process; the last one stays. From the process to one answer."""
        load = {"library": entrant.library, "model": str(self._model), "task": self._shape.task}
        settings = {"dtype": entrant.dtype, "threads": self._args.threads, "sets": str(self._file)}
        for _ in range(self._args.starts):
            if entrant in self._workers:
                self._workers.pop(entrant).end()
            log = self._directory / f"{self._shape.name}-{entrant.name}.log".replace(" ", "-")
            worker = self._workers[entrant] = entrant.start(self._args.threads, log)
            try:
                loaded = worker.ask("load", **load, **settings)
                worker.ask("one", input=self._one, times=1)
                self.found.started.append(Started(entrant.name, worker.age_s(), loaded["seconds"]))
            except WorkerFailed as failure:
                self._drop(entrant, failure)
                return
        self._ask(entrant, "run", set="warm")

    def _run(self, entrant: Entrant, name: str) -> None:
        worker, load = self._workers[entrant], OtherLoad()
        before = worker.cpu_s()
        answer = self._ask(entrant, "run", set=name)
        if answer is None:
            return
        others = load.cores(worker.cpu_s() - before)
        peak = self._peak.rates[self._peak.best_size]
        self._peak.measure()
        beside = (peak[-2] + peak[-1]) / 2 if len(peak) > 1 else peak[-1]
        answered = Answered(entrant.name, name, answer["seconds"], beside, others)
        self.found.add(answered, answer["sample"])

    def _singles(self, entrant: Entrant) -> None:
        answer = self._ask(entrant, "one", input=self._one, times=_SINGLES)
        if answer is not None:
            self.found.singles.setdefault(entrant.name, []).append(answer["seconds"])

    def _ask(self, entrant: Entrant, do: Literal["one", "run"], **message: Any) -> dict[str, Any] | None:
        try:
            return self._workers[entrant].ask(do, **message)
        except WorkerFailed as failure:
            self._drop(entrant, failure)
            return None

    def _drop(self, entrant: Entrant, failure: WorkerFailed) -> None:
        self._workers.pop(entrant).end()
        self.found.failures[entrant.name] = str(failure)
        print(f"{self._shape.name}: {entrant.name} is left out: {failure}", file=sys.stderr, flush=True)


def compare(args: argparse.Namespace) -> Iterator[Found]:
    """What was found for each model, one after another."""
    torch.set_num_threads(args.threads)
    peak = Peak(getattr(torch, args.dtype), torch.device("cpu"))
    _LOGS.mkdir(parents=True, exist_ok=True)
    for name in args.models:
        print(f"{name}: {', '.join(e.name for e in entrants(args.libraries, args.dtype))}", file=sys.stderr, flush=True)
        yield Comparison(SHAPES[name], args, peak, _LOGS).run()


def _flat(inputs: list[Any]) -> list[Any]:
    """Texts, or the pairs of groups."""
    if inputs and isinstance(inputs[0], str):
        return inputs
    return [(query, document) for query, documents in inputs for document in documents]


def main() -> None:
    end_workers_when_ended()
    args = parser(__doc__.splitlines()[0]).parse_args()
    print(f"{machine.cpu()}, {args.threads} threads, {args.rounds} rounds, commit {machine.commit()}\n")
    every = []
    for found in compare(args):
        print_found(found)
        every.append(asdict(found))
    if args.json:
        Path(args.json).write_text(json.dumps(every, indent=1), encoding="utf-8")


def end_workers_when_ended() -> None:
    """A worker that is stopped would not notice that nobody asks it any more."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def parser(description: str) -> argparse.ArgumentParser:
    built = [name for name in LIBRARIES if name not in PEERS or PEERS[name].is_built]
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--libraries", nargs="+", choices=built, default=built, help="default: all that are built")
    parser.add_argument("--sets", nargs="+", choices=list(_SETS["embed"]), default=["short", "long", "mixed"])
    parser.add_argument("--sweep", action="store_true", help="also texts of one length each, from 8 to 512 tokens")
    parser.add_argument("--scale", type=float, default=1.0, help="take so many of the texts; 0.1 is a tenth")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=1, help="new processes of each library, for the time to start")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default=machine.machine_dtype())
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of every library")
    parser.add_argument("--json", metavar="FILE", help="write every round's figures there")
    return parser


if __name__ == "__main__":
    main()
