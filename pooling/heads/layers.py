"""Layers over pooled rows, as Sentence Transformers' modules compute them: rows [n, in] float32 -> [n, out]."""

from collections.abc import Callable

from torch import Tensor, nn

from pooling.heads.normalise import normalise


class Activated(nn.Module):
    """activation(linear(rows)), plus the rows themselves, or what `residual` makes of them, where it adds.

    Source: sentence_transformers/base/modules/dense.py of Sentence Transformers 6.2.
    """

    def __init__(
        self, linear: nn.Linear, activation: Callable[[Tensor], Tensor], residual: nn.Linear | None, adds: bool
    ) -> None:
        super().__init__()
        self.linear, self.residual = linear, residual
        self._activation, self._adds = activation, adds

    def forward(self, rows: Tensor) -> Tensor:
        out = self._activation(self.linear(rows))
        if not self._adds:
            return out
        added: Tensor = rows if self.residual is None else self.residual(rows)
        return out + added


class Normalised(nn.Module):
    """A normalisation that stands before another layer."""

    def forward(self, rows: Tensor) -> Tensor:
        return normalise(rows)
