"""tune(): a loaded model's layers as they run fastest on its device."""

import threading
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from pooling.config import Quantization
from pooling.encoder_layers import find_layers, fuse_layers
from pooling.prepacked import can_prepack, prepack
from pooling.quantized import quantize

# Sibling layers of transformers' models that are given the same tensor.
_SIBLINGS = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("gate_proj", "up_proj"),
)


class _Computed(threading.local):
    """What the product gave last on this thread, for whom of the siblings it is still meant, and of which input."""

    x: Tensor | None = None
    parts: dict[int, Tensor] | None = None


class MergedLinear(nn.Module):
    """The linear layers of siblings as one: x [..., in] -> the sum of their widths."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.widths = [layer.out_features for layer in layers]
        weight = torch.cat([layer.weight for layer in layers]).detach()
        with torch.device("meta"):
            self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=layers[0].bias is not None)
        self.linear.weight = nn.Parameter(weight, requires_grad=False)
        if layers[0].bias is not None:
            self.linear.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]).detach(), requires_grad=False)
        self._last = _Computed()

    def part(self, index: int, x: Tensor) -> Tensor:
        """The features of one sibling. The first that is called with an input computes those of all."""
        last = self._last
        if last.x is not x or last.parts is None or index not in last.parts:
            last.x, last.parts = x, dict(enumerate(self.linear(x).split(self.widths, -1)))
        answer = last.parts.pop(index)
        if not last.parts:  # held no longer than it is needed
            last.x = last.parts = None
        return answer


class Part(nn.Module):
    """One of the siblings, in its old place: x [..., in] -> [..., out], a view into their common product."""

    def __init__(self, merged: MergedLinear, index: int) -> None:
        super().__init__()
        self.merged, self._index = merged, index

    @property
    def weight(self) -> Tensor:  # some layers ask others for the dtype of theirs
        return self.merged.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.merged.part(self._index, x)


class FusedRMSNorm(nn.Module):
    """x [..., dim] -> x / sqrt(mean(x^2) + eps) * weight, in one operation and float32 inside."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)


def tune(
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    tokens: int,
    split: bool = False,
) -> None:
    """Changes a model in place, for steps of about so many tokens; what does not fit a pattern stays as it is.

    split: it is one rank's share of a model.
    """
    if device.type == "cuda":
        merge(model)
    elif dtype == torch.bfloat16 or not split:
        # In float32 it is for single texts, a tenth faster; a rank that has just room for its share is better without.
        # One product of 1,152 columns is hardly faster than three of 384: only what is called less often is merged.
        encoders = find_layers(model) if can_prepack(dtype) and not split else []
        for layer in chain.from_iterable(encoders):
            merge(layer)
        prepack(model, tokens)
        fuse_layers(model, encoders)
    if device.type == "cuda" or dtype == torch.float32:
        # A CPU's bfloat16 norm is faster in the five operations of transformers.
        fuse_norms(model)


def tune_quantized(
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    tokens: int,
    kind: Quantization,
    run: Callable[[], object],
) -> int:
    """As tune(), with layers as in quantized.py; returns how many. run: lets the model answer something."""
    encoders = find_layers(model) if kind == "int8" else []
    merge(model)  # what siblings read is quantised once
    layers = quantize(model, kind, tokens, run)
    fuse_layers(model, encoders)
    if device.type == "cuda" or dtype == torch.float32:
        fuse_norms(model)
    return layers


def merge(model: nn.Module) -> None:
    """Layers that read the same input become one product."""
    # Not the layers themselves: who holds them has all weights twice before the last ones are merged.
    for module in [module for module in model.modules() if not isinstance(module, nn.Linear)]:
        for names in _SIBLINGS:
            layers = [getattr(module, name, None) for name in names]
            if _alike(layers):
                merged = MergedLinear(layers)  # type: ignore[arg-type]
                for index, name in enumerate(names):
                    setattr(module, name, Part(merged, index))


def fuse_norms(model: nn.Module) -> None:
    """RMS norms become one operation each."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            fused = _fused_norm(child)
            if fused is not None:
                setattr(module, name, fused)


def _alike(layers: Sequence[Any]) -> bool:
    """Linear layers of one width of input and one number format, all with a bias or none."""
    if not all(type(layer) is nn.Linear for layer in layers):
        return False
    return len({(one.in_features, one.weight.dtype, one.weight.device, one.bias is None) for one in layers}) == 1


def _fused_norm(module: nn.Module) -> FusedRMSNorm | None:
    """The norm in one operation, if it proves to be one: some families add 1 to the weight, others norm in groups."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, nn.Parameter) or eps is None:
        return None
    fused = FusedRMSNorm(weight, float(eps))
    probe = torch.linspace(-2, 3, 3 * weight.numel(), device=weight.device).view(3, -1).to(weight.dtype)
    with torch.inference_mode():
        expected, got = module(probe), fused(probe)
    tolerance = 4 * torch.finfo(weight.dtype).eps * float(expected.float().abs().max())
    close = expected.dtype == got.dtype and bool(((expected - got).float().abs() <= tolerance).all())
    return fused if close else None
