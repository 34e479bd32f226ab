"""Normalise: every vector to length one, so that a dot product is a cosine."""

from torch import Tensor
from torch.nn.functional import normalize


def normalise(rows: Tensor) -> Tensor:
    """rows [n, dim] float32 -> each divided by its L2 norm; a zero vector stays zero."""
    return normalize(rows, p=2.0, dim=-1)
