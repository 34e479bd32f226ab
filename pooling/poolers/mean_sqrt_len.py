"""MEAN_SQRT_LEN: the sum of an input's token vectors over the square root of their number."""

import torch
from torch import Tensor


class MeanSqrtLenPooler:
    """Sums each input's token vectors and divides by the square root of its length.

    Takes hidden [tokens, dim], inputs laid end to end without padding, and
    lengths [inputs] in tokens, all positive. Returns [inputs, dim] in float32.
    Raises RuntimeError if the lengths do not sum to the rows of hidden.
    Source: Sentence Transformers' Pooling module, mean_sqrt_len_tokens.
    """

    def __call__(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        return torch.segment_reduce(hidden.float(), "sum", lengths=lengths, axis=0) / lengths.sqrt()[:, None]
