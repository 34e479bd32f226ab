"""The benchmarks measure what they say: texts of the stated lengths, operations as counted by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer

from benchmarks.balance import SHAPES, WAYS, Shape, Simulation
from benchmarks.flops import ModelFlops
from benchmarks.texts import long_texts, short_texts
from pooling.loading.source import locate
from tests.checkpoints import MINILM


@pytest.mark.parametrize(("texts", "mean", "most"), [(short_texts, 54, 256), (long_texts, 335, 512)])
def test_the_texts_have_the_stated_lengths(texts: Callable[[], list[str]], mean: int, most: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(locate(MINILM), model_max_length=most)
    lengths = np.array([len(ids) for ids in tokenizer(texts())["input_ids"]])
    assert abs(lengths.mean() - mean) < 0.01 * mean
    assert lengths.max() <= most
    assert np.median(lengths) < lengths.mean()  # log-normal: many short ones, few long ones
    assert texts() == texts()


def test_operations_are_those_of_the_matrix_products() -> None:
    """Per token and layer: four projections and two layers of the MLP; per pair: scores and their products."""
    flops = ModelFlops.count(AutoConfig.from_pretrained(locate(MINILM)))
    hidden, intermediate, layers = 384, 1536, 6
    assert flops.a_token == pytest.approx(layers * 2 * (4 * hidden**2 + 2 * hidden * intermediate))
    assert flops.a_pair == pytest.approx(layers * 2 * 2 * hidden)
    assert flops.of(np.array([10, 20])) == pytest.approx(30 * flops.a_token + 500 * flops.a_pair)


def test_a_window_is_counted_as_if_it_were_not_there(checkpoint: Callable[[str], Path]) -> None:
    """As ModelFlops says; the share of the peak of such a model is overstated."""
    flops = ModelFlops.count(AutoConfig.from_pretrained(checkpoint("modernbert")))
    assert flops.a_pair == pytest.approx(4 * 2 * 2 * 64)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("split", [True, False])
def test_a_simulation_answers_every_request_and_loses_no_token(way: str, split: bool) -> None:
    shape = Shape(replicas=3, routers=2, token_s=1e-4, step_tokens=256, small=4, bulk=40)
    done = Simulation(shape, WAYS[way], split, seconds=6, seed=1).run()
    assert all(len(waits) > 10 for waits in done.waits.values())
    assert all(not replica.slices and not replica.batcher.tokens and not replica.busy for replica in done.replicas)
    assert all(not len(known.outstanding) and not known.own_tokens.any() for known in done._known)
    busy = sum(replica.busy_s for replica in done.replicas) / 3 / 6
    assert 0.7 * shape.load < busy < 1.3 * shape.load  # else the load is not what the table says
    again = Simulation(shape, WAYS[way], split, seconds=6, seed=1).run()
    assert again.waits == done.waits


def test_the_simulated_cpu_is_the_one_that_was_measured() -> None:
    measured = (Path(__file__).parents[1] / "docs" / "benchmarks.md").read_text()
    cpu = SHAPES["3 CPU replicas, 1 router"]
    assert f"| short | {round(1 / cpu.token_s):,} (median" in measured
