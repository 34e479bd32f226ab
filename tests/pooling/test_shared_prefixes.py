"""What inputs of a causal model begin with alike is computed once, and the answers are those of each input alone."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pooling.config import ModelSpec
from pooling.engine import Engine
from pooling.forward import PackedForward
from pooling.request import PackedBatch
from pooling.runner import LocalRunner
from pooling.shared_prefixes import LEAST_TOKENS, MOST_SPREAD, Alike, SharedPrefixes, overlaps
from tests.checkpoints.decoders import DECODERS, FIRST_DECODERS

Checkpoints = Callable[[str], Path]
PREFIX = 40
BOTH_WAYS = [family.name for family in DECODERS if family.config.get("is_causal") is False or "both" in family.name]
BOTH_WAYS.append("embedding-gemma")
CAUSAL = [
    family.name for family in (*FIRST_DECODERS, *DECODERS) if family.path == "packed" and family.name not in BOTH_WAYS
]


def pack(inputs: list[list[int]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    return np.concatenate([np.array(one, np.int32) for one in inputs]), np.array([len(one) for one in inputs], np.int32)


def drawn(vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Two clusters with a beginning each, an input that is the beginning of another, one repeated, two of their own."""
    draw = np.random.default_rng(seed)

    def some(count: int) -> list[int]:
        return draw.integers(5, vocabulary, count).tolist()

    first, second = some(PREFIX), some(LEAST_TOKENS)
    inputs = [[*first, *some(size)] for size in (9, 3, 3, 1)]
    inputs += [[*inputs[0][: PREFIX + 5], *some(6)], first, inputs[1]]
    inputs += [[*second, *some(size)] for size in (30, 30, 2)]
    return [*inputs, some(50), some(3)]


def test_each_token_is_computed_once_and_found_again() -> None:
    inputs = drawn(1_000)
    ids, lengths = pack(inputs)
    shared = SharedPrefixes.of(ids, lengths, worth=1)
    assert shared is not None
    assert len(shared.computed) == len({tuple(one[: at + 1]) for one in inputs for at in range(len(one))})
    assert (ids[shared.computed][shared.places] == ids).all()
    row = 0
    for index, (own, whole) in zip(shared.inputs.tolist(), shared.sizes.tolist(), strict=True):
        start = int(lengths[:index].sum())
        assert whole == lengths[index]
        assert shared.places[start + whole - own : start + whole].tolist() == list(range(row, row + own))
        row += own
    assert row == len(shared.computed)


def test_what_is_not_worth_it_is_left() -> None:
    ids, lengths = pack(drawn(1_000))
    saved = len(ids) - len(SharedPrefixes.of(ids, lengths, 1).computed)  # type: ignore[union-attr]
    assert SharedPrefixes.of(ids, lengths, saved) is not None
    assert SharedPrefixes.of(ids, lengths, saved + 1) is None
    for inputs in ([[*range(LEAST_TOKENS - 1), one] for one in (90, 91)], [[1, 2, 3], [1, 2, 3]], [[7]]):
        assert SharedPrefixes.of(*pack(inputs), worth=1) is None
        assert Alike.of(*pack(inputs)) is None


def test_alike_inputs_are_taken_one_after_another_and_cost_what_is_their_own() -> None:
    inputs = [[1] * 20 + [5], [2] * 20 + [6], [1] * 20 + [9] * 30, [2] * 20 + [3] * 30, [4]]
    found = Alike.of(*pack(inputs))
    assert found is not None
    order, cost, again = found
    assert again.tolist() == [0, 20, 20, 0, 0]
    assert order.tolist() == [0, 2, 3, 1, 4]
    assert cost.tolist() == [21, -(-21 // MOST_SPREAD), 30, 50, 1]
    assert overlaps(*pack(inputs))[1].tolist() == [0, 20, 20, 0, 0]


@pytest.mark.parametrize("name", CAUSAL)
def test_answers_are_those_of_each_input_alone(checkpoint: Checkpoints, name: str) -> None:
    runner = LocalRunner(ModelSpec(source=str(checkpoint(name)), dtype="float32", device="cpu"))
    forward = runner._forward
    assert isinstance(forward, PackedForward)
    assert forward.shares_prefixes
    inputs = drawn(runner.card.vocab_size)
    ids, lengths = pack(inputs)
    with torch.inference_mode():
        step = forward.prepare(ids, lengths)
        assert step.ids.shape[1] < len(ids) * 2 // 3
        hidden = forward(step)
        alone = torch.cat([forward(forward.prepare(*pack([one]))) for one in inputs])
    assert hidden.shape == alone.shape
    assert float((hidden - alone).norm() / alone.norm()) < 1e-5


@pytest.mark.parametrize("name", [*BOTH_WAYS, "bert", "t5"])
def test_nothing_is_shared_where_a_token_sees_later_ones(checkpoint: Checkpoints, name: str) -> None:
    assert not LocalRunner(ModelSpec(source=str(checkpoint(name)), dtype="float32", device="cpu")).shares_prefixes


def test_a_model_that_does_not_prove_it_shares_nothing(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pooling.forward._is_causal", lambda model: True)
    runner = LocalRunner(ModelSpec(source=str(checkpoint("qwen2-both-ways")), dtype="float32", device="cpu"))
    assert not runner.shares_prefixes
    assert "computed for each" in caplog.text


@pytest.mark.parametrize("task", ["embed", "token_embed"])
async def test_an_engine_computes_a_prefix_once_and_answers_in_order(checkpoint: Checkpoints, task: str) -> None:
    spec = ModelSpec(source=str(checkpoint("qwen3")), dtype="float32", device="cpu", max_batch_tokens=1_024)
    engine = Engine.load(spec)
    draw = np.random.default_rng(1)
    heads = [draw.integers(5, engine.card.vocab_size, 100).tolist() for _ in range(3)]
    inputs = [
        [*heads[index % 3], *draw.integers(5, engine.card.vocab_size, 26 + index % 7).tolist()] for index in range(60)
    ]
    try:
        together = (await engine.pool(PackedBatch(*pack(inputs), task))).rows()
        computed = engine.stats()["tokens"]
        assert computed < sum(map(len, inputs)) / 2
        for one, rows in zip(inputs[::7], together[::7], strict=True):
            alone = (await engine.pool(PackedBatch(*pack([one]), task))).rows()[0]
            assert np.allclose(rows, alone, atol=1e-4)
    finally:
        engine.close()


async def test_many_small_requests_that_begin_alike_are_all_answered(checkpoint: Checkpoints) -> None:
    """Whoever has been served whole may not be asked for more of it."""
    engine = Engine.load(ModelSpec(source=str(checkpoint("qwen3")), dtype="float32", device="cpu"))
    draw = np.random.default_rng(2)
    beginning = draw.integers(5, engine.card.vocab_size, 40).tolist()

    def request() -> list[list[int]]:
        return [
            [*beginning, *draw.integers(5, engine.card.vocab_size, int(size)).tolist()]
            for size in draw.integers(1, 30, 10)
        ]

    try:
        for _ in range(4):
            requests = [request() for _ in range(8)]
            asked = (engine.pool(PackedBatch(*pack(inputs))) for inputs in requests)
            answers = await asyncio.wait_for(asyncio.gather(*asked), 60)
            for inputs, answer in zip(requests, answers, strict=True):
                alone = (await engine.pool(PackedBatch(*pack(inputs[3:4])))).data[0]
                assert np.allclose(answer.data[3], alone, atol=1e-4)
        assert engine.healthy
        assert engine.queued_tokens == 0
    finally:
        engine.close()
