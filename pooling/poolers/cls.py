"""CLS: the first token stands for the input."""

import torch
from torch import Tensor


class ClsPooler:
    """Takes each input's first token vector.

    Takes hidden [tokens, dim], inputs laid end to end without padding, and
    lengths [inputs] in tokens, all positive. Returns [inputs, dim] in float32.
    Source: Devlin et al. 2018, arXiv:1810.04805, section 3.
    """

    def __call__(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        first = torch.cumsum(lengths, 0) - lengths
        return hidden[first].float()
