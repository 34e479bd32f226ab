"""Models of every kind answer on several lanes what they answer on one: none shares what a part of a step needs."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pooling import Engine, Image, Intake, ModelSpec, PoolingRequest
from pooling.request import PackedBatch
from tests.headed import Headed
from tests.pictures import pictures

# A packed encoder, a window, a decoder, a bias of the longest input's size, and padded inputs.
EMBEDDERS = ["bert", "modernbert", "qwen3", "t5", "mpnet"]
HEADS = [Headed("bert", "sequence"), Headed("bert", "token")]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
LANES = 4


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    torch.set_num_threads(LANES)
    yield
    torch.set_num_threads(1)


async def answers(spec: ModelSpec, batch: PackedBatch, lanes: int) -> list[np.ndarray]:
    """Of some rounds: lanes are ahead of each other by chance."""
    torch.set_num_threads(lanes)
    engine = Engine.load(spec)
    assert engine._runner.lanes == lanes
    rounds = [(await engine.pool(batch)).data for _ in range(5 if lanes > 1 else 1)]
    engine.close()
    return rounds


async def compare(directory: Path, inputs: Sequence[Any]) -> None:
    spec = ModelSpec(source=str(directory), dtype="float32", max_batch_tokens=160)
    batch = Intake.load(spec).tokenize(PoolingRequest(inputs))
    (alone,) = await answers(spec, batch, 1)
    for rows in await answers(spec, batch, LANES):
        np.testing.assert_allclose(rows, alone, atol=2e-5 * float(np.abs(alone).max()))


def texts(count: int = 60, longest: int = 20) -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, int(draw.integers(1, longest)))) for _ in range(count)]


@pytest.mark.parametrize("name", EMBEDDERS)
async def test_vectors(name: str, checkpoint: Callable[[str], Path]) -> None:
    await compare(checkpoint(name), texts())


@pytest.mark.parametrize("headed", HEADS, ids=str)
async def test_heads(headed: Headed, tmp_path: Path) -> None:
    await compare(headed.write(tmp_path), texts())


async def test_texts_and_images_of_two_towers(checkpoint: Callable[[str], Path]) -> None:
    images = [Image.of(one) for one in pictures()]
    await compare(checkpoint("clip"), [*texts(20, longest=8), *images])
