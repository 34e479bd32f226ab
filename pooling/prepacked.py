"""PrepackedLinear: a linear layer whose weight lies as oneDNN's CPU kernels read it."""

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation


class PrepackedLinear(nn.Module):
    """x [..., in] -> [..., out], followed by an exact GELU if `gelu`; in bfloat16 or float32.

    torch's own linear on CPU reorders the weight at every call and adds the
    bias and the activation in passes of their own; laid out once, with both
    fused, the same product runs 20 to 30 % faster (docs/benchmarks.md).
    """

    def __init__(self, linear: nn.Linear, tokens: int, gelu: bool = False) -> None:
        super().__init__()
        # T5 asks its layers for the dtype of their `weight`.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), tokens)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self._activation = ("gelu", "none") if gelu else ("none", "")

    def forward(self, x: Tensor) -> Tensor:
        attribute, algorithm = self._activation
        answer: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, attribute, [], algorithm)
        return answer


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
            setattr(parent, leaf, PrepackedLinear(layer, tokens, gelu=_takes_gelu(parent, leaf)))
            replaced += 1
        del layer
    return replaced


def _takes_gelu(module: nn.Module, name: str) -> bool:
    """Whether the layer's activation can be fused into it; if so, the module's own becomes a pass-through.

    The modules of BERT's relatives that apply `intermediate_act_fn` to `dense` and do nothing else.
    """
    activation = getattr(module, "intermediate_act_fn", None)
    if name != "dense" or not isinstance(activation, GELUActivation) or len(list(module.children())) != 2:
        return False
    module.intermediate_act_fn = nn.Identity()
    return True
