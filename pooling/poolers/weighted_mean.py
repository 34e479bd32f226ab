"""WEIGHTEDMEAN: the average of an input's token vectors, later tokens counting more."""

import torch
from torch import Tensor


class WeightedMeanPooler:
    """Averages each input's token vectors with the weights 1, 2, 3, ... along the input.

    Takes hidden [tokens, dim], inputs laid end to end without padding, and
    lengths [inputs] in tokens, all positive. Returns [inputs, dim] in float32.
    Raises RuntimeError if the lengths do not sum to the rows of hidden.
    Source: Muennighoff 2022, arXiv:2202.08904, section 3.
    """

    def __call__(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        starts = torch.cumsum(lengths, 0) - lengths
        places = torch.arange(len(hidden), device=hidden.device) - torch.repeat_interleave(starts, lengths) + 1
        weighted = torch.segment_reduce(hidden.float() * places[:, None], "sum", lengths=lengths, axis=0)
        return weighted / (lengths * (lengths + 1) / 2)[:, None]
