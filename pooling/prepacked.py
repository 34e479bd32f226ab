"""PrepackedLinear: a linear layer whose weight lies as oneDNN's CPU kernels read it."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation

from pooling.native import native

# What the product's own kernel applies to its result, as oneDNN calls it, and how.
_ACTIVATIONS: dict[type[nn.Module], tuple[str, str]] = {
    GELUActivation: ("gelu", "none"),
    NewGELUActivation: ("gelu", "tanh"),
    GELUTanh: ("gelu", "tanh"),
    nn.ReLU: ("relu", ""),
}
NO_ACTIVATION = ("none", "")


@native
def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, algorithm: str) -> Tensor:
    """x [..., in] -> [..., out], by the weight of a PrepackedLinear and with its activation."""
    scalars: list[int | float | complex | None] = []
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, scalars, algorithm)  # type: ignore[no-any-return]


class PrepackedLinear(nn.Module):
    """x [..., in] -> [..., out], followed by `activation` (as in _ACTIVATIONS); in bfloat16 or float32.

    torch's own linear on CPU reorders the weight at every call and adds the
    bias and the activation in passes of their own; laid out once, with both
    fused, the same product runs 20 to 30 % faster (docs/benchmarks.md).
    """

    def __init__(self, linear: nn.Linear, tokens: int, activation: tuple[str, str] = NO_ACTIVATION) -> None:
        super().__init__()
        # T5 asks its layers for the dtype of their `weight`.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), tokens)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.activation = activation

    @property
    def tensors(self) -> list[Tensor]:
        """What compiled code needs of a layer with a bias."""
        assert self.bias is not None
        return [self.weight, self.bias]

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, *self.activation)


def can_prepack(dtype: torch.dtype) -> bool:
    """Whether this CPU and this build of torch have kernels for layers of a number format that are laid out before."""
    if not torch._C._has_mkldnn:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def prepack(model: nn.Module, tokens: int) -> int:
    """Replaces a CPU model's linear layers in place, for steps of about so many tokens; returns how many.

    Nothing is replaced where torch was built without oneDNN, and no bfloat16 layer where the CPU has no AVX-512, which
    its kernels are for.
    """
    # By name: who holds the layers themselves keeps what they had until the last one is replaced.
    found = [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if type(module) is nn.Linear and can_prepack(module.weight.dtype)
    ]
    replaced = 0
    for name in found:
        place, _, leaf = name.rpartition(".")
        parent = model.get_submodule(place)
        layer = getattr(parent, leaf)
        if type(layer) is nn.Linear:  # else replaced already, under another name
            setattr(parent, leaf, PrepackedLinear(layer, tokens, take_activation(parent, leaf)))
            replaced += 1
        del layer
    return replaced


def fusable_activation(module: Any) -> tuple[str, str] | None:
    """Of a module of BERT's relatives that applies `intermediate_act_fn` to `dense` and does nothing else."""
    activation = getattr(module, "intermediate_act_fn", None)
    if activation is None or len(list(module.children())) != 2 or not hasattr(module, "dense"):
        return None
    return _ACTIVATIONS.get(type(activation))


def take_activation(module: nn.Module, name: str) -> tuple[str, str]:
    """The activation that can be fused into a layer of a module; the module's own then becomes a pass-through."""
    activation = fusable_activation(module) if name == "dense" else None
    if activation is None:
        return NO_ACTIVATION
    module.intermediate_act_fn = nn.Identity()
    return activation
