"""What is done to pooled rows, in float32: a head of the model's own, calibrate, cut, then activate."""

from collections.abc import Callable

from torch import Tensor

from pooling.heads.activation import activation_of, check_activation
from pooling.heads.matryoshka import cut
from pooling.heads.normalise import normalise

# rows [n, dim] float32 -> [n, width]
Head = Callable[[Tensor], Tensor]

__all__ = ["Head", "activation_of", "check_activation", "cut", "normalise"]
