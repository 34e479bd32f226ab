"""MAX: the largest value of each component over an input's tokens."""

import torch
from torch import Tensor


class MaxPooler:
    """Takes each component's maximum over an input's token vectors.

    Takes hidden [tokens, dim], inputs laid end to end without padding, and
    lengths [inputs] in tokens, all positive. Returns [inputs, dim] in float32.
    Raises RuntimeError if the lengths do not sum to the rows of hidden.
    Source: Reimers and Gurevych 2019, arXiv:1908.10084, section 3.
    """

    def __call__(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        return torch.segment_reduce(hidden.float(), "max", lengths=lengths, axis=0)
