"""Small steps replayed from CUDA graphs against the same steps without. Needs a CUDA device, but no Ray."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pooling.config import ModelSpec
from pooling.forward import PackedForward
from pooling.request import PackedBatch
from pooling.runner import LocalRunner

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
STEPS = [[30, 7, 1], [2], [60] * 30, [1] * 40, [15] * 10, [33], [64, 64, 64], [5, 4]]


@pytest.mark.parametrize("family", ["bert", "xlmr", "modernbert", "qwen3", "llama"])
def test_replayed_steps_answer_as_others_do(checkpoint: Callable[[str], Path], family: str) -> None:
    source = str(checkpoint(family))
    replayed, eager = (LocalRunner(ModelSpec(source=source, device="cuda", enforce_eager=given)) for given in (0, 1))
    assert isinstance(replayed._forward, PackedForward)
    assert replayed._forward.graphs is not None
    assert eager.describe()["cuda_graphs"] == ""
    before, draw = replayed._forward.graphs.replayed, np.random.default_rng(0)
    for lengths in STEPS:
        ids = draw.integers(5, eager.card.vocab_size, sum(lengths)).astype(np.int32)
        batch = PackedBatch(ids, np.array(lengths, np.int32), task=eager.card.tasks[0])
        rows = [runner.launch(runner.prepare([batch])).wait()[0].data for runner in (replayed, eager)]
        a, b = (row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows)
        # The products are of other sizes, and so rounded otherwise.
        assert float((a * b).sum(1).min()) > 0.99
    assert replayed._forward.graphs.replayed == before + len(STEPS)
