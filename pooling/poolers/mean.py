"""MEAN: the average of an input's token vectors."""

import torch
from torch import Tensor


class MeanPooler:
    """Averages each input's token vectors into one vector.

    Takes hidden [tokens, dim], inputs laid end to end without padding, and
    lengths [inputs] in tokens, all positive (intake refuses empty inputs).
    Returns [inputs, dim] in float32: a bfloat16 mean would lose its last bits.
    Raises RuntimeError if the lengths do not sum to the rows of hidden.
    Source: Reimers and Gurevych 2019, arXiv:1908.10084, section 3.
    """

    def __call__(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        return torch.segment_reduce(hidden.float(), "mean", lengths=lengths, axis=0)
