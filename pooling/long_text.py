"""Long text: an input of more tokens than the model takes is embedded in chunks, and their vectors are averaged."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pooling.request import Ids, PackedBatch, Rows

Places = NDArray[np.int64]
# What torch's normalize divides by at least.
_SMALLEST_NORM = 1e-12


@dataclass(frozen=True, slots=True)
class Chunked:
    """A batch with its long inputs in chunks, each an input of its own. owners [chunks]: the input it is part of."""

    batch: PackedBatch
    owners: Places

    def merge(self, rows: Rows, normalise: bool) -> Rows:
        """The vectors of the chunks [chunks, dim] -> those of the inputs [inputs, dim], float32.

        That of an input in chunks is their mean, weighted by the tokens that each
        of them pools, and brought to length one again if `normalise`. The others
        are left as they are. Source: vLLM's chunked processing.
        """
        firsts = np.flatnonzero(np.diff(self.owners, prepend=-1))
        merged = rows[firsts]
        weights = self._weights()
        for index, (start, stop) in enumerate(pairwise([*firsts, len(rows)])):
            if stop - start > 1:
                mean = np.average(rows[start:stop], axis=0, weights=weights[start:stop])
                scale = max(float(np.linalg.norm(mean)), _SMALLEST_NORM) if normalise else 1.0
                merged[index] = mean / scale
        return merged

    def _weights(self) -> NDArray[np.float64]:
        if self.batch.segments is None:
            return self.batch.lengths.astype(np.float64)
        return np.add.reduceat((self.batch.segments >= 0).astype(np.float64), self.batch.offsets()[:-1])


def chunk(batch: PackedBatch, most: int, overlap: int | None) -> Chunked | None:
    """The batch with every input of more than `most` tokens in chunks of at most so many; None if there is none.

    overlap None cuts the list of tokens as it is: the special tokens at its two
    ends are in the first and the last chunk alone. Otherwise every chunk has the
    input's own first and last tokens that the batch's frame names, and between
    them text of which it shares `overlap` tokens with the chunk before.
    """
    if int(batch.lengths.max()) <= most:
        return None
    places: list[Places] = []
    owners: list[int] = []
    for owner, (start, stop) in enumerate(pairwise(batch.offsets().tolist())):
        head, tail = (0, 0) if overlap is None else _framed(batch, start, stop, most - overlap)
        for first, last in windows(stop - start - head - tail, most - head - tail, overlap or 0):
            text = np.arange(start + head + first, start + head + last)
            places.append(np.concatenate([np.arange(start, start + head), text, np.arange(stop - tail, stop)]))
            owners.append(owner)
    taken = np.concatenate(places)
    lengths = np.array([len(place) for place in places], np.int32)
    segments = None if batch.segments is None else batch.segments[taken]
    return Chunked(replace(batch, ids=batch.ids[taken], lengths=lengths, segments=segments), np.array(owners, np.int64))


def windows(tokens: int, most: int, overlap: int) -> list[tuple[int, int]]:
    """(start, stop) of chunks of at most `most` tokens, each sharing `overlap` < most of them with the one before."""
    bounds = [(0, min(most, tokens))]
    while bounds[-1][1] < tokens:
        start = bounds[-1][1] - overlap
        bounds.append((start, min(start + most, tokens)))
    return bounds


def _framed(batch: PackedBatch, start: int, stop: int, room: int) -> tuple[int, int]:
    """How many of an input's first and last tokens every chunk of it repeats; none if they would fill the room."""
    if batch.frame is None:
        return 0, 0
    ids, tail = batch.ids[start:stop], len(batch.frame.tail)
    head = _common(ids, batch.frame.head)
    tail = tail if tail and np.array_equal(ids[-tail:], batch.frame.tail) else 0
    return (head, tail) if head + tail < room else (0, 0)


def _common(ids: Ids, head: Ids) -> int:
    """How many tokens both begin with."""
    differ = np.flatnonzero(ids[: len(head)] != head[: len(ids)])
    return int(differ[0]) if len(differ) else min(len(ids), len(head))
