"""Prompts are put before texts as Sentence Transformers does, and left out of the pooling where a model says so."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from pooling import LLM, Intake, ModelSpec, PackedBatch, PoolingRequest
from pooling.errors import CheckpointError, InvalidRequest
from pooling.judge import check_batch
from pooling.loading.source import locate
from tests.checkpoints import MINILM
from tests.reference import Rows, relative_error
from tests.texts import stretching_texts

Checkpoints = Callable[[str], Path]
_CUT = {"truncate_prompt_tokens": -1}
_PROMPTS = {"query": "Represent the question: ", "passage": "Represent the passage for retrieval; ", "none": ""}
_ROUNDING = 2e-5


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real model with prompts of its own, one of them the default."""
    directory = tmp_path_factory.mktemp("minilm") / "model"
    shutil.copytree(locate(MINILM), directory)
    _write(directory / "config_sentence_transformers.json", prompts=_PROMPTS, default_prompt_name="passage")
    return directory


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return stretching_texts(lambda text: text.split(), 300)


@pytest.fixture
def instructor(checkpoint: Checkpoints, tmp_path: Path) -> Path:
    """A small model that leaves prompts out of the pooling."""
    directory = tmp_path / "instructor"
    shutil.copytree(checkpoint("bert"), directory)
    _write(directory / "1_Pooling" / "config.json", include_prompt=False)
    _write(directory / "config_sentence_transformers.json", prompts=_PROMPTS)
    return directory


def test_the_real_model_answers_behind_its_prompts_as_sentence_transformers(minilm: Path, texts: list[str]) -> None:
    reference = SentenceTransformer(str(minilm), device="cpu")
    with LLM(str(minilm), dtype="float32") as llm:
        asked: list[dict[str, Any]] = [
            {},
            {"prompt": "free: "},
            {"prompt": ""},
            *({"prompt_name": n} for n in _PROMPTS),
        ]
        answers = [_vectors(llm.embed, texts, **one) for one in asked]
        for one, answer in zip(asked, answers, strict=True):
            assert np.abs(answer - reference.encode(texts, **one)).max() < 1e-5
        assert np.abs(answers[0] - answers[2]).max() > 0.05  # the default prompt moves the vectors
        assert np.abs(_vectors(llm.encode_query, texts) - reference.encode_query(texts)).max() < 1e-5
        passages = reference.encode(texts, prompt_name="passage")
        assert np.abs(_vectors(llm.encode_document, texts) - passages).max() < 1e-5


@pytest.mark.parametrize(
    ("prompts", "query", "document"),
    [
        ({"query": "q: ", "document": "d: ", "passage": "p: "}, "q: ", "d: "),
        ({"query": "q: ", "passage": "p: ", "corpus": "c: "}, "q: ", "p: "),
        ({"corpus": "c: ", "default": "x: "}, "", "c: "),
        ({"document": "", "passage": "p: "}, "", ""),
        ({"default": "x: "}, "", ""),  # the default prompt is for neither
    ],
)
def test_a_query_and_a_document_take_the_first_prompt_made_for_them(
    checkpoint: Checkpoints, tmp_path: Path, prompts: dict[str, str], query: str, document: str
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(checkpoint("bert"), directory)
    default = "default" if "default" in prompts else None
    _write(directory / "config_sentence_transformers.json", prompts=prompts, default_prompt_name=default)
    with LLM(str(directory), dtype="float32") as llm:
        for method, prefix in ((llm.encode_query, query), (llm.encode_document, document)):
            (answer,) = method("the text", use_tqdm=False)
            (expected,) = llm.embed(prefix + "the text", prompt="", use_tqdm=False)
            assert answer.prompt_token_ids == expected.prompt_token_ids
        (answer,) = llm.encode_query("text", prompt="free ", use_tqdm=False)
        (expected,) = llm.embed("free text", prompt="", use_tqdm=False)
        assert answer.prompt_token_ids == expected.prompt_token_ids


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens"])
def test_a_prompt_left_out_of_the_pooling_is_read_but_not_pooled(
    instructor: Path, texts: list[str], pooling: str
) -> None:
    (instructor / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 64, "pooling_mode": pooling, "include_prompt": False})
    )
    reference = SentenceTransformer(str(instructor), device="cpu")
    with LLM(str(instructor), dtype="float32") as llm:
        for one in ({"prompt_name": "query"}, {"prompt": "Another, longer one; "}, {}):
            expected = reference.encode(texts, **one, batch_size=1)
            assert relative_error(_vectors(llm.embed, texts, **one), expected) < _ROUNDING
        apart = _vectors(llm.embed, texts, prompt_name="query")
        pooled = _vectors(llm.embed, [_PROMPTS["query"] + text for text in texts])
        assert pooling == "lasttoken" or relative_error(apart, pooled) > 0.05


def test_inputs_with_and_without_a_prompt_share_a_request(instructor: Path) -> None:
    with LLM(str(instructor), dtype="float32") as llm:
        ids = llm.embed("plain words", use_tqdm=False)[0].prompt_token_ids
        mixed = _vectors(llm.embed, ["plain words", ids, "a longer one of more words"], prompt_name="query")
        alone = [
            _vectors(llm.embed, ["plain words"], prompt_name="query"),
            _vectors(llm.embed, ["plain words"]),
            _vectors(llm.embed, ["a longer one of more words"], prompt_name="query"),
        ]
        assert relative_error(mixed, np.concatenate(alone)) < _ROUNDING


def test_token_ids_have_no_prompt_to_leave_out(instructor: Path) -> None:
    _write(instructor / "config_sentence_transformers.json", default_prompt_name="query")
    intake = Intake.load(ModelSpec(source=str(instructor)))
    batch = intake.tokenize(PoolingRequest([[5, 6, 7]], truncate_prompt_tokens=2, truncation_side="left"))
    assert (batch.ids.tolist(), batch.segments) == ([6, 7], None)


def test_token_vectors_of_a_prompt_are_answered_all_the_same(instructor: Path) -> None:
    with LLM(str(instructor), dtype="float32") as llm:
        (answer,) = llm.encode("text", pooling_task="token_embed", prompt_name="query", use_tqdm=False)
        assert len(answer.outputs.data) == len(answer.prompt_token_ids)


def test_segments_keep_to_their_inputs_however_a_batch_is_cut(instructor: Path) -> None:
    intake = Intake.load(ModelSpec(source=str(instructor)))
    batch = intake.tokenize(PoolingRequest(["one", "two of them", "and three of them"], prompt_name="query"))
    left_out = [int((part.segments == -1).sum()) for part in (batch.slice(i, i + 1) for i in range(3))]  # type: ignore[union-attr]
    assert left_out == [left_out[0]] * 3
    chosen = batch.take(np.array([2, 0]), batch.offsets())
    joined = PackedBatch.join([batch.slice(2, 3), batch.slice(0, 1)])
    assert chosen.segments is not None
    assert joined.segments is not None
    assert chosen.segments.tolist() == joined.segments.tolist()
    check_batch(joined, intake.card)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"prompt": "a", "prompt_name": "query"}, "both prompt and prompt_name 'query' are given; give one of them"),
        ({"prompt_name": "nope"}, "Unknown prompt_name 'nope'. Supported values: none, passage, query"),
        ({"prompt": "a", "inputs": [[5, 6]]}, "prompt needs text inputs; token ids are taken as they are"),
        ({"prompt": "the " * 9, "truncate_prompt_tokens": 5}, "prompt has 28 tokens, which the model does not pool"),
        ({"prompt": "the", "truncate_prompt_tokens": 5, "truncation_side": "left"}, "set truncation_side to right"),
    ],
)
def test_what_cannot_be_prompted_is_refused_by_name(instructor: Path, asked: dict[str, Any], message: str) -> None:
    intake = Intake.load(ModelSpec(source=str(instructor)))
    with pytest.raises(InvalidRequest, match=message):
        intake.tokenize(replace(PoolingRequest(["text"], "embed"), **asked))


@pytest.mark.parametrize("segments", [[0, 0, 1, 0], [-1, 0, -1, -1], [0, 0, -2, 0], [1, 1, 0, 0], [0, 0, 0]])
def test_segments_that_mean_nothing_are_refused(instructor: Path, segments: list[int]) -> None:
    card = Intake.load(ModelSpec(source=str(instructor))).card
    batch = PackedBatch(np.full(4, 9, np.int32), np.array([2, 2], np.int32), segments=np.array(segments, np.int32))
    with pytest.raises(InvalidRequest, match="`segments`"):
        check_batch(batch, card)


def test_a_weighted_mean_without_the_prompt_is_refused(instructor: Path) -> None:
    with pytest.raises(CheckpointError, match=r"include_prompt: false.*not for WEIGHTEDMEAN"):
        Intake.load(ModelSpec(source=str(instructor), override_pooler_config={"pooling_type": "WEIGHTEDMEAN"}))  # type: ignore[arg-type]


def _vectors(method: Callable[..., Any], inputs: list[Any], **asked: Any) -> Rows:
    answers = method(inputs, use_tqdm=False, tokenization_kwargs=_CUT, **asked)
    return np.array([answer.outputs.embedding for answer in answers], np.float32)


def _write(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | values))
