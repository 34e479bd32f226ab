"""Linear layers of 8-bit numbers: the product is exact, each token by its own scale, and what it costs is measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pooling import LLM, ModelSpec
from pooling.errors import ConfigError
from pooling.quantized import QuantizedLinear, Seen, _watch, check_quantization, quantize
from pooling.runner import LocalRunner
from tests.checkpoints import MINILM
from tests.texts import words

Checkpoints = Callable[[str], Path]
TEXTS = [words(count, count) for count in (1, 3, 8, 20, 60)]
needs_vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="no AVX-512 VNNI")


def layer(width: int = 48, out: int = 40, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, out, bias=bias)


def inputs(width: int = 48, rows: int = 33) -> Tensor:
    """Rows of very different sizes, and some features that are large in all of them."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(rows, width, generator=draw) * torch.logspace(-3, 3, rows)[:, None]
    x[:, 3] *= 30
    return x


def rounded(x: Tensor) -> Tensor:
    size = x.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
    return (x / size).round() * size


@needs_vnni
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_product_is_that_of_the_rounded_numbers(bias: bool) -> None:
    linear, x = layer(bias=bias), inputs()
    expected = rounded(x) @ rounded(linear.weight).t() + (0 if linear.bias is None else linear.bias)
    got = QuantizedLinear(linear, "int8", tokens=64)(x)
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-6)
    zero = QuantizedLinear(linear, "int8", tokens=64)(torch.zeros(2, 48))
    assert torch.equal(zero, torch.zeros(2, 40) if linear.bias is None else linear.bias.expand(2, 40))


@needs_vnni
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_token_does_not_see_the_scale_of_another(dtype: torch.dtype) -> None:
    quantized, x = QuantizedLinear(layer().to(dtype), "int8", tokens=64), inputs().to(dtype)
    other = x.clone()
    other[1:] *= 100
    assert torch.equal(quantized(x)[0], quantized(other)[0])
    assert torch.equal(quantized(x[None])[0], quantized(x))


@needs_vnni
@torch.inference_mode()
def test_features_are_balanced_where_that_helps() -> None:
    linear, x = layer(), inputs()
    truth = linear(x)
    seen = Seen(x.abs().amax(0), x)
    plain, balanced = (QuantizedLinear(linear, "int8", 64, seen=given) for given in (None, seen))
    assert (plain.balance.numel(), balanced.balance.numel()) == (0, 48)
    assert float((balanced(x) - truth).norm()) < 0.7 * float((plain(x) - truth).norm())
    even = torch.randn(33, 48)
    assert QuantizedLinear(linear, "int8", 64, seen=Seen(even.abs().amax(0), even)).balance.numel() == 0


@needs_vnni
@torch.inference_mode()
def test_features_that_were_not_seen_are_not_trusted_to_stay_small() -> None:
    linear, x = layer(), inputs()
    dead = x.clone()
    dead[:, 20:30] = 0
    quantized = QuantizedLinear(linear, "int8", 64, seen=Seen(dead.abs().amax(0), dead))
    assert quantized.balance.numel()
    truth = linear(x)
    assert float((quantized(x) - truth).norm() / truth.norm()) < 0.03


@needs_vnni
@torch.inference_mode()
def test_no_rows_and_numbers_that_are_none_are_what_they_are_elsewhere() -> None:
    quantized = QuantizedLinear(layer(), "int8", tokens=64)
    assert quantized(torch.zeros(2, 0, 48)).shape == (2, 0, 40)
    for odd in (torch.nan, torch.inf):
        x = inputs()
        x[3, 5] = odd
        answer = quantized(x)
        assert not answer[3].isfinite().any()
        assert answer[4].isfinite().all()


@needs_vnni
def test_a_slightly_wrong_attention_is_found_before_quantising(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pooling.attention import Rule

    monkeypatch.setattr("pooling.choose._LEAST_COSINE", 0.0)
    monkeypatch.setattr("pooling.attention.Rule", lambda **given: Rule(**{**given, "scale": given["scale"] * 1.1}))
    with pytest.raises(ConfigError, match="its answers differ from the model's own"):
        LocalRunner(ModelSpec(source=str(checkpoint("qwen3")), dtype="float32", device="cpu", quantization="int8"))


def test_what_layers_are_given_is_watched_and_nothing_stays_behind() -> None:
    model = nn.Sequential(layer(), nn.ReLU(), layer(40, 8))
    unused = layer(5, 5)
    first, second = inputs(), inputs() * 2
    seen = _watch({"0": model[0], "2": model[2], "x": unused}, lambda: (model(first), model(second)))  # type: ignore[dict-item]
    assert seen.keys() == {"0", "2"}
    assert torch.equal(seen["0"].largest, second.abs().amax(0))
    assert len(seen["0"].rows) == 16
    assert not model[0]._forward_pre_hooks


@torch.inference_mode()
def test_fp8_is_that_of_the_rounded_numbers() -> None:
    """torch multiplies them on a CPU too, slowly."""
    linear = layer(64, 48).bfloat16()
    x = (inputs(64) / 30).bfloat16()
    quantized = QuantizedLinear(linear, "fp8", tokens=64)
    exact = linear(x).float()
    error = (quantized(x).float() - exact).norm(dim=1) / exact.norm(dim=1)
    assert 0.001 < float(error.max()) < 0.08
    wide = nn.Sequential(linear, layer(48, 40).bfloat16())
    assert quantize(wide, "fp8", 64, lambda: None) == 1  # the kernel takes multiples of 16


@needs_vnni
def test_the_real_model_stays_close_and_says_how_close(caplog: pytest.LogCaptureFixture) -> None:
    rows = []
    for quantization in (None, "int8"):
        with LLM(MINILM, dtype="float32", quantization=quantization) as llm:
            rows.append(np.array([one.outputs.embedding for one in llm.embed(TEXTS, use_tqdm=False)]))
    cosines = (rows[0] * rows[1]).sum(1)
    assert 0.99 < cosines.min() < 0.99999
    assert "quantization int8 in 24 layers (random tokens: cosine 0.99" in caplog.text


@needs_vnni
@pytest.mark.parametrize("family", ["bert", "xlmr", "modernbert", "t5", "qwen3", "gemma2", "qwen3-moe"])
def test_families_keep_their_answers(checkpoint: Checkpoints, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small random models are sharper than real ones: they lose more."""
    monkeypatch.setattr("pooling.choose._LEAST_COSINE", 0.5)
    rows = []
    for quantization in (None, "int8"):
        with LLM(checkpoint(family), dtype="float32", device="cpu", quantization=quantization) as llm:
            rows.append(np.array([one.outputs.embedding for one in llm.embed(TEXTS, use_tqdm=False)]))
    assert (rows[0] * rows[1]).sum(1).mean() > 0.9


@pytest.mark.parametrize(
    ("family", "asked", "reason"),
    [
        ("bert", {"quantization": "fp8"}, "fp8 is for GPUs; on a CPU there is int8"),
        ("bert", {"quantization": "int8", "tensor_parallel_size": 2}, "no quantization for models that are split"),
        ("clip", {"quantization": "int8"}, "no quantization for models that take images"),
        ("bloom", {"quantization": "int8"}, "quantization is for models that run packed"),
        ("gpt2", {"quantization": "int8"}, "no linear layers that quantization int8 is for"),
        ("bert", {"quantization": "int4"}, "Input should be 'int8' or 'fp8'"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(
    checkpoint: Checkpoints, family: str, asked: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)  # or that would be the reason
    with pytest.raises(ConfigError, match=reason):
        LLM(checkpoint(family), dtype="float32", device="cpu", **asked)


def test_a_device_without_such_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    with pytest.raises(ConfigError, match="int8 is for CPUs; on a GPU there is fp8"):
        check_quantization("int8", "m", cuda, torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ConfigError, match="a GPU with FP8 units"):
        check_quantization("fp8", "m", cuda, torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(ConfigError, match="beside dtype bfloat16, not float16"):
        check_quantization("fp8", "m", cuda, torch.float16)
    check_quantization("fp8", "m", cuda, torch.bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    with pytest.raises(ConfigError, match="beside dtype bfloat16 or float32, not float16"):
        check_quantization("int8", "m", torch.device("cpu"), torch.float16)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ConfigError, match="needs a CPU with AVX-512 VNNI"):
        check_quantization("int8", "m", torch.device("cpu"), torch.float32)


@needs_vnni
def test_a_model_that_loses_too_much_is_refused(checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooling.choose._LEAST_COSINE", 0.99999)
    with pytest.raises(ConfigError, match=r"changes what the model answers too much: .* cosine of 0\.9\d+"):
        LocalRunner(ModelSpec(source=MINILM, dtype="float32", device="cpu", quantization="int8"))
