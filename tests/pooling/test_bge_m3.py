"""bge-m3: dense, sparse and multi-vector answers of one forward pass, against FlagEmbedding's few lines."""

import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pooling import LLM, PoolingParams, PoolingRequest
from pooling.errors import CheckpointError, InvalidRequest, UnsupportedTask
from pooling.forward import PackedForward
from tests.checkpoints import HIDDEN
from tests.reference import Reference, Rows, relative_error
from tests.sentence_encoders import ROUNDING, bge_m3
from tests.texts import stretching_texts, words

ALL = ("embed", "token_classify", "token_embed")


class FlagEmbedding:
    """What BGEM3FlagModel computes, one text at a time. Source: FlagEmbedding, inference/embedder/encoder_only."""

    def __init__(self, directory: Path) -> None:
        self.reference = Reference(directory, "CLS", normalize=True)
        self.sparse, self.colbert = (
            torch.load(directory / f"{name}_linear.pt", weights_only=True) for name in ("sparse", "colbert")
        )

    def dense(self, text: str) -> Rows:
        return self.reference.embed(text)

    def weights(self, text: str) -> Rows:
        """[tokens]"""
        hidden = self._hidden(text)
        return torch.relu(torch.nn.functional.linear(hidden, **self.sparse))[:, 0].numpy()

    def lexical(self, text: str) -> dict[int, float]:
        tokenizer = self.reference.tokenizer
        unused = {tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
        result: dict[int, float] = defaultdict(float)
        for weight, token in zip(self.weights(text).tolist(), self.reference.ids(text), strict=True):
            if token not in unused and weight > 0:
                result[token] = max(result[token], weight)
        return dict(result)

    def vectors(self, text: str) -> Rows:
        """[tokens - 1, dim]"""
        rows = torch.nn.functional.linear(self._hidden(text)[1:], **self.colbert)
        return torch.nn.functional.normalize(rows, dim=-1).numpy()

    def _hidden(self, text: str) -> torch.Tensor:
        return self.reference.hidden(self.reference.ids(text)).clone()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bge")
    bge_m3(directory)
    return directory


@pytest.fixture(scope="module")
def subject(model: Path) -> Iterator[tuple[FlagEmbedding, LLM, list[str]]]:
    theirs = FlagEmbedding(model)
    texts = stretching_texts(theirs.reference.ids, 320)
    with LLM(str(model), dtype="float32") as llm:
        yield theirs, llm, texts


def test_each_task_alone_is_as_in_flag_embedding(subject: tuple[FlagEmbedding, LLM, list[str]]) -> None:
    theirs, llm, texts = subject
    assert llm.card.tasks == ("embed", "token_embed", "token_classify", "score")
    assert llm.card.scoring == "cosine"
    dense, weights, vectors = (
        [answer.outputs.data.numpy() for answer in llm.encode(texts, pooling_task=task, use_tqdm=False)] for task in ALL
    )
    expected = np.concatenate([theirs.weights(text)[1:-1] for text in texts])  # without <s> and </s>
    assert 0.2 < (expected > 0).mean() < 0.8  # some have a weight, some have none
    assert relative_error(np.concatenate(weights)[:, 0], expected) < ROUNDING
    for index, text in enumerate(texts):
        assert relative_error(dense[index], theirs.dense(text)) < ROUNDING
        assert relative_error(vectors[index], theirs.vectors(text)) < ROUNDING


def test_the_sparse_view_keeps_the_greatest_weight_of_each_word(
    subject: tuple[FlagEmbedding, LLM, list[str]],
) -> None:
    theirs, llm, texts = subject
    texts = [*texts, f"{words(4, 3)} {words(9, 3)} {words(4, 3)}", "</s> <unk> <s> 𓀀 a"]
    expected = [theirs.lexical(text) for text in texts]
    assert any(
        len(weights) < len(theirs.reference.ids(text)) // 2 for weights, text in zip(expected, texts, strict=True)
    )
    answers = llm.embed_sparse(texts, use_tqdm=False)
    named = llm.embed_sparse(texts, keys="token", use_tqdm=False)
    for weights, answer, by_token in zip(expected, answers, named, strict=True):
        ours: Any = answer.outputs.weights
        assert list(ours) == sorted(weights)
        if weights:
            order = sorted(weights)
            assert relative_error(np.array([ours[i] for i in order]), np.array([weights[i] for i in order])) < ROUNDING
        assert list(by_token.outputs.weights) == theirs.reference.tokenizer.convert_ids_to_tokens(list(ours))


@pytest.mark.parametrize("tasks", [ALL, ("token_embed", "embed"), ("embed", "token_classify"), ("embed",)])
def test_one_forward_pass_answers_several_tasks(
    subject: tuple[FlagEmbedding, LLM, list[str]], monkeypatch: pytest.MonkeyPatch, tasks: tuple[str, ...]
) -> None:
    _, llm, texts = subject
    expected = {
        task: [answer.outputs.data for answer in llm.encode(texts, pooling_task=task, use_tqdm=False)] for task in tasks
    }
    passed: list[int] = []
    forward = PackedForward.__call__
    monkeypatch.setattr(
        PackedForward, "__call__", lambda self, step: passed.append(sum(step.sizes)) or forward(self, step)
    )
    answers = llm.encode_multi(texts, tasks, use_tqdm=False)
    assert sum(passed) == sum(len(answer.prompt_token_ids) for answer in answers)
    assert all(tuple(answer.outputs.data) == tasks for answer in answers)
    for task in tasks:
        parts = [answer.outputs.data[task] for answer in answers]
        assert [part.shape for part in parts] == [part.shape for part in expected[task]]
        assert relative_error(torch.cat(parts).numpy(), torch.cat(expected[task]).numpy()) < ROUNDING


def test_all_tasks_are_what_is_answered_unless_some_are_named(
    subject: tuple[FlagEmbedding, LLM, list[str]],
) -> None:
    _, llm, texts = subject
    (answer,) = llm.encode_multi(texts[3], use_tqdm=False)
    assert set(answer.outputs.data) == set(ALL)


def test_joined_tasks_come_in_a_line_as_in_vllm(subject: tuple[FlagEmbedding, LLM, list[str]]) -> None:
    theirs, llm, texts = subject
    answers = llm.encode(texts, pooling_task="embed&token_classify", use_tqdm=False)
    for text, answer in zip(texts, answers, strict=True):
        line = np.concatenate([theirs.dense(text), theirs.weights(text)[1:-1]])
        assert relative_error(answer.outputs.data.numpy(), line) < ROUNDING


def test_a_step_keeps_apart_who_asked_for_what(subject: tuple[FlagEmbedding, LLM, list[str]]) -> None:
    """Requests for the same tasks in another order, and for one of them alone, in one step."""
    _, llm, _ = subject
    tasks = ["embed&token_embed", "embed", "token_embed&embed", "token_embed"]
    text = words(5, 9)
    alone = [llm.encode(text, pooling_task=task, use_tqdm=False)[0].outputs.data.numpy().ravel() for task in tasks]
    runner = llm._offline._engine._runner
    parts = [llm._offline.intake.tokenize(PoolingRequest([text], task)) for task in tasks]
    outputs = runner.launch(runner.prepare(parts)).wait()
    for output, expected in zip(outputs, alone, strict=True):
        assert relative_error(output.rows()[0].ravel(), expected) < ROUNDING


def test_cut_vectors_come_apart_where_they_were_joined(checkpoint: Any, tmp_path: Path) -> None:
    """Joined answers are not for bge-m3 alone, and a model's own cut counts."""
    with LLM(str(checkpoint("bert")), dtype="float32", override_pooler_config={"dimensions": 24}) as llm:
        (answer,) = llm.encode_multi("a few words", use_tqdm=False)
        (pooled,) = llm.embed("a few words", use_tqdm=False)
    tokens = answer.outputs.data["token_embed"]
    assert tokens.shape == (len(answer.prompt_token_ids), 24)
    assert relative_error(answer.outputs.data["embed"].numpy(), np.array(pooled.outputs.embedding)) < ROUNDING


@pytest.mark.parametrize("task", ["embed&classify", "embed&embed", "embed&", "&"])
def test_tasks_that_the_model_lacks_cannot_be_joined(subject: tuple[FlagEmbedding, LLM, list[str]], task: str) -> None:
    _, llm, _ = subject
    with pytest.raises(UnsupportedTask, match=r"Unsupported task: '.*' Supported tasks: "):
        llm.encode("a", pooling_task=task, use_tqdm=False)


def test_parameters_of_one_task_are_refused_where_another_has_none(
    subject: tuple[FlagEmbedding, LLM, list[str]],
) -> None:
    _, llm, _ = subject
    with pytest.raises(InvalidRequest, match=r"only supports \['use_activation'\] parameters"):
        llm.encode_multi("a", ("embed", "token_classify"), PoolingParams(dimensions=8), use_tqdm=False)


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("colbert_linear.pt", None, "the model has sparse_linear.pt only"),
        ("sparse_linear.pt", {"weight": torch.zeros(1, HIDDEN)}, "sparse_linear.pt lacks tensor 'bias'"),
        (
            "colbert_linear.pt",
            {"weight": torch.zeros(8, HIDDEN), "bias": torch.zeros(8)},
            f"tensor 'weight' of colbert_linear.pt has shape [8, {HIDDEN}]",
        ),
        ("sparse_linear.pt", [1.0], "sparse_linear.pt holds no tensors by name"),
    ],
)
def test_a_damaged_layer_is_refused_by_name(model: Path, tmp_path: Path, file: str, content: Any, named: str) -> None:
    shutil.copytree(model, tmp_path / "broken")
    (tmp_path / "broken" / file).unlink()
    if content is not None:
        torch.save(content, tmp_path / "broken" / file)
    with pytest.raises(CheckpointError) as refused:
        LLM(str(tmp_path / "broken"), dtype="float32")
    assert named in refused.value.detail
