"""QuantizedLinear: a linear layer of 8-bit weights, whose inputs become 8-bit numbers too, each token's by a scale."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from pooling.config import Quantization
from pooling.errors import ConfigError
from pooling.native import native
from pooling.prepacked import NO_ACTIVATION, take_activation

# Of e4m3, the format of 8 bits with 3 for the mantissa.
_MOST_FP8 = 448.0
# Of each input that is watched.
_ROWS = 8
# What balancing has to leave of a layer's error: it is one more pass over its inputs.
_WORTH_BALANCING = 0.9
# How far from the usual: a feature that was small in what was watched may be larger in something else.
_MOST_BALANCE = 16.0


@native
def activated(x: Tensor, activation: str, algorithm: str) -> Tensor:
    """As oneDNN calls them."""
    if activation == "gelu":
        return gelu(x, approximate=algorithm)
    return torch.relu(x) if activation == "relu" else x


@native
def _largest(x: Tensor) -> Tensor:
    """Of each row [rows, dim], the largest magnitude [rows, 1], found among their bits: three times as fast."""
    if x.dtype == torch.bfloat16:
        bits = torch.view_copy(x, dtype=torch.int16).bitwise_and_(0x7FFF)
        return torch.view_copy(bits.amax(1, True), dtype=torch.bfloat16)
    bits = torch.view_copy(x, dtype=torch.int32).bitwise_and_(0x7FFFFFFF)
    return torch.view_copy(bits.amax(1, True), dtype=torch.float32)


@native
def int8_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, scales: Tensor, zeros: Tensor, balance: Tensor
) -> Tensor:
    """x [tokens, in] bfloat16 or float32 -> [tokens, out]: a product of whole numbers, summed up exactly.

    127 stands for the largest magnitude of a token, whatever the others of the
    step are. oneDNN's fast product takes whole numbers with 128 added.
    """
    if balance.numel():
        x = x * balance
    size = (_largest(x).float() / 127).clamp_min(1e-30).to(x.dtype)  # rounded first: then what is divided is right
    steps = (x * size.float().reciprocal()).round_().to(torch.int8)  # which torch does seven times as fast as to uint8
    given = steps.bitwise_xor_(-128).to(torch.uint8)  # the same bits as with 128 added
    nothing: list[int | float | complex | None] = []
    product = torch.ops.onednn.qlinear_pointwise(
        given, 1.0, 128, weight, scales, zeros, None, 1.0, 0, x.dtype, "none", nothing, ""
    )
    return product.mul_(size) if bias is None else torch.addcmul(bias, product, size)


def fp8_linear(x: Tensor, weight: Tensor, bias: Tensor | None, scales: Tensor) -> Tensor:
    """x [tokens, in] bfloat16 -> [tokens, out]; weight [in, out] by columns, scales [1, out]."""
    size = (x.abs().amax(1, keepdim=True).float() / _MOST_FP8).clamp_min(1e-30)
    given = (x / size).to(torch.float8_e4m3fn)
    product: Tensor = torch._scaled_mm(given, weight, scale_a=size, scale_b=scales, out_dtype=x.dtype)
    return product if bias is None else product + bias


class QuantizedLinear(nn.Module):
    """x [..., in] -> [..., out], followed by `activation` as in prepacked.py.

    Weights are quantised once, each output's by its own scale; inputs at every
    call, each token's. int8 is for CPUs with VNNI, where such products run at
    twice the rate of bfloat16; fp8 for GPUs from Ada and Hopper on.

    Beside the few features of an input that are large in all tokens the others
    would be few whole numbers. So for int8 features and weights are balanced
    before, as SmoothQuant does (arxiv.org/abs/2211.10438), where that helps: the one
    times, the other by the same, that the largest of both are alike. seen: inputs
    by which this is found out, None: there are none.
    """

    def __init__(
        self,
        linear: nn.Linear,
        kind: Quantization,
        tokens: int,
        activation: tuple[str, str] = NO_ACTIVATION,
        seen: "Seen | None" = None,
    ) -> None:
        super().__init__()
        self.kind, self.activation = kind, activation
        self._dtype = linear.weight.dtype
        self.bias = None if linear.bias is None else linear.bias.detach()
        wide = linear.weight.detach().float()
        if kind == "int8":
            balance = None if seen is None else _balance(wide, seen)
            self.balance = wide.new_empty(0) if balance is None else balance.to(linear.weight.dtype)
            wide = wide if balance is None else wide / self.balance.float()
        largest = wide.abs().amax(1, keepdim=True).clamp_min(1e-30)
        if kind == "int8":
            whole = (wide * (127 / largest)).round().to(torch.int8)
            self.packed = torch.ops.onednn.qlinear_prepack(whole, [tokens, linear.in_features])
            self.scales = (largest[:, 0] / 127).contiguous()
            self.zeros = torch.zeros(linear.out_features, dtype=torch.int64)
        else:
            self.packed = (wide * (_MOST_FP8 / largest)).to(torch.float8_e4m3fn).t()
            self.scales = (largest / _MOST_FP8).t()

    @property
    def weight(self) -> Tensor:
        """T5 asks its layers for the dtype of their `weight`, and gives them that."""
        return torch.empty(0, dtype=self._dtype)

    @property
    def tensors(self) -> list[Tensor]:
        """What compiled code needs of an int8 layer with a bias."""
        assert self.bias is not None
        return [self.packed, self.bias, self.scales, self.zeros, self.balance]

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if self.kind == "int8":
            answer = int8_linear(rows, self.packed, self.bias, self.scales, self.zeros, self.balance)
        else:
            answer = fp8_linear(rows, self.packed, self.bias, self.scales)
        return activated(answer, *self.activation).view(*x.shape[:-1], answer.shape[-1])


def check_quantization(kind: Quantization, name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ConfigError where a device has no products of that kind, or none that are faster."""
    if kind == "int8" and device.type != "cpu":
        raise ConfigError(f"{name}: quantization int8 is for CPUs; on a GPU there is fp8")
    if kind == "fp8" and device.type != "cuda":
        raise ConfigError(f"{name}: quantization fp8 is for GPUs; on a CPU there is int8")
    if kind == "int8" and not torch._C._has_mkldnn:
        raise ConfigError(f"{name}: quantization int8 needs a torch that was built with oneDNN")
    if kind == "int8" and not torch.cpu._is_vnni_supported():
        raise ConfigError(f"{name}: quantization int8 needs a CPU with AVX-512 VNNI, and this one has none")
    if kind == "fp8" and torch.cuda.get_device_capability(device) < (8, 9):
        raise ConfigError(f"{name}: quantization fp8 needs a GPU with FP8 units (Ada, Hopper or later)")
    allowed = (torch.bfloat16,) if kind == "fp8" else (torch.bfloat16, torch.float32)
    if dtype not in allowed:
        known, given = (" or ".join(str(one).removeprefix("torch.") for one in some) for some in (allowed, [dtype]))
        raise ConfigError(f"{name}: quantization {kind} is beside dtype {known}, not {given}")


def quantize(model: nn.Module, kind: Quantization, tokens: int, run: Callable[[], object]) -> int:
    """Replaces a model's linear layers in place, for steps of about so many tokens; returns how many.

    run: lets the model answer something, from which the sizes of features are learnt.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and (kind == "int8" or not (module.in_features % 16 or module.out_features % 16))
    }
    inputs = _watch(found, run) if kind == "int8" else {}
    names = list(found)
    del found  # who holds the layers themselves has all weights twice before the last one is replaced
    for name in names:
        place, _, leaf = name.rpartition(".")
        parent = model.get_submodule(place)
        layer: nn.Linear = getattr(parent, leaf)
        quantized = QuantizedLinear(layer, kind, tokens, take_activation(parent, leaf), inputs.pop(name, None))
        setattr(parent, leaf, quantized)
        del layer
    return len(names)


@dataclass(slots=True)
class Seen:
    """Of what a layer was given: the largest magnitude of each feature [in], and some rows [rows, in], in float32."""

    largest: Tensor
    rows: Tensor


def _watch(layers: dict[str, nn.Linear], run: Callable[[], object]) -> dict[str, Seen]:
    """What each layer is given while `run` runs; one that is given nothing is left out."""
    seen: dict[str, Seen] = {}

    def watch(name: str) -> Callable[..., None]:
        def see(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            rows = given[0].detach().flatten(0, -2).float()
            largest, some = rows.abs().amax(0), rows[-_ROWS:]
            before = seen.get(name)
            if before is not None:
                largest, some = torch.maximum(before.largest, largest), torch.cat([before.rows, some])
            seen[name] = Seen(largest, some)

        return see

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _balance(weight: Tensor, seen: Seen) -> Tensor | None:
    """By what features are multiplied [in], None if that is not worth its time; weight [out, in] float32."""
    columns = weight.abs().amax(0)
    known = (columns > 0) & (seen.largest > 0)  # of others nothing can be said
    if not known.any():
        return None
    ratio = torch.where(known, columns / seen.largest, 1.0).sqrt()
    usual = ratio[known].median()
    balance = torch.where(known, ratio.clamp(usual / _MOST_BALANCE, usual * _MOST_BALANCE), usual)
    truth = seen.rows @ weight.t()
    plain = (_rounded(seen.rows) @ _rounded(weight).t() - truth).norm()
    balanced = (_rounded(seen.rows * balance) @ _rounded(weight / balance).t() - truth).norm()
    return balance if float(balanced) < _WORTH_BALANCING * float(plain) else None


def _rounded(rows: Tensor) -> Tensor:
    """As they are after each row has been quantised."""
    size = rows.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
    return (rows / size).round() * size
