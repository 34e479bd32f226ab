"""Classifier, Scorer and Rewarder by themselves: their columns are what LLM answers, bad rows keep their place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.dataset import Classifier, Pooler, Rewarder, Scorer
from pooling import LLM
from pooling.errors import ConfigError
from tests.checkpoints import MINILM
from tests.deployments.models import write_emotions
from tests.texts import words

Scorers = Callable[[str], Path]
TEXTS = [words(n, start=n) for n in (3, 40, 1, 17)]
QUERIES = [words(n, start=2 * n) for n in (2, 5, 9, 4)]
MIXED = [TEXTS[0], None, TEXTS[1], TEXTS[2], "\ud800", TEXTS[3]]
GOOD = [0, 2, 3, 5]


@contextmanager
def closing(pooler: Pooler) -> Iterator[Pooler]:
    try:
        yield pooler
    finally:
        pooler.close()


def without_nulls(column: pa.ChunkedArray) -> list[Any]:
    """The values of the good rows, once it is seen that exactly the others are null."""
    values = column.to_pylist()
    assert [row for row, value in enumerate(values) if value is not None] == GOOD
    return [values[row] for row in GOOD]


def test_a_classifier_writes_probabilities_and_the_likeliest_label(tmp_path: Path) -> None:
    source = str(write_emotions(tmp_path))
    with closing(Classifier(source, dtype="float32")) as classifier:
        after = classifier({"text": MIXED, "n": list(range(6))})
    assert after.column_names == ["text", "n", "probs", "label", "error"]
    assert after.schema.field("probs").type == pa.list_(pa.float32(), 3)
    with LLM(source, dtype="float32") as llm:
        expected = [output.outputs for output in llm.classify(TEXTS, use_tqdm=False)]
    np.testing.assert_allclose(without_nulls(after.column("probs")), [one.probs for one in expected], atol=2e-6)
    assert without_nulls(after.column("label")) == [one.label for one in expected]
    assert len({one.label for one in expected}) > 1
    assert [row for row, reason in enumerate(after.column("error").to_pylist()) if reason] == [1, 4]


def test_logits_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    source = str(write_emotions(tmp_path))
    with closing(Classifier(source, dtype="float32", use_activation=False, output_column="logits")) as classifier:
        after = classifier({"text": TEXTS})
    assert np.abs(np.array(after.column("logits").to_pylist()).sum(axis=1) - 1).max() > 0.1


@pytest.mark.parametrize("kind", ["cross-encoder", "embedder"])
def test_a_scorer_scores_row_by_row(scorer: Scorers, kind: str) -> None:
    source = str(scorer("bert")) if kind == "cross-encoder" else MINILM
    queries = [QUERIES[0], None, QUERIES[1], QUERIES[2], "fine", QUERIES[3]]
    documents = [TEXTS[0], "fine", TEXTS[1], TEXTS[2], "\ud800", TEXTS[3]]
    with closing(Scorer(source, dtype="float32", query_column="q", document_column="d")) as scoring:
        after = scoring({"q": queries, "d": documents})
    assert after.column_names == ["q", "d", "score", "error"]
    with LLM(source, dtype="float32") as llm:
        expected = [output.outputs.score for output in llm.score(QUERIES, TEXTS, use_tqdm=False)]
    np.testing.assert_allclose(without_nulls(after.column("score")), expected, atol=2e-6)
    assert np.std(expected) > 1e-3
    reasons = after.column("error").to_pylist()
    assert reasons[1] == "'q' of the row is null"
    assert "lone surrogate" in reasons[4]


def test_a_rewarder_writes_a_row_for_each_token(scorer: Scorers) -> None:
    source = str(scorer("qwen2-reward"))
    with closing(Rewarder(source, dtype="float32")) as rewarder:
        after = rewarder({"text": MIXED})
    assert after.schema.field("reward").type == pa.list_(pa.list_(pa.float32(), 1))
    with LLM(source, dtype="float32", task="reward") as llm:
        expected = [output.outputs.data.numpy() for output in llm.reward(TEXTS, use_tqdm=False)]
    found = without_nulls(after.column("reward"))
    assert len({len(rows) for rows in found}) > 1
    for rows, rewards in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.array(rows), rewards, rtol=1e-4, atol=1e-4)


def test_rows_that_are_all_bad_leave_columns_of_the_same_type(scorer: Scorers) -> None:
    with closing(Rewarder(str(scorer("qwen2-reward")), dtype="float32")) as rewarder:
        bad, good = rewarder({"text": [None, None]}), rewarder({"text": ["a"]})
    assert bad.schema.field("reward") == good.schema.field("reward")
    assert bad.column("reward").null_count == 2


@pytest.mark.parametrize(("kind", "task"), [(Classifier, "classify"), (Rewarder, "reward")])
def test_a_model_that_cannot_is_refused_at_the_start(kind: type[Pooler], task: str) -> None:
    with pytest.raises(ConfigError, match=f"Unsupported task: '{task}'"):
        kind(MINILM)  # type: ignore[call-arg]


def test_a_spec_of_another_class_is_named_in_the_error() -> None:
    with pytest.raises(ConfigError, match="Scorer: unknown setting 'colour'"):
        Scorer(MINILM, colour="red")
