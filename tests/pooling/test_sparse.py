"""SPLADE: masked-language-model heads and their reduction, against SparseEncoder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from pooling import LLM, PoolingParams
from pooling.errors import CheckpointError, ConfigError, InvalidRequest, UnsupportedTask
from pooling.poolers import splade as splade_module
from pooling.poolers.splade import SpladePooler
from tests.reference import Rows, relative_error
from tests.sentence_encoders import ROUNDING, alone, splade
from tests.texts import stretching_texts

KINDS = [("bert", "max", "relu"), ("bert", "sum", "log1p_relu"), ("distilbert", "max", "log1p_relu")]


@pytest.fixture(scope="module", params=[*KINDS, ("modernbert", "sum", "relu")], ids=" ".join)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    directory = tmp_path_factory.mktemp("splade")
    return splade(directory, *request.param), directory / "model"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    directory = tmp_path_factory.mktemp("splade")
    return splade(directory), directory / "model"


def test_vectors_are_those_of_sparse_encoder(subject: tuple[Any, Path]) -> None:
    theirs, directory = subject
    texts = _texts(theirs)
    expected = np.stack(alone(theirs.encode, texts, convert_to_sparse_tensor=False))
    assert 0.1 < (expected > 0).mean() < 0.98  # some words have a weight and some have none
    with LLM(str(directory), dtype="float32") as llm:
        assert llm.card.tasks == ("embed", "score")
        assert llm.card.dim == expected.shape[1]
        actual = _vectors(llm, texts)
    if theirs[1].pooling_strategy == "max":
        # In units of the largest logit, where the rounding comes from: a logarithm makes that small, and keeps what
        # was lost of the others.
        actual, expected = np.expm1(actual), np.expm1(expected)
    assert relative_error(actual, expected) < ROUNDING


def test_batched_equals_alone(bert: tuple[Any, Path]) -> None:
    theirs, directory = bert
    texts = _texts(theirs)
    with LLM(str(directory), dtype="float32") as llm:
        batched = _vectors(llm, texts)
        assert relative_error(batched, np.concatenate([_vectors(llm, [text]) for text in texts])) < ROUNDING


def test_the_decoder_that_is_a_twin_of_the_embeddings_is_not_in_the_file(bert: tuple[Any, Path]) -> None:
    """The premise of the other tests, which would not hold without that twin."""
    with safe_open(bert[1] / "model.safetensors", framework="pt") as file:
        assert not [name for name in file.keys() if "decoder" in name]  # noqa: SIM118


def test_the_sparse_view_names_each_word_that_has_a_weight(bert: tuple[Any, Path]) -> None:
    theirs, directory = bert
    texts = _texts(theirs)[:6]
    expected = alone(theirs.encode, texts, convert_to_sparse_tensor=False)
    with LLM(str(directory), dtype="float32") as llm:
        by_id = [answer.outputs.weights for answer in llm.embed_sparse(texts, use_tqdm=False)]
        by_token = [answer.outputs.weights for answer in llm.embed_sparse(texts, keys="token", use_tqdm=False)]
    for vector, weights, named in zip(expected, by_id, by_token, strict=True):
        assert list(weights) == np.flatnonzero(vector).tolist()
        assert relative_error(np.array(list(weights.values()), np.float32), vector[vector > 0]) < ROUNDING
        assert list(named) == theirs.tokenizer.convert_ids_to_tokens(list(weights))
        assert list(named.values()) == list(weights.values())


def test_scores_are_dot_products_as_sparse_encoders_are(bert: tuple[Any, Path]) -> None:
    theirs, directory = bert
    query, *documents = _texts(theirs)[3:8]
    expected = theirs.similarity(theirs.encode([query]), theirs.encode(documents)).to_dense().numpy()[0]
    with LLM(str(directory), dtype="float32") as llm:
        scores = [answer.outputs.score for answer in llm.score(query, documents, use_tqdm=False)]
    assert relative_error(np.array(scores, np.float32), expected) < ROUNDING


def test_bfloat16_layers_keep_a_float32_head(bert: tuple[Any, Path]) -> None:
    theirs, directory = bert
    texts = _texts(theirs)[:8]
    expected = np.stack(alone(theirs.encode, texts, convert_to_sparse_tensor=False))
    with LLM(str(directory), dtype="bfloat16") as llm:
        vectors = _vectors(llm, texts)
    cosines = (vectors * expected).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.995


@pytest.mark.parametrize("strategy", ["max", "sum"])
def test_logits_are_made_of_a_few_tokens_at_a_time(monkeypatch: pytest.MonkeyPatch, strategy: Any) -> None:
    """However long a step is, and without a change to the answer; pieces cut through inputs."""
    words, dim, lengths = 50, 8, torch.tensor([40, 3, 11])
    hidden, weight = torch.randn(54, dim), torch.randn(dim, words)
    seen: list[int] = []

    def head(rows: torch.Tensor) -> torch.Tensor:
        seen.append(len(rows))
        return rows @ weight

    whole = SpladePooler(strategy, 1, words)(hidden, lengths, head)
    monkeypatch.setattr(splade_module, "_PIECE_BYTES", 7 * words * 4)
    pieces = SpladePooler(strategy, 1, words)(hidden, lengths, head)
    assert seen == [54, 7, 7, 7, 7, 7, 7, 7, 5]
    torch.testing.assert_close(pieces, whole)


def test_normalising_is_left_to_whoever_asks_for_it(bert: tuple[Any, Path]) -> None:
    theirs, directory = bert
    text = _texts(theirs)[5]
    with LLM(str(directory), dtype="float32") as llm:
        plain = _vectors(llm, [text])
        (answer,) = llm.embed([text], pooling_params=PoolingParams(use_activation=True), use_tqdm=False)
        with pytest.raises(InvalidRequest, match="does not support Matryoshka"):
            llm.embed([text], pooling_params=PoolingParams(dimensions=16), use_tqdm=False)
    unit = plain / np.linalg.norm(plain)
    assert relative_error(np.array([answer.outputs.embedding], np.float32), unit) < ROUNDING


def test_a_model_that_weighs_no_words_says_so(checkpoint: Any) -> None:
    refused = pytest.raises(UnsupportedTask, match="has no sparse embeddings; SPLADE models and bge-m3 do")
    with LLM(str(checkpoint("bert")), dtype="float32") as llm, refused:
        llm.embed_sparse("a", use_tqdm=False)


@pytest.mark.parametrize(
    ("file", "changes", "named"),
    [
        ("config.json", {"architectures": ["BertModel"]}, "SPLADE reads a masked-language-model head, which BertModel"),
        ("1_SpladePooling/config.json", {"pooling_strategy": "mean"}, "asks for 'mean' of 'relu'; supported are max"),
        ("sentence_bert_config.json", {"transformer_task": "feature-extraction"}, "lacks a fill-mask head"),
    ],
)
def test_what_is_no_splade_is_refused(tmp_path: Path, file: str, changes: dict[str, Any], named: str) -> None:
    splade(tmp_path)
    place = tmp_path / "model" / file
    place.write_text(json.dumps(json.loads(place.read_text()) | changes))
    with pytest.raises(CheckpointError) as refused:
        LLM(str(tmp_path / "model"), dtype="float32")
    assert named in refused.value.detail


@pytest.mark.parametrize("pooling_type", ["CLS", "ALL"])
def test_no_other_pooling_can_be_asked_for(bert: tuple[Any, Path], pooling_type: str) -> None:
    with pytest.raises(ConfigError, match=f"pooling_type is {pooling_type}, but BertForMaskedLM is a SPLADE model"):
        LLM(str(bert[1]), dtype="float32", override_pooler_config={"pooling_type": pooling_type})


def test_the_older_name_of_the_module_means_the_same(tmp_path: Path) -> None:
    theirs = splade(tmp_path)
    modules = json.loads((tmp_path / "model" / "modules.json").read_text())
    modules[0]["type"] = "sentence_transformers.sparse_encoder.models.MLMTransformer"
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "model" / "sentence_bert_config.json").write_text("{}")
    texts = _texts(theirs)[:4]
    expected = np.stack(alone(theirs.encode, texts, convert_to_sparse_tensor=False))
    with LLM(str(tmp_path / "model"), dtype="float32") as llm:
        assert relative_error(_vectors(llm, texts), expected) < ROUNDING


def _texts(model: Any) -> list[str]:
    return stretching_texts(lambda text: list(model.tokenizer(text)["input_ids"]), 320)


def _vectors(llm: LLM, texts: list[str]) -> Rows:
    return np.array([answer.outputs.embedding for answer in llm.embed(texts, use_tqdm=False)], np.float32)
