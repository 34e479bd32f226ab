"""shared_prefixes(): what inputs of a causal model begin with alike is computed once.

A token of such a model sees only those before it, so inputs that begin with
the same tokens (an instruction, the query of a rerank, the prompt of several
completions) have the same hidden states there.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

# Of the tokens of a batch so many have to be shared for its inputs to be taken in another order than by length.
_WORTH_ORDER = 8
# Two inputs share what they begin with if it is so many tokens; a start token alone is not worth the trouble.
LEAST_TOKENS = 16
# The keys of all tokens are laid out again for attention, and hidden states for the pooler: a step of inputs that
# share may have so many times the tokens that it computes, however much they share.
MOST_SPREAD = 4


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """How the tokens of a row lie when each is computed once.

    computed [computed tokens]: which tokens of the row are computed, input after
    input. places [tokens]: where among these the answer for each token of the
    row is. inputs: which inputs have tokens of their own, those with most of
    them first; sizes [inputs, 2]: of each of these how many they are, and how
    many tokens it has in all.
    """

    computed: NDArray[np.int64]
    places: NDArray[np.int64]
    inputs: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, ids: NDArray[np.int32], lengths: NDArray[np.int32], worth: int) -> Self | None:
        """ids of inputs laid end to end, lengths [inputs]; None if they share fewer than `worth` tokens."""
        order, shared = overlaps(ids, lengths)
        if int(shared.sum()) < max(1, worth):
            return None
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        own = lengths - shared
        inputs = np.lexsort((-lengths, -own))
        inputs = inputs[own[inputs] > 0]
        firsts = np.zeros(len(lengths), np.int64)  # where each one's own tokens lie
        firsts[inputs] = np.cumsum(own[inputs]) - own[inputs]
        places = np.empty(len(ids), np.int64)
        before = 0
        for index, common in zip(order.tolist(), shared[order].tolist(), strict=True):
            start, length = int(starts[index]), int(lengths[index])
            places[start : start + common] = places[before : before + common]
            places[start + common : start + length] = firsts[index] + np.arange(length - common)
            before = start
        computed = np.empty(int(own.sum()), np.int64)
        computed[places] = np.arange(len(ids))  # of tokens that are alike any one will do
        return cls(computed, places, inputs, np.stack([own[inputs], lengths[inputs]], 1).astype(np.int64))


def overlaps(ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An order of the inputs in which alike ones are neighbours, and how many tokens each has in common with the one
    before it in that order: [inputs] both, the latter in the order given."""
    shared = np.zeros(len(lengths), np.int64)
    bounds = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).tolist()
    raw, size = ids.astype(">i4").tobytes(), 4  # such bytes compare as the numbers do
    texts = [raw[start * size : stop * size] for start, stop in pairwise(bounds)]
    if len({text[: LEAST_TOKENS * size] for text in texts}) == len(texts):
        return np.arange(len(lengths)), shared
    order = sorted(range(len(texts)), key=texts.__getitem__)
    for before, index in pairwise(order):
        if texts[before][: LEAST_TOKENS * size] != texts[index][: LEAST_TOKENS * size]:
            continue
        common = min(int(lengths[before]), int(lengths[index]))
        one, other = (ids[bounds[which] : bounds[which] + common] for which in (before, index))
        differs = one != other
        at = int(differs.argmax())
        common = at if differs[at] else common
        shared[index] = common if common >= LEAST_TOKENS else 0
    return np.array(order, np.int64), shared


class Alike(NamedTuple):
    """In which order a causal model should take the inputs of a batch, so that those that begin alike are neighbours.

    costs [inputs]: how many tokens each then has of its own, at least a share of all that it has. again [inputs]: how
    many it has in common with the one before it, which a step that begins with it computes again. Both in the order
    given.
    """

    order: NDArray[np.int64]
    costs: NDArray[np.int32]
    again: NDArray[np.int64]

    @classmethod
    def of(cls, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Self | None:
        """None if the inputs share little."""
        order, shared = overlaps(ids, lengths)
        if int(shared.sum()) * _WORTH_ORDER < max(1, len(ids)):
            return None
        return cls(order, np.maximum(lengths - shared, -(-lengths // MOST_SPREAD)).astype(np.int32), shared)
