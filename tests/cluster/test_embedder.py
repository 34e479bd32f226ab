"""Embedder by itself: what becomes of columns, rows and mistakes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.dataset import Embedder
from pooling.config import ModelSpec
from pooling.errors import ConfigError, SourceError
from tests.checkpoints import FAMILIES, HIDDEN
from tests.texts import words

TOO_LONG = words(FAMILIES["bert"].max_model_len + 10)


@pytest.fixture(scope="module")
def bert(checkpoint: Callable[[str], Path]) -> str:
    return str(checkpoint("bert"))


@pytest.fixture(scope="module")
def embedder(bert: str) -> Iterator[Embedder]:
    embedder = Embedder(bert, dtype="float32")
    yield embedder
    embedder.close()


def vectors(table: pa.Table, column: str = "embedding") -> np.ndarray:
    return np.array(table.column(column).to_pylist(), np.float32)


def test_a_table_keeps_its_columns_rows_and_types(embedder: Embedder) -> None:
    before = pa.table({"id": pa.array([1, None, 3], pa.int32()), "text": [words(5), words(2), words(9)]})
    after = embedder(before)
    assert after.select(["id", "text"]).equals(before)
    assert after.schema.field("embedding").type == pa.list_(pa.float32(), HIDDEN)
    assert after.schema.field("error").type == pa.string()
    assert after.column("error").null_count == 3


def test_a_dict_of_numpy_columns_gives_the_same_vectors_as_a_table(embedder: Embedder) -> None:
    texts = [words(5), words(2), words(9)]
    from_dict = embedder({"text": np.array(texts, dtype=object), "n": np.arange(3)})
    assert from_dict.column("n").to_pylist() == [0, 1, 2]
    np.testing.assert_array_equal(vectors(from_dict), vectors(embedder(pa.table({"text": texts}))))


def test_a_bad_row_costs_no_other_row_its_vector(embedder: Embedder) -> None:
    good = [words(n, start=n) for n in (3, 8, 1, 5, 13)]
    mixed = [good[0], None, good[1], TOO_LONG, good[2], good[3], "\ud800", TOO_LONG, good[4]]
    after = embedder({"text": mixed})
    reasons = after.column("error").to_pylist()
    assert [reason is not None for reason in reasons] == [text not in good for text in mixed]
    assert reasons[1] == "the row is null"
    assert "maximum context length" in reasons[3]
    assert "lone surrogate" in reasons[6]
    found = after.column("embedding").to_pylist()
    assert [vector is None for vector in found] == [text not in good for text in mixed]
    alone = vectors(embedder(pa.table({"text": good})))
    np.testing.assert_allclose(np.array([vector for vector in found if vector]), alone, atol=2e-6)


def test_a_row_that_is_no_text_says_what_it_is(embedder: Embedder) -> None:
    after = embedder(pa.table({"text": [1, 2]}))
    assert after.column("error").to_pylist() == ["the row holds int, not text"] * 2
    assert after.column("embedding").null_count == 2


def test_an_empty_batch_has_the_same_columns(embedder: Embedder) -> None:
    full, empty = embedder(pa.table({"text": ["a"]})), embedder(pa.table({"text": pa.array([], pa.string())}))
    assert empty.schema == full.schema
    assert empty.num_rows == 0


def test_nan_from_the_model_is_the_fault_of_its_row_alone(bert: str, tmp_path: Path) -> None:
    spoilt = spoil_one_word(Path(bert), tmp_path / "spoilt")
    embedder = Embedder(str(spoilt), dtype="float32")
    try:
        bad = words(1)
        after = embedder({"text": [words(4, start=5), bad, words(2, start=9)]})
    finally:
        embedder.close()
    first, second, third = after.column("error").to_pylist()
    assert (first, third) == (None, None)
    assert "NaN" in second


def spoil_one_word(source: Path, directory: Path) -> Path:
    """A copy of a checkpoint in which the first word overflows the layer norm, so that its text becomes NaN."""
    from tokenizers import Tokenizer

    directory.mkdir()
    for file in source.rglob("*"):
        target = directory / file.relative_to(source)
        if file.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.write_bytes(file.read_bytes())
    tensors = load_file(directory / "model.safetensors")
    ids = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(words(1), add_special_tokens=False).ids
    (name,) = [name for name in tensors if name.endswith("word_embeddings.weight")]
    tensors[name][ids] = 3e38 * (-1.0) ** torch.arange(HIDDEN)  # finite, as weights must be; their variance is not
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "int9"}, "dtype"),
        ({"colour": "red"}, "unknown setting 'colour'"),
        ({"prompt_name": "query"}, "prompt_name"),
        ({"dimensions": 3}, "Matryoshka"),
    ],
)
def test_a_mistake_in_the_options_is_said_once_at_the_start(bert: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Embedder(bert, **options)


def test_a_spec_and_settings_beside_it_are_refused(bert: str) -> None:
    with pytest.raises(ConfigError, match="dtype given beside a ModelSpec"):
        Embedder(ModelSpec(source=bert), dtype="float32")


def test_a_missing_model_is_named() -> None:
    with pytest.raises(SourceError, match="/no/such/model"):
        Embedder("/no/such/model")


def test_options_reach_the_engine(bert: str, embedder: Embedder) -> None:
    cutting = Embedder(
        ModelSpec(source=bert, dtype="float32"), column="t", output_column="v", truncate=True, normalize=False
    )
    try:
        after = cutting({"t": [TOO_LONG, words(3)]})
    finally:
        cutting.close()
    assert after.column_names == ["t", "v", "error"]
    assert after.column("error").null_count == 2
    raw = vectors(after, "v")
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert (np.abs(lengths - 1) > 0.01).all()
    normal = vectors(embedder({"text": [words(3)]}))
    np.testing.assert_allclose((raw / lengths)[1:], normal, atol=2e-6)


@pytest.mark.parametrize(
    ("columns", "said"),
    [(["body"], "no column 'text'; the columns are body"), (["text", "error"], "a column 'error' already")],
)
def test_columns_that_are_missing_or_taken_are_named(embedder: Embedder, columns: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        embedder(pa.table({name: ["a"] for name in columns}))
