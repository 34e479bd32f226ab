"""SPLADE: of each word of the vocabulary, how much an input is about it."""

from typing import Literal

import torch
from torch import Tensor

from pooling.heads import Head

# Logits of a piece of the tokens: several times less than the model itself, and enough for a product at full speed.
_PIECE_BYTES = 64 * 2**20


class SpladePooler:
    """The greatest or the sum, over an input's tokens, of log(1 + relu(logit)).

    Takes hidden [tokens, dim], inputs laid end to end without padding, lengths
    [inputs] in tokens, and the masked-language-model head, [n, dim] float32 ->
    [n, words]. Returns [inputs, words] in float32. Logits are made of a piece of
    the tokens at a time: those of a whole step would need a hundred times the
    memory of its hidden states. lanes: how many do so at a time.
    logarithms: 2 takes log(1 + .) once more. Source: Formal et al. 2021,
    arXiv:2109.10086, section 3; Geng et al. 2024, arXiv:2411.04403 for the second logarithm.
    """

    def __init__(self, strategy: Literal["max", "sum"], logarithms: int, words: int, lanes: int = 1) -> None:
        self._strategy, self._logarithms, self._words = strategy, logarithms, words
        self._piece = max(1, _PIECE_BYTES // lanes // (4 * words))

    def __call__(self, hidden: Tensor, lengths: Tensor, head: Head) -> Tensor:
        owner = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), lengths)
        rows = hidden.new_zeros((len(lengths), self._words), dtype=torch.float32)
        for piece, owners in zip(torch.split(hidden, self._piece), torch.split(owner, self._piece), strict=True):
            weights = head(piece.float()).relu_().log1p_()
            if self._logarithms == 2:
                weights = weights.log1p_()
            if self._strategy == "max":
                rows.scatter_reduce_(
                    0, owners[:, None].expand_as(weights), weights, "amax"
                )  # no weight is negative, so zero is neutral
            else:
                rows.index_add_(0, owners, weights)
        return rows
