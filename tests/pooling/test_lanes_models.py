"""Models of every kind answer on several lanes what they answer on one: none shares what a part of a step needs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pooling import Engine, Intake, ModelSpec, PoolingRequest
from pooling.heads.transformers_head import TransformersHead
from pooling.request import PackedBatch
from tests.headed import HEADED

# A packed encoder, a window, a decoder, a bias of the longest input's size, and padded inputs.
EMBEDDERS = ["bert", "modernbert", "qwen3", "t5", "mpnet"]
WORDS = "one two three four five six seven eight nine ten eleven twelve".split()


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


async def answers(spec: ModelSpec, batch: PackedBatch) -> list[np.ndarray]:
    """Of some rounds, each in steps of another make."""
    engine = Engine.load(spec)
    rounds = [(await engine.pool(batch)).data for _ in range(5)]
    assert engine._runner.lanes == torch.get_num_threads()
    engine.close()
    return rounds


def texts(draw: np.random.Generator) -> list[str]:
    return [" ".join(draw.choice(WORDS, int(draw.integers(1, 20)))) for _ in range(60)]


async def compare(spec: ModelSpec) -> None:
    batch = Intake.load(spec).tokenize(PoolingRequest(texts(np.random.default_rng(0))))
    on_lanes = await answers(spec, batch)
    torch.set_num_threads(1)
    alone = (await answers(spec, batch))[0]
    for rows in on_lanes:
        np.testing.assert_allclose(rows, alone, atol=2e-6)


@pytest.mark.parametrize("name", EMBEDDERS)
async def test_vectors(name: str, checkpoint: Callable[[str], Path]) -> None:
    await compare(ModelSpec(source=str(checkpoint(name)), dtype="float32", max_batch_tokens=128))
