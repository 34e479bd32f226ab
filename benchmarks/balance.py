"""How evenly routers share work among replicas: python -m benchmarks.balance

A simulation in which only time is not real: requests of one text and of a
thousand are cut by deployments/slicing.py, wait in pooling/batcher.py, and a
step takes as long as its tokens did on the machine of docs/benchmarks.md. Each
way to choose a replica sees only what its router would know of it.
"""

import argparse
import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from deployments.dispatch import _SLICES_PER_REPLICA
from deployments.outstanding import Outstanding
from deployments.slicing import cut
from pooling.batcher import Batcher

# Lengths as in the short set of benchmarks/texts.py: log-normal, mean 54, at most 256.
_MEAN_TOKENS, _SIGMA, _LONGEST = 54, 0.7, 256
# How long Serve believes a count that it has not heard again; then it asks the replica.
_CACHE_S = 10.0
# On the way to a replica, and back.
_HOP_S = 0.001


class Shape(NamedTuple):
    """A cluster and its load. token_s: of a step. bulk: texts of a large request, which make half of all tokens."""

    replicas: int
    routers: int
    token_s: float
    step_tokens: int
    small: int = 1
    bulk: int = 1_000
    load: float = 0.7


@dataclass
class Slice:
    """What one replica gets of a request. `left` of the request counts its slices that are under way."""

    lengths: np.ndarray
    request: "Request"
    router: int
    key: str

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())


@dataclass
class Request:
    texts: int
    arrived: float
    left: int = 0


@dataclass
class Replica:
    """One engine: the batcher that ships, and a device that runs one step at a time."""

    batcher: Batcher
    step_tokens: int
    slices: dict[int, Slice] = field(default_factory=dict)
    inputs_left: dict[int, int] = field(default_factory=dict)
    busy: bool = False
    busy_s: float = 0.0

    @property
    def tokens(self) -> int:
        """Those that wait."""
        return self.batcher.tokens


class Known:
    """What one router knows of the replicas: what it has under way itself, and what they last told it."""

    def __init__(self, replicas: int, step_tokens: int) -> None:
        self.own_tokens = np.zeros(replicas)
        self.outstanding: Outstanding[int] = Outstanding(step_tokens)
        self.count = np.zeros(replicas)
        self.heard = np.full(replicas, -np.inf)


Choose = Callable[[list[Replica], Known, float, int], int]


def by_requests(replicas: list[Replica], known: Known, now: float, tokens: int) -> int:
    """Serve's default: of two replicas at random, that with fewer requests, as far as the router has heard."""
    pair = random.sample(range(len(replicas)), min(2, len(replicas)))
    for index in pair:
        if now - known.heard[index] > _CACHE_S:
            known.count[index], known.heard[index] = len(replicas[index].slices), now
    return min(pair, key=lambda index: known.count[index])


def by_own_tokens(replicas: list[Replica], known: Known, now: float, tokens: int) -> int:
    """Of all replicas, that to which the router itself has the fewest tokens under way."""
    fewest = np.flatnonzero(known.own_tokens == known.own_tokens.min())
    return int(random.choice(fewest))


def by_own_tokens_of_two(replicas: list[Replica], known: Known, now: float, tokens: int) -> int:
    """Of two replicas at random, that to which the router itself has fewer tokens under way."""
    pair = random.sample(range(len(replicas)), min(2, len(replicas)))
    return min(pair, key=lambda index: known.own_tokens[index])


def as_shipped(replicas: list[Replica], known: Known, now: float, tokens: int) -> int:
    """deployments/token_router.py: its own tokens by the kind of slice, and what it has heard of all requests."""

    def heard(index: int) -> int | None:
        return int(known.count[index]) if now - known.heard[index] <= _CACHE_S else None

    rank = known.outstanding.best(range(len(replicas)), tokens, heard)[0]
    if len(rank) == 1:
        return rank[0]
    for index in rank:  # Serve asks both
        known.count[index], known.heard[index] = len(replicas[index].slices), now
    return min(rank, key=lambda index: known.count[index])


def by_all_tokens(replicas: list[Replica], known: Known, now: float, tokens: int) -> int:
    """The one with the fewest tokens that wait, of whatever router: what no router can know."""
    counts = [replica.tokens for replica in replicas]
    return int(random.choice(np.flatnonzero(np.array(counts) == min(counts))))


WAYS: dict[str, Choose] = {
    "requests, of two": by_requests,
    "own tokens": by_own_tokens,
    "own tokens, of two": by_own_tokens_of_two,
    "as shipped": as_shipped,
    "waiting tokens of all": by_all_tokens,
}


class Simulation:
    """Runs one shape with one way to choose; `waits` has seconds of every request by its number of texts."""

    def __init__(self, shape: Shape, choose: Choose, split: bool, seconds: float, seed: int) -> None:
        self.shape, self._choose, self._split = shape, choose, split
        self._draw = np.random.default_rng(seed)
        random.seed(seed)
        self.replicas = [Replica(Batcher(), shape.step_tokens) for _ in range(shape.replicas)]
        self._known = [Known(shape.replicas, shape.step_tokens) for _ in range(shape.routers)]
        self.waits: dict[int, list[float]] = {shape.small: [], shape.bulk: []}
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        for texts in (shape.small, shape.bulk):
            self._at(0.0, lambda now, texts=texts: self._arrive(now, texts, seconds))  # type: ignore[misc]  # a default is no part of the type
        self.seconds = seconds

    def run(self) -> "Simulation":
        while self._events:
            now, _, event = heapq.heappop(self._events)
            event(now)
        return self

    def _at(self, when: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), event))

    def _arrive(self, now: float, texts: int, until: float) -> None:
        shape = self.shape
        rate = shape.load / 2 * shape.replicas / (shape.token_s * _MEAN_TOKENS * texts)
        following = now + self._draw.exponential(1 / rate)
        if following < until:
            self._at(following, lambda later: self._arrive(later, texts, until))
        router = int(self._draw.integers(shape.routers))
        request = Request(texts, now)
        slices = list(self._slices(request, router))
        request.left = len(slices)
        for one in slices:
            self._send(now, one)

    def _slices(self, request: Request, router: int) -> Iterator[Slice]:
        mean = np.log(_MEAN_TOKENS) - _SIGMA**2 / 2
        lengths = np.clip(self._draw.lognormal(mean, _SIGMA, request.texts), 1, _LONGEST).astype(np.int32)
        most = self.shape.replicas * _SLICES_PER_REPLICA if self._split else 1
        for start, stop in cut(lengths, self.shape.step_tokens, most):
            yield Slice(lengths[start:stop], request, router, str(next(self._numbers)))

    def _send(self, now: float, one: Slice) -> None:
        known = self._known[one.router]
        index = self._choose(self.replicas, known, now, one.tokens)
        known.own_tokens[index] += one.tokens
        known.outstanding.send(one.key, index, one.tokens)
        known.count[index] += 1
        self._at(now + _HOP_S, lambda later: self._receive(later, index, one))

    def _receive(self, now: float, index: int, one: Slice) -> None:
        replica, key = self.replicas[index], next(self._numbers)
        replica.slices[key], replica.inputs_left[key] = one, len(one.lengths)
        replica.batcher.add(key, one.lengths)
        known = self._known[one.router]  # Serve's replica says how many it has when it takes one
        known.count[index], known.heard[index] = len(replica.slices), now
        if not replica.busy:
            self._step(now, index)

    def _step(self, now: float, index: int) -> None:
        replica = self.replicas[index]
        shares = replica.batcher.take(replica.step_tokens)
        replica.busy = bool(shares)
        if not shares:
            return
        took_s = sum(share.tokens for share in shares) * self.shape.token_s
        replica.busy_s += took_s
        self._at(now + took_s, lambda later: self._done(later, index, [(s.key, len(s.inputs)) for s in shares]))

    def _done(self, now: float, index: int, shares: list[tuple[int, int]]) -> None:
        replica = self.replicas[index]
        for key, inputs in shares:
            replica.inputs_left[key] -= inputs
            if replica.inputs_left[key] == 0:
                del replica.inputs_left[key]
                self._answer(now + _HOP_S, index, replica.slices.pop(key))
        self._step(now, index)

    def _answer(self, now: float, index: int, one: Slice) -> None:
        known = self._known[one.router]
        known.own_tokens[index] -= one.tokens
        known.outstanding.done(one.key)
        known.count[index] = max(0, known.count[index] - 1)
        one.request.left -= 1
        if one.request.left == 0:
            self.waits[one.request.texts].append(now - one.request.arrived)


SHAPES = {
    # all-MiniLM-L6-v2 on 2 cores: 24,100 tokens/s in steps of 1,024 (docs/benchmarks.md).
    "3 CPU replicas, 1 router": Shape(3, 1, 1 / 24_100, 1_024),
    "8 CPU replicas, 2 routers": Shape(8, 2, 1 / 24_100, 1_024),
    # No GPU was measured: 500,000 tokens/s in steps of 16,384 is what docs/scaling.md aims at.
    "64 GPUs, 16 routers": Shape(64, 16, 1 / 500_000, 16_384, small=16, bulk=4_000),
    "1,000 GPUs, 100 routers": Shape(1_000, 100, 1 / 500_000, 16_384, small=128, bulk=8_000),
}


def report(name: str, seconds: float, ways: dict[str, Choose], seed: int) -> Iterator[str]:
    shape = SHAPES[name]
    mix = f"requests of {shape.small} and {shape.bulk} texts, half of the tokens each, {shape.load:.0%} busy"
    yield f"\n### {name}: {mix}\n"
    yield "| slices | replica chosen by | small p50 / p99 ms | bulk p50 / p99 ms | busiest replica over mean |"
    yield "|---|---|---|---|---|"
    for split, (way, choose) in itertools.product((True, False), ways.items()):
        done = Simulation(shape, choose, split, seconds, seed).run()
        small, bulk = (_ms(done.waits[texts]) for texts in (shape.small, shape.bulk))
        busy = np.array([replica.busy_s for replica in done.replicas])
        cutting = "equal tokens" if split else "none"
        yield f"| {cutting} | {way} | {small} | {bulk} | {busy.max() / busy.mean():.2f} |"


def _ms(waits: list[float]) -> str:
    middle, high = np.percentile(np.array(waits) * 1_000, [50, 99])
    return f"{middle:.0f} / {high:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: all")
    parser.add_argument("--seconds", type=float, default=60, help="of arrivals, up to 8 replicas; fewer beyond")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    for name in arguments.shape or SHAPES:
        # A thousand replicas have as many requests in two seconds as eight in four minutes.
        seconds = max(2.0, arguments.seconds * min(1.0, 8 / SHAPES[name].replicas))
        for line in report(name, seconds, WAYS, arguments.seed):
            print(line, flush=True)


if __name__ == "__main__":
    main()
