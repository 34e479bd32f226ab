"""Scores of embedding models, against SentenceTransformer.similarity, and what is refused of any scorer."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pooling import LLM, Intake, ModelSpec, PoolingRequest
from pooling.config import parse_settings
from pooling.errors import CheckpointError, ConfigError, InvalidRequest
from tests.scored import DOCUMENTS, QUERIES, ROUNDING, Scorers, change, scores


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan", None])
def test_an_embedding_model_scores_as_its_similarity_says(
    checkpoint: Callable[[str], Path], tmp_path: Path, similarity: str | None
) -> None:
    from sentence_transformers import SentenceTransformer

    shutil.copytree(checkpoint("modernbert"), tmp_path, dirs_exist_ok=True)  # its vectors are not normalised
    if similarity is not None:
        change(tmp_path / "config_sentence_transformers.json", similarity_fn_name=similarity)
    reference = SentenceTransformer(str(tmp_path), device="cpu", model_kwargs={"attn_implementation": "eager"})
    a, b = ([reference.encode(text) for text in texts] for texts in (QUERIES[:8], DOCUMENTS[:8]))
    expected = np.array([float(reference.similarity(x, y)) for x, y in zip(a, b, strict=True)])
    with LLM(str(tmp_path), dtype="float32", task="score") as llm:
        answers = scores(llm, QUERIES[:8], DOCUMENTS[:8])
    assert np.abs(answers - expected).max() < ROUNDING * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        (
            "math-shepherd",
            {"task": "score"},
            "known for qwen3_vl, qwen3, qwen2, gemma, not for llama: name the tokens in",
        ),
        ("bert", {"hf_overrides": {"classifier_from_token": ["no", "yes"]}}, "BertForSequenceClassification has none"),
        ("bert", {"instruction": "find"}, "reads pairs without a template"),
        ("bert", {"chat_template": "none.jinja"}, "neither a Jinja template nor a file"),
        ("qwen3-reranker", {"chat_template": "{{ messages }}"}, "chat_template is for models that read a pair"),
        (
            "qwen3-reranker",
            {"hf_overrides": {"is_original_qwen3_reranker": True}, "chat_template": "{{ messages[0].content }}"},
            "the chat template leaves the document out",
        ),
        (
            "qwen3-reranker",
            {"hf_overrides": {"is_original_qwen3_reranker": True}, "chat_template": "{{ raise_exception('no') }}"},
            "the chat template fails: 'no'",
        ),
    ],
)
def test_what_would_score_at_random_is_refused(
    scorer: Scorers, name: str, settings: dict[str, Any], sentence: str
) -> None:
    spec = parse_settings(ModelSpec, {"source": str(scorer(name)), **settings}, "test")
    with pytest.raises(ConfigError, match=sentence.replace("(", r"\(")):
        Intake.load(spec)


def test_a_token_that_the_vocabulary_lacks_is_refused(scorer: Scorers) -> None:
    overrides = {"classifier_from_token": ["no", "certainly"]}
    with pytest.raises(CheckpointError, match="the token 'certainly', which the model's tokenizer does not have"):
        LLM(str(scorer("qwen3-reranker")), dtype="float32", hf_overrides=overrides)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"method": "from_2_way_softmax"}, "needs classifier_from_token"),
        ({"method": "from_2_way_softmax", "classifier_from_token": ["a"]}, "needs two tokens"),
        ({"classifier_from_token": []}, "classifier_from_token"),
        ({"classifier_from_token": ["a"], "architectures": ["Qwen3Model"]}, "ends in ForSequenceClassification"),
        ({"classifier": ["a"]}, "known settings are: architectures, classifier_from_token"),
    ],
)
def test_overrides_that_contradict_themselves_are_refused(overrides: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_settings(ModelSpec, {"source": "x", "hf_overrides": overrides}, "test")


def test_a_model_without_a_template_takes_no_instruction(scorer: Scorers) -> None:
    with LLM(str(scorer("bert")), dtype="float32") as llm, pytest.raises(InvalidRequest, match="takes no instruction"):
        llm.score("a", "b", instruction="find")
    with LLM(str(scorer("qwen3-reranker")), dtype="float32") as llm, pytest.raises(InvalidRequest, match="needs pairs"):
        llm.score("a", "b", instruction="find")


def test_a_pair_is_not_cut_at_its_start(scorer: Scorers) -> None:
    intake = Intake.load(ModelSpec(source=str(scorer("bert"))))
    with pytest.raises(InvalidRequest, match="a pair of texts is cut at their ends"):
        intake.tokenize(PoolingRequest([("a", "b")], "score", truncate_prompt_tokens=4, truncation_side="left"))


def test_the_output_layer_must_be_there(scorer: Scorers, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(scorer("mxbai"), tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks tensor 'lm_head\.weight', the output layer"):
        LLM(str(tmp_path), task="score", dtype="float32")
