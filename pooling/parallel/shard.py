"""Shard: which rank of how many a process is, and how the ranks' partial results become one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

# Adds a tensor up over all ranks, in place.
Sum = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank has of a tensor: of dimension `dim`, the ranges from start to stop, end to end."""

    dim: int
    ranges: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        return sum(stop - start for start, stop in self.ranges)

    def shape_of(self, whole: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.size if index == self.dim else size for index, size in enumerate(whole))


@dataclass(frozen=True, slots=True)
class Shard:
    """Rank `rank` of `size`; add_up is the sum over all ranks, which every rank must call alike."""

    rank: int
    size: int
    add_up: Sum

    def even(self, dim: int, blocks: Sequence[int]) -> Part:
        """This rank's share of each block of rows or columns; the blocks must divide by the number of ranks."""
        ranges, start = [], 0
        for block in blocks:
            share = block // self.size
            ranges.append((start + self.rank * share, start + (self.rank + 1) * share))
            start += block
        return Part(dim, tuple(ranges))

    def rows(self, count: int) -> Part:
        """This rank's share of a table of any size: the last ranks may have less."""
        share = -(-count // self.size)
        return Part(0, ((min(self.rank * share, count), min((self.rank + 1) * share, count)),))
