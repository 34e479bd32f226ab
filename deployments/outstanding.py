"""Outstanding: the tokens that a router has under way at each replica, and where its next slice should go. Pure."""

import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

Replica = TypeVar("Replica", bound=Hashable)

# To look at more costs time for every slice and finds hardly better ones.
_LOOKED_AT = 32


class _Sent(NamedTuple, Generic[Replica]):
    replica: Replica
    tokens: int


class Outstanding(Generic[Replica]):
    """Counts small slices and large ones apart.

    An engine puts small requests before large ones (pooling/batcher.py), so a
    small slice waits for other small ones alone: it goes where those have the
    fewest tokens, however large the slices there are; a large one where large
    ones have the fewest. What other routers have sent is known as a number of
    requests only, and counts as so many slices of average size. small_tokens: a
    slice of fewer is small, which is a step of the engine.
    benchmarks/balance.py compares this with other ways.
    """

    def __init__(self, small_tokens: int) -> None:
        self._small_tokens = small_tokens
        self._sent: dict[str, _Sent[Replica]] = {}
        self._slices: Counter[Replica] = Counter()
        self._small: Counter[Replica] = Counter()
        self._large: Counter[Replica] = Counter()
        self._all_slices, self._all_tokens = 0, 0

    def best(
        self, replicas: Sequence[Replica], tokens: int, ongoing: Callable[[Replica], int | None]
    ) -> list[list[Replica]]:
        """Ranks of replicas for a slice, best first; of many replicas, some at random.

        ongoing: how many requests a replica had when it last spoke, None if that
        is too long ago. Two that may be best are one rank if either is such a
        one: Serve then asks them, and takes that with fewer requests.
        """
        counts = self._counts(tokens)
        mean = self._all_tokens / max(1, self._all_slices)
        heard = {replica: ongoing(replica) for replica in random.sample(replicas, min(_LOOKED_AT, len(replicas)))}

        def waits(replica: Replica) -> float:
            return counts[replica] + mean * max(0, (heard[replica] or 0) - self._slices[replica])

        order = sorted(heard, key=waits)
        if any(heard[replica] is None for replica in order[:2]):
            return [order[:2], *([replica] for replica in order[2:])]
        return [[replica] for replica in order]

    def send(self, key: str, replica: Replica, tokens: int) -> None:
        """Counts a slice at a replica; one that is counted already moves there."""
        if key not in self._sent:
            self._all_slices += 1
            self._all_tokens += tokens
        self.done(key)
        self._sent[key] = _Sent(replica, tokens)
        self._slices[replica] += 1
        self._counts(tokens)[replica] += tokens

    def done(self, key: str) -> None:
        """Counts a slice no more, whatever became of it; one that is unknown is no error."""
        sent = self._sent.pop(key, None)
        if sent is None:
            return
        for counts, count in ((self._slices, 1), (self._counts(sent.tokens), sent.tokens)):
            counts[sent.replica] -= count
            if not counts[sent.replica]:
                del counts[sent.replica]  # replicas come and go

    def __contains__(self, key: str) -> bool:
        return key in self._sent

    def __len__(self) -> int:
        return len(self._sent)

    def _counts(self, tokens: int) -> Counter[Replica]:
        return self._small if tokens < self._small_tokens else self._large
