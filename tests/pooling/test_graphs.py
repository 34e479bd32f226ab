"""Recorded steps: the answers of steps that are not, in whatever order they come and whatever the one before left.

Without a GPU a recorder plays: it calls the function again, over the same memory, into the same memory. As there, the
attention knows the inputs from cu_seqlens alone, and what lies behind the last of them is anything.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pooling.attention import Packing
from pooling.config import ModelSpec
from pooling.forward import PackedForward
from pooling.graphs import Graphs
from pooling.loading.describe import describe
from pooling.request import PackedBatch
from pooling.runner import LocalRunner
from pooling.self_check import check

MOST = 200


def play(function: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    hidden = function().clone()
    return lambda: hidden.copy_(function()), hidden


@pytest.fixture(autouse=True)
def _attention_reads_cu_seqlens(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PackedForward._run

    def run(self: PackedForward, ids: Tensor, positions: Tensor, types: Tensor | None, packing: Packing) -> Tensor:
        if packing.groups or packing.prefixed is not None:
            return whole(self, ids, positions, types, packing)
        assert packing.cu_seqlens is not None
        lengths = [length for length in packing.cu_seqlens.diff().tolist() if length]
        assert max(lengths) <= packing.max_length
        packing = Packing(Packing.of(lengths).groups, packing.max_length, packing.cu_seqlens)
        hidden = whole(self, ids, positions, types, packing)
        hidden[int(packing.cu_seqlens[-1]) :] = float("nan")
        return hidden

    monkeypatch.setattr(PackedForward, "_run", run)


def recorded(source: Path) -> tuple[LocalRunner, PackedForward, Graphs]:
    runner = LocalRunner(ModelSpec(source=str(source), device="cpu", dtype="float32"))
    forward = runner._forward
    assert isinstance(forward, PackedForward)
    forward.record(play, MOST, replace(runner.card, max_model_len=120))
    assert forward.graphs is not None
    return runner, forward, forward.graphs


def drawn(runner: LocalRunner, lengths: list[int], seed: int, pairs: bool) -> PackedBatch:
    draw = np.random.default_rng(seed)
    ids = draw.integers(5, runner.card.vocab_size, sum(lengths)).astype(np.int32)
    second = np.array([length // 2 for length in lengths], np.int32) if pairs else None
    return PackedBatch(ids, np.array(lengths, np.int32), task=runner.card.tasks[0], second=second)


def rows(runner: LocalRunner, batch: PackedBatch) -> np.ndarray:
    return runner.launch(runner.prepare([batch])).wait()[0].data


# GPT-2 takes token types too, and adds a token's vector for each.
@pytest.mark.parametrize("family", ["bert", "xlmr", "qwen3", "gpt2"])
def test_recorded_steps_prove_themselves_at_the_start(checkpoint: Callable[[str], Path], family: str) -> None:
    source = checkpoint(family)
    _, forward, graphs = recorded(source)
    assert check(forward, describe(ModelSpec(source=str(source))), torch.float32) is None
    assert graphs.replayed == 3


# Token types; positions behind the padding id; rotary positions and causal attention.
@pytest.mark.parametrize("family", ["bert", "xlmr", "qwen3"])
def test_recorded_steps_answer_as_others_do(checkpoint: Callable[[str], Path], family: str) -> None:
    runner, forward, graphs = recorded(checkpoint(family))
    steps = [[30, 7, 1], [2], [120, 80], [1] * 40, [15] * 10, [33], [64, 64, 64], [5, 4]]
    for seed, lengths in enumerate(steps):
        batch = drawn(runner, lengths, seed, pairs=family == "bert" and seed % 2 == 0)
        got = rows(runner, batch)
        assert graphs.replayed == seed + 1
        forward.graphs = None
        expected = rows(runner, batch)
        forward.graphs = graphs
        np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize(
    "lengths",
    [[100, 101], [121], [1] * 65],
    ids=["more tokens than the largest", "longer than any", "more inputs than are provided for"],
)
def test_a_step_without_room_in_any_runs_as_it_is(checkpoint: Callable[[str], Path], lengths: list[int]) -> None:
    runner, forward, graphs = recorded(checkpoint("bert"))
    batch = drawn(runner, lengths, 0, pairs=False)
    got = rows(runner, batch)
    assert graphs.replayed == 0
    forward.graphs = None
    np.testing.assert_array_equal(got, rows(runner, batch))


def test_a_step_takes_the_smallest_that_has_room(checkpoint: Callable[[str], Path]) -> None:
    _, _, graphs = recorded(checkpoint("bert"))
    sizes = [graph.tokens for graph in graphs._graphs]
    assert sizes == [32, 64, 96, 128, 192, MOST]
    used = []
    for graph in graphs._graphs:
        object.__setattr__(graph, "replay", lambda size=graph.tokens: used.append(size))
    for tokens in (1, 32, 33, 100, 193):
        ids = torch.zeros(1, tokens, dtype=torch.int64)
        lengths = [min(tokens, 100), *([tokens - 100] if tokens > 100 else [])]
        packing = Packing.of(lengths, torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32))
        with torch.inference_mode():
            assert graphs.run(ids, ids, None, packing, len(lengths)) is not None
    assert used == [32, 32, 64, 128, MOST]


def test_a_step_is_replayed_until_sharing_what_inputs_begin_with_saves_much(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, _, graphs = recorded(checkpoint("qwen3"))
    beginning = drawn(runner, [40], 0, pairs=False).ids
    inputs = [np.concatenate([beginning, drawn(runner, [8], seed, pairs=False).ids]) for seed in (1, 2)]
    batch = PackedBatch(np.concatenate(inputs), np.array([48, 48], np.int32))
    replayed = rows(runner, batch)
    assert graphs.replayed == 1
    monkeypatch.setattr("pooling.forward._WORTH_SHARING_OVER_GRAPHS", 40)
    assert np.allclose(rows(runner, batch), replayed, atol=1e-5)
    assert graphs.replayed == 1
