"""Where to cut a request so that several engines share it. Pure: lengths in, bounds out."""

from itertools import pairwise

import numpy as np

from pooling.request import Ids

Bounds = list[tuple[int, int]]


def cut(lengths: Ids, step_tokens: int, most: int) -> Bounds:
    """Cuts inputs into at most `most` contiguous slices of about equal tokens, each at least one engine step.

    Takes lengths [inputs] in tokens, all positive. Returns (start, stop) of
    every slice in order; a single one if the whole is less than two steps.
    Equal tokens make equal work, so that choosing a replica by its number of
    requests is fair.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1])
    for count in range(min(most, total // step_tokens, len(lengths)), 1, -1):
        bounds = _equal(ends, count)
        if all(_tokens(ends, start, stop) >= step_tokens for start, stop in bounds):
            return bounds
    return [(0, len(lengths))]


def _equal(ends: np.ndarray, count: int) -> Bounds:
    """Cuts behind the input whose end is nearest to each of the count - 1 equal shares."""
    shares = ends[-1] * np.arange(1, count) / count
    above = np.searchsorted(ends, shares)
    before = np.where(above > 0, ends[above - 1], 0)
    cuts = above + (ends[above] - shares <= shares - before)
    edges = [0, *(int(edge) for edge in cuts), len(ends)]
    return list(pairwise(edges))


def _tokens(ends: np.ndarray, start: int, stop: int) -> int:
    if stop <= start:
        return 0
    return int(ends[stop - 1]) - (int(ends[start - 1]) if start else 0)
