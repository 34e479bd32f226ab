"""LAST: the last token stands for the input, as causal models read from left to right."""

import torch
from torch import Tensor


class LastPooler:
    """Takes each input's last token vector.

    Takes hidden [tokens, dim], inputs laid end to end without padding, and
    lengths [inputs] in tokens, all positive. Returns [inputs, dim] in float32.
    Source: Wang et al. 2023, arXiv:2401.00368, section 3.
    """

    def __call__(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        return hidden[torch.cumsum(lengths, 0) - 1].float()
