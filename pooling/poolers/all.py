"""ALL: every token keeps its vector."""

from torch import Tensor


class AllPooler:
    """Keeps each input's token vectors.

    Takes hidden [tokens, dim], inputs laid end to end without padding, and
    lengths [inputs] in tokens. Returns [tokens, dim] in float32.
    """

    def __call__(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        return hidden.float()
