"""Tuned layers: the same numbers as the layers they stand for, whoever asks in whatever order."""

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from pooling.config import ModelSpec
from pooling.forward import PackedForward
from pooling.runner import LocalRunner
from pooling.tuned import FusedRMSNorm, MergedLinear, Part, fuse_norms, merge

NAMES = ("query", "key", "value")


class Attention(nn.Module):
    def __init__(self, bias: bool = True, **others: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, width in zip(NAMES, (6, 4, 5), strict=True):
            setattr(self, name, others.get(name, nn.Linear(8, width, bias)))

    def ask(self, name: str, x: Tensor) -> Tensor:
        answer: Tensor = getattr(self, name)(x)
        return answer


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("order", ["query key value", "value query key", "key key value query", "query"])
def test_siblings_answer_as_apart_in_any_order(bias: bool, order: str) -> None:
    apart, merged = Attention(bias), Attention(bias)
    merge(merged)
    assert isinstance(merged.query, Part)
    first, second = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    for x in (first, second, first):
        for name in order.split():
            torch.testing.assert_close(merged.ask(name, x), apart.ask(name, x))


def test_siblings_that_are_asked_of_different_inputs_in_turns_do_not_mix_them_up() -> None:
    apart, merged = Attention(), Attention()
    merge(merged)
    first, second = torch.randn(3, 8), torch.randn(5, 8)
    for name, x in (("query", first), ("key", second), ("value", second), ("key", first), ("value", first)):
        torch.testing.assert_close(merged.ask(name, x), apart.ask(name, x))


def test_threads_have_their_own_products() -> None:
    apart, merged = Attention(), Attention()
    merge(merged)
    x = torch.randn(3, 8)
    merged.ask("query", x)
    wrong: list[str] = []

    def other() -> None:
        with torch.inference_mode():
            mine = torch.randn(4, 8)
            wrong.extend(name for name in NAMES if not torch.allclose(merged.ask(name, mine), apart.ask(name, mine)))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert not wrong
    torch.testing.assert_close(merged.ask("key", x), apart.ask("key", x))


def test_a_product_is_computed_once_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    merged = Attention()
    merge(merged)
    counted, x = [], torch.randn(3, 8)
    owner = merged.query.merged
    assert isinstance(owner, MergedLinear)
    owner.linear.register_forward_hook(lambda *_: counted.append(1))
    for name in NAMES:
        merged.ask(name, x)
    assert len(counted) == 1
    gone = weakref.ref(x)
    del x
    gc.collect()
    assert gone() is None


def test_layers_that_are_merged_are_let_go_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleList([Attention() for _ in range(4)])
    layers = [weakref.ref(attention.query) for attention in model]
    alive: list[int] = []
    build = MergedLinear.__init__

    def counted(self: MergedLinear, given: list[nn.Linear]) -> None:
        gc.collect()
        alive.append(sum(layer() is not None for layer in layers))
        build(self, given)

    monkeypatch.setattr(MergedLinear, "__init__", counted)
    merge(model)
    assert alive == [4, 3, 2, 1]  # else all weights lie in memory twice at the end


@pytest.mark.parametrize(
    "odd",
    [
        nn.Linear(9, 4),
        nn.Linear(8, 4, bias=False),
        nn.Linear(8, 4, dtype=torch.bfloat16),
        nn.Identity(),
        nn.Sequential(nn.Linear(8, 4)),
    ],
)
def test_layers_that_differ_stay_apart(odd: nn.Module) -> None:
    kept = Attention(key=odd)
    merge(kept)
    assert not any(isinstance(module, Part) for module in kept.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_in_one_operation_is_the_same_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = Qwen3RMSNorm(64, eps=1e-6)
    norm.weight.data.normal_(1, 0.3)
    model = nn.ModuleDict({"norm": norm.to(dtype)})
    x = torch.randn(7, 64).to(dtype) * 3
    expected = norm(x)
    fuse_norms(model)
    assert isinstance(model["norm"], FusedRMSNorm)
    got = model["norm"](x)
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected)


def test_a_norm_of_another_kind_is_kept() -> None:
    class HalfRMSNorm(Qwen3RMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states) / 2

    model = nn.ModuleDict({"gemma": GemmaRMSNorm(64), "halved": HalfRMSNorm(64)})
    model["gemma"].variance_epsilon = model["gemma"].eps
    fuse_norms(model)
    assert [type(module) for module in model.values()] == [GemmaRMSNorm, HalfRMSNorm]


# Siblings under each of their names, with and without biases, with fewer key heads, and in a mixture of experts.
@pytest.mark.parametrize("family", ["bert", "distilbert", "qwen3", "llama", "gemma3", "qwen3-moe"])
def test_a_merged_model_answers_as_before(
    checkpoint: Callable[[str], Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pooling.tuned.prepack", lambda *_: 0)  # which takes the layers for itself on a CPU
    runner = LocalRunner(ModelSpec(source=str(checkpoint(family)), device="cpu", dtype="float32"))
    forward = runner._forward
    assert isinstance(forward, PackedForward)
    lengths = np.array([30, 7, 1, 50], np.int32)
    ids = np.random.default_rng(0).integers(5, runner.card.vocab_size, lengths.sum()).astype(np.int32)
    step = forward.prepare(ids, lengths)
    before = forward(step)
    merge(forward.model)
    merged = [module for module in forward.model.modules() if isinstance(module, MergedLinear)]
    layers = forward.model.config.get_text_config().num_hidden_layers
    assert len(merged) >= layers
    torch.testing.assert_close(forward(step), before, atol=2e-6, rtol=0)
