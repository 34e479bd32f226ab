"""Outstanding: the tokens that a router has under way at each replica, and where its next slice should go. Pure."""

import random
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

Replica = TypeVar("Replica", bound=Hashable)


# To look at more costs time for every slice and finds nothing better: two are said to be enough, for counts that
# all routers share (Mitzenmacher 2001, The power of two choices in randomized load balancing).
_LOOKED_AT = 32


class _Sent(NamedTuple, Generic[Replica]):
    replica: Replica
    tokens: int


class Outstanding(Generic[Replica]):
    """Counts small slices and large ones apart.

    An engine puts small requests before large ones (pooling/batcher.py), so a
    small slice waits for other small ones alone: it goes where those have the
    fewest tokens, however large the slices there are; a large one where large
    ones have the fewest. small_tokens: a slice of fewer is small, which is a
    step of the engine. benchmarks/balance.py compares this with other ways.
    """

    def __init__(self, small_tokens: int) -> None:
        self._small_tokens = small_tokens
        self._sent: dict[str, _Sent[Replica]] = {}
        self._small: Counter[Replica] = Counter()
        self._large: Counter[Replica] = Counter()

    def in_order(self, replicas: Sequence[Replica], tokens: int) -> list[Replica]:
        """The replicas for a slice, best first, equal ones in random order; of many, some at random."""
        counts = self._counts(tokens)
        return sorted(random.sample(replicas, min(_LOOKED_AT, len(replicas))), key=lambda replica: counts[replica])

    def send(self, key: str, replica: Replica, tokens: int) -> None:
        """Counts a slice at a replica; one that is counted already moves there."""
        self.done(key)
        self._sent[key] = _Sent(replica, tokens)
        self._counts(tokens)[replica] += tokens

    def done(self, key: str) -> None:
        """Counts a slice no more, whatever became of it; one that is unknown is no error."""
        sent = self._sent.pop(key, None)
        if sent is not None:
            counts = self._counts(sent.tokens)
            counts[sent.replica] -= sent.tokens
            if not counts[sent.replica]:
                del counts[sent.replica]  # replicas come and go

    def __len__(self) -> int:
        return len(self._sent)

    def _counts(self, tokens: int) -> Counter[Replica]:
        return self._small if tokens < self._small_tokens else self._large
