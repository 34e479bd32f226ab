"""Activations: what is done last to the rows of an answer, by name."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pooling.errors import CheckpointError
from pooling.heads.normalise import normalise

Activation = Callable[[Tensor], Tensor]

_NAMED: dict[str, Activation] = {
    "normalize": normalise,
    "softmax": lambda rows: rows.softmax(-1),
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "identity": lambda rows: rows,
}


def activation_of(name: str) -> Activation:
    """rows [n, width] float32 -> the same shape.

    name is one of the five above, or a class of torch.nn by the dotted name that
    a checkpoint gives it. Raises CheckpointError if there is no such class.
    """
    if name in _NAMED:
        return _NAMED[name]
    kind = getattr(nn, name.rsplit(".", 1)[-1], None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise CheckpointError(f"the model asks for the activation {name!r}, which torch.nn does not have")
    try:
        module: Activation = kind()
    except TypeError:
        raise CheckpointError(f"the model asks for the activation {name!r}, which needs arguments") from None
    return module


def check_activation(name: str, activation: Activation, width: int) -> None:
    """Tries it once, before a step depends on it. Raises CheckpointError if rows do not stay rows."""
    rows = torch.zeros(2, width)
    try:
        kept = activation(rows).shape == rows.shape
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        kept = False
    if not kept:
        raise CheckpointError(f"the model asks for the activation {name!r}, which is none of rows of {width} numbers")
