"""Found: what the libraries did with one model, and the tables that say so."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.tables import ratio, shown, spread, table

OURS = "raypool"


@dataclass(frozen=True)
class Started:
    """seconds: from the start of the process to the first answer; load_s: of it, to load the library and the model."""

    entrant: str
    seconds: float
    load_s: float


@dataclass(frozen=True)
class Answered:
    """One pass over a set. peak: operations per second of the matmul beside it; others: cores others used meanwhile."""

    entrant: str
    set: str
    seconds: float
    peak: float
    others: float | None


@dataclass(frozen=True)
class Size:
    """Of a set: inputs, tokens, and the operations that the model needs for them."""

    inputs: int
    tokens: int
    flops: float


@dataclass
class Found:
    """singles: by entrant, of each round the seconds of one text after another. failures: by entrant, why."""

    model: str
    like: str
    task: str
    sizes: dict[str, Size] = field(default_factory=dict)
    started: list[Started] = field(default_factory=list)
    answered: list[Answered] = field(default_factory=list)
    singles: dict[str, list[list[float]]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    samples: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, data: dict[str, Any]) -> "Found":
        """What asdict() made of one."""
        sizes = {name: Size(**size) for name, size in data["sizes"].items()}
        started = [Started(**one) for one in data["started"]]
        return cls(**data | {"sizes": sizes, "started": started, "answered": [Answered(**a) for a in data["answered"]]})

    def describe(self, name: str, inputs: int, tokens: int, flops: float) -> None:
        self.sizes[name] = Size(inputs, tokens, flops)

    def add(self, answered: Answered, sample: list[Any]) -> None:
        self.answered.append(answered)
        self.samples.setdefault(answered.set, {})[answered.entrant] = sample

    def entrants(self) -> list[str]:
        return list(dict.fromkeys(one.entrant for one in self.answered))

    def seconds(self, entrant: str, name: str) -> list[float]:
        return [one.seconds for one in self.answered if (one.entrant, one.set) == (entrant, name)]

    def share(self, entrant: str, name: str) -> float:
        """Of the matmul peak beside each run, the median."""
        runs = [one for one in self.answered if (one.entrant, one.set) == (entrant, name)]
        return statistics.median(self.sizes[name].flops / one.seconds / one.peak for one in runs)

    def others(self) -> float:
        """Cores that other processes used, at the most."""
        return max((one.others for one in self.answered if one.others is not None), default=math.nan)


def print_found(found: Found) -> None:
    print("\n".join(lines(found)), flush=True)


def lines(found: Found) -> Iterator[str]:
    """The tables of one model in Markdown."""
    yield f"### {found.model}: {found.like}\n"
    yield throughput(found)
    yield ""
    yield waiting(found)
    for entrant, reason in found.failures.items():
        yield f"\n{entrant} is left out: {reason}"
    yield f"\nOther processes used at most {found.others():.2f} cores during a run.\n"


def throughput(found: Found) -> str:
    """ours / it: how many times as many texts a second ours answers."""
    head = ["set", "library", "texts/s", "spread", "tokens/s", "of the peak", "ours / it", "answers as ours"]
    return table(head, _throughput(found))


def _throughput(found: Found) -> Iterator[list[str]]:
    for name, size in found.sizes.items():
        ours = next((e for e in found.entrants() if e.startswith(OURS) and found.seconds(e, name)), None)
        for entrant in found.entrants():
            seconds = found.seconds(entrant, name)
            if not seconds:
                continue
            median = statistics.median(seconds)
            yield [
                f"{name}: {size.inputs} of {size.tokens / size.inputs:.0f} tokens",
                entrant,
                shown(size.inputs / median),
                f"{spread(seconds):.0%}",
                f"{size.tokens / median:,.0f}",
                f"{found.share(entrant, name):.1%}",
                _times(found.seconds(ours, name), seconds) if ours and entrant != ours else "",
                _agreement(found, name, ours, entrant) if ours and entrant != ours else "",
            ]


def waiting(found: Found) -> str:
    """How long one text takes, and how long the first one from a process that does not exist yet."""
    ours = next((entrant for entrant in found.entrants() if entrant.startswith(OURS)), "")
    head = ["library", "one text of 12 words, p50", "p90", "its / ours", "start to first answer", "its / ours"]
    return table(head, _waiting(found, ours))


def _waiting(found: Found, ours: str) -> Iterator[list[str]]:
    singles = {entrant: [s for seconds in rounds for s in seconds] for entrant, rounds in found.singles.items()}
    starts = {e: [one.seconds for one in found.started if one.entrant == e] for e in found.entrants()}
    for entrant, seconds in singles.items():
        others = ours and entrant != ours
        middle, high = np.percentile(np.array(seconds) * 1e3, [50, 90])
        yield [
            entrant,
            f"{shown(middle)} ms",
            f"{shown(high)} ms",
            _times(singles[ours], seconds) if others and ours in singles else "",
            f"{shown(statistics.median(starts[entrant]))} s",
            _times(starts[ours], starts[entrant]) if others else "",
        ]


def _times(ours: Sequence[float], other: Sequence[float]) -> str:
    """By seconds, of which fewer are better."""
    return f"{ratio(ours, other, more_is_better=False):.2f}x"


def _agreement(found: Found, name: str, ours: str, entrant: str) -> str:
    """How far the first answers are from ours: the least cosine of vectors, the largest difference of scores."""
    mine, theirs = (np.array(found.samples[name][one]) for one in (ours, entrant))
    if mine.ndim == 1:
        return f"within {np.abs(mine - theirs).max():.1e}"
    cosines = (mine * theirs).sum(1) / np.linalg.norm(mine, axis=1) / np.linalg.norm(theirs, axis=1)
    return f"cosine {cosines.min():.4f}"
