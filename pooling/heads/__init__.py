"""What is done to pooled rows, in float32: cut, then normalise."""

from pooling.heads.matryoshka import cut
from pooling.heads.normalise import normalise

__all__ = ["cut", "normalise"]
