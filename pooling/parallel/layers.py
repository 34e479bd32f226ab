"""Layers that a rank has a share of, where that share alone is no answer: the ranks' results are added up.

A column-parallel layer needs no class: it is the layer itself with this rank's
rows of the weight, and answers this rank's share of the features.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pooling.parallel.shard import Sum


class RowParallel(nn.Module):
    """A linear layer over features that are split: x [..., in / ranks] -> [..., out], the same on every rank.

    The bias is added once, after the sum.
    """

    def __init__(self, layer: nn.Linear | Conv1D, add_up: Sum) -> None:
        super().__init__()
        self.linear = _linear(layer)
        self.bias = layer.bias
        self._add_up = add_up

    @property
    def weight(self) -> Tensor:  # T5 asks its layers for the dtype of theirs
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        summed = self._add_up(self.linear(x))
        return summed if self.bias is None else summed + self.bias


class VocabParallel(nn.Module):
    """A table of which this rank has the rows from `start` on: ids [...] -> rows [..., dim], the same on every rank.

    Exact in any dtype: of the rows that are added up all but one are zero.
    """

    def __init__(self, table: nn.Embedding, start: int, add_up: Sum) -> None:
        super().__init__()
        self.table, self._start, self._add_up = table, start, add_up

    @property
    def weight(self) -> Tensor:
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        own = ids - self._start
        elsewhere = (own < 0) | (own >= len(self.table.weight))
        rows = self.table(own.masked_fill(elsewhere, 0))
        return self._add_up(rows.masked_fill(elsewhere[..., None], 0))


class ParallelNorm(nn.Module):
    """RMSNorm over features that are split: x [..., dim / ranks] -> the same shape; the mean square is over all dim.

    Source: transformers' Olmo2RMSNorm, which norms the queries of all heads together.
    """

    def __init__(self, norm: Any, size: int, add_up: Sum) -> None:
        super().__init__()
        self.weight = norm.weight
        self._epsilon, self._size, self._add_up = float(norm.variance_epsilon), size, add_up

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        mean_square = self._add_up(wide.square().mean(-1, keepdim=True)) / self._size
        answer: Tensor = (self.weight * (wide * torch.rsqrt(mean_square + self._epsilon))).to(x.dtype)
        return answer


class AddedUp(nn.Module):
    """A module whose answer is a partial sum, as that of experts with a share of their features."""

    def __init__(self, module: nn.Module, add_up: Sum) -> None:
        super().__init__()
        self.module, self._add_up = module, add_up

    def forward(self, *args: Any, **keywords: Any) -> Tensor:
        return self._add_up(self.module(*args, **keywords))


def _linear(layer: nn.Linear | Conv1D) -> nn.Linear:
    """The layer without its bias; GPT-2's has its weight the other way round."""
    weight = layer.weight.t().contiguous() if isinstance(layer, Conv1D) else layer.weight
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear
