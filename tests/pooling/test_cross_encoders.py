"""Scores of cross-encoders, against Sentence Transformers."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from pooling import LLM, Intake, ModelSpec, PoolingParams, PoolingRequest
from pooling.errors import ConfigError, InvalidRequest, UnsupportedTask
from pooling.loading.describe import describe
from tests.scored import (
    DOCUMENTS,
    PAIRS,
    QUERIES,
    ROUNDING,
    Scorers,
    change,
    cross_encoder,
    predicted,
    scores,
    told_apart,
)
from tests.texts import words


@pytest.mark.parametrize("name", ["bert", "bert-without-types", "xlmr", "modernbert", "qwen2-classifier"])
def test_a_cross_encoder_scores_as_cross_encoder_predicts(scorer: Scorers, name: str) -> None:
    expected = predicted(cross_encoder(scorer(name)))
    assert told_apart(expected)
    with LLM(str(scorer(name)), dtype="float32") as llm:
        together = scores(llm)
        alone = np.concatenate([scores(llm, *pair) for pair in PAIRS])
        logits = scores(llm, pooling_params=PoolingParams(use_activation=False))
    assert np.abs(together - expected).max() < ROUNDING
    assert np.abs(alone - expected).max() < ROUNDING
    assert np.abs(1 / (1 + np.exp(-logits)) - expected).max() < ROUNDING
    assert np.abs(logits).max() > 1


def test_a_directory_that_cross_encoder_saved_scores_the_same(scorer: Scorers, tmp_path: Path) -> None:
    reference = cross_encoder(
        scorer("bert"), prompts={"ask": "question about ", "find": "find "}, default_prompt_name="ask"
    )
    reference.save_pretrained(str(tmp_path), create_model_card=False)
    assert [module["type"].rsplit(".", 1)[-1] for module in json.loads((tmp_path / "modules.json").read_text())] == [
        "Transformer"
    ]
    with LLM(str(tmp_path), dtype="float32") as llm:
        assert np.abs(scores(llm) - predicted(reference)).max() < ROUNDING
        named = scores(llm, prompt_name="find")
        assert np.abs(named - predicted(reference, prompt_name="find")).max() < ROUNDING
    assert np.abs(named - predicted(reference)).max() > 0.01  # the prompt is heard


@pytest.mark.parametrize(
    ("activation", "file"),
    [
        (torch.nn.Identity, "config_sentence_transformers.json"),
        (torch.nn.Tanh, "config_sentence_transformers.json"),
        (torch.nn.Identity, "sentence_transformers"),
        (torch.nn.Tanh, "sbert_ce_default_activation_function"),
    ],
)
def test_the_activation_is_the_one_the_files_name(
    scorer: Scorers, tmp_path: Path, activation: type[torch.nn.Module], file: str
) -> None:
    named = f"{activation.__module__}.{activation.__name__}"
    if file.endswith(".json"):
        cross_encoder(scorer("bert"), activation_fn=activation()).save_pretrained(
            str(tmp_path), create_model_card=False
        )
        assert json.loads((tmp_path / file).read_text())["activation_fn"] == named
    else:
        shutil.copytree(scorer("bert"), tmp_path, dirs_exist_ok=True)
        value = {"activation_fn": named} if file == "sentence_transformers" else named
        change(tmp_path / "config.json", **{file: value})
    with LLM(str(tmp_path), dtype="float32") as llm:
        answers = scores(llm)
    expected = predicted(cross_encoder(tmp_path))
    assert np.abs(answers - expected).max() < ROUNDING * max(1, np.abs(expected).max())
    assert expected.min() < -0.1  # no sigmoid


def test_three_labels_are_classified_as_cross_encoder_predicts(scorer: Scorers, tmp_path: Path) -> None:
    reference = cross_encoder(scorer("bert-3-labels"), activation_fn=torch.nn.Softmax(dim=-1))
    reference.save_pretrained(str(tmp_path), create_model_card=False)
    with LLM(str(tmp_path), dtype="float32") as llm:
        answers = llm.encode(PAIRS, pooling_task="classify", use_tqdm=False)
        probabilities = np.stack([answer.outputs.data.numpy() for answer in answers])
        with pytest.raises(UnsupportedTask, match="it has 3 labels, and a score needs one"):
            llm.score("a", "b")
    expected = np.stack([reference.predict([pair], show_progress_bar=False)[0] for pair in PAIRS])
    assert np.abs(probabilities - expected).max() < ROUNDING
    with pytest.raises(ConfigError, match="task score is impossible for BertForSequenceClassification"):
        describe(ModelSpec(source=str(tmp_path), task="score"))


@pytest.mark.parametrize("name", ["bert", "xlmr", "modernbert", "qwen2-classifier"])
def test_a_pair_is_cut_as_the_tokenizer_cuts_it(scorer: Scorers, name: str) -> None:
    """The longer text first, in steps of one token; against transformers on lengths drawn at random."""
    tokenizer = AutoTokenizer.from_pretrained(scorer(name))
    intake = Intake.load(ModelSpec(source=str(scorer(name))))
    draw = random.Random(0)
    for _ in range(150):
        a, b = (words(draw.choice([0, 1, 2, 5, 20, 60, 150]), start=draw.randrange(99)) for _ in range(2))
        limit = draw.choice([5, 6, 7, 12, 33, 64, 120, 300])
        cut = tokenizer([a], [b], truncation="longest_first", max_length=limit)  # a list: alone, "" is no second text
        theirs = {field: rows[0] for field, rows in cut.items()}
        if not theirs["input_ids"]:
            continue
        ours = intake.tokenize(PoolingRequest([(a, b)], "score", truncate_prompt_tokens=limit))
        assert ours.ids.tolist() == theirs["input_ids"]
        assert ("token_type_ids" in theirs) is (ours.second is not None) is (name == "bert")
        if ours.second is not None:
            types = (np.arange(ours.tokens) >= ours.second[0]).astype(int).tolist()
            assert types == theirs["token_type_ids"]


def test_max_tokens_per_doc_cuts_the_second_text_alone(scorer: Scorers) -> None:
    tokenizer = AutoTokenizer.from_pretrained(scorer("bert"))
    intake = Intake.load(ModelSpec(source=str(scorer("bert"))))
    draw = random.Random(1)
    for _ in range(50):
        a, b = words(draw.choice([1, 5, 20]), start=draw.randrange(99)), words(draw.choice([1, 9, 80]))
        most = draw.choice([1, 5, 40])
        query = len(tokenizer(a, add_special_tokens=False)["input_ids"])
        theirs = tokenizer(a, b, truncation="only_second", max_length=query + most + 3)["input_ids"]
        ours = intake.tokenize(PoolingRequest([(a, b)], "score", max_tokens_per_doc=most))
        assert ours.ids.tolist() == theirs


def test_pairs_are_one_to_one_one_to_many_or_many_to_many(scorer: Scorers) -> None:
    with LLM(str(scorer("bert")), dtype="float32") as llm:
        one = scores(llm, QUERIES[0], DOCUMENTS[0])
        many = scores(llm, QUERIES[0], DOCUMENTS)
        each = np.concatenate([scores(llm, QUERIES[0], document) for document in DOCUMENTS])
        assert one.shape == (1,)
        assert one[0] == pytest.approx(many[0], abs=ROUNDING)
        assert np.abs(many - each).max() < ROUNDING
        with pytest.raises(InvalidRequest, match=r"must be either 1:1, 1:N or N:N \(given 2:3\)"):
            llm.score(["a", "b"], ["c", "d", "e"])
        with pytest.raises(InvalidRequest, match="At least one text element"):
            llm.score([], ["c"])
        with pytest.raises(InvalidRequest, match="At least one text_pair element"):
            llm.score("a", [])


def test_a_query_of_many_documents_is_tokenised_once(scorer: Scorers) -> None:
    from pooling.loading.tokenizer import TextTokenizer

    class Counting:
        def __init__(self, backend: Any) -> None:
            self._backend, self.texts = backend, 0

        def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
            self.texts += len(texts)
            return self._backend.encode_batch_fast(texts, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._backend, name)

    tokenizer = TextTokenizer.load(scorer("bert"))
    expected = tokenizer.encode_pairs([("query", text) for text in DOCUMENTS], True, None, (None, None))
    tokenizer._backend = counting = Counting(tokenizer._backend)
    again = tokenizer.encode_pairs([("query", text) for text in DOCUMENTS], True, None, (None, None))
    assert counting.texts == len(set(DOCUMENTS)) + 1
    assert all(np.array_equal(a, b) and i == j for (a, i), (b, j) in zip(expected, again, strict=True))


def test_two_empty_texts_are_a_pair_of_special_tokens(scorer: Scorers) -> None:
    with LLM(str(scorer("bert")), dtype="float32") as llm:
        answers = scores(llm, "", "")
    assert np.abs(answers - predicted(cross_encoder(scorer("bert")), [("", "")])).max() < ROUNDING


def test_many_pairs_stream_through_in_their_order(scorer: Scorers) -> None:
    count = 4_200  # more than two of the chunks that are tokenised at once
    documents = [DOCUMENTS[index % len(DOCUMENTS)][:40] for index in range(count)]
    with LLM(str(scorer("bert")), dtype="float32", max_batch_tokens=8_192) as llm:
        answers = scores(llm, QUERIES[0], documents)
        period = scores(llm, QUERIES[0], documents[: len(DOCUMENTS)])
    assert np.abs(answers - np.resize(period, count)).max() < ROUNDING
