"""Rewards: of every token, or of every step of a solution, against the heads built by hand."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from pooling import LLM, PoolingParams
from pooling.errors import CheckpointError, ConfigError, InvalidRequest, UnsupportedTask
from pooling.request import Rows
from tests.reference import relative_error
from tests.scorers import STEP_TAG, reward_model
from tests.texts import words

Scorers = Callable[[str], Path]
ROUNDING = 2e-5
TEXTS = [words(1), words(9, start=2), words(40, start=5), words(130, start=9), "Größe und 中文"]
# Solutions of three steps, of one, and one that nobody has marked.
SOLUTIONS = [
    "".join(words(size, start=size) + STEP_TAG for size in (4, 11, 30)),
    words(20) + STEP_TAG,
    words(6, start=3),
]

logging.set_verbosity_error()


def rewards(llm: LLM, texts: list[str], **options: Any) -> list[Rows]:
    return [answer.outputs.data.numpy() for answer in llm.reward(texts, use_tqdm=False, **options)]


def ids_of(directory: Path, text: str) -> list[int]:
    return list(AutoTokenizer.from_pretrained(directory)(text)["input_ids"])


def by_hand(directory: Path, texts: list[str]) -> list[Rows]:
    """The two layers over every token: [tokens, labels] for each text."""
    backbone, head = reward_model(directory)
    with torch.inference_mode():
        hidden = [backbone(input_ids=torch.tensor([ids_of(directory, text)])).last_hidden_state[0] for text in texts]
        return [head(rows).numpy() for rows in hidden]


def test_a_reward_model_values_every_token_without_activation(scorer: Scorers) -> None:
    expected = by_hand(scorer("qwen2-reward"), TEXTS)
    assert np.concatenate(expected).std() > 0.5
    with LLM(str(scorer("qwen2-reward")), dtype="float32", task="reward") as llm:
        assert llm.card.tasks == ("reward", "token_classify")
        together = rewards(llm, TEXTS)
        assert max(map(relative_error, together, expected)) < ROUNDING
        for text, rows in zip(TEXTS, expected, strict=True):
            assert relative_error(rewards(llm, [text])[0], rows) < ROUNDING
        squashed = rewards(llm, TEXTS, pooling_params=PoolingParams(use_activation=True))
    assert max(map(relative_error, squashed, [1 / (1 + np.exp(-rows)) for rows in expected])) < ROUNDING


def process_reward(scorer: Scorers, tmp_path: Path) -> tuple[Path, int]:
    """Qwen2.5-Math-PRM's own tag is far outside of a small vocabulary, so it is always overridden here."""
    shutil.copytree(scorer("qwen2-process-reward"), tmp_path, dirs_exist_ok=True)
    (tag,) = AutoTokenizer.from_pretrained(tmp_path).convert_tokens_to_ids([STEP_TAG])
    return tmp_path, tag


def test_a_process_reward_model_judges_the_steps(scorer: Scorers, tmp_path: Path) -> None:
    directory, tag = process_reward(scorer, tmp_path)
    expected = []
    for text, rows in zip(SOLUTIONS, by_hand(directory, SOLUTIONS), strict=True):
        at_tags = rows[np.array(ids_of(directory, text)) == tag]
        expected.append(torch.tensor(at_tags).softmax(-1).numpy())
    assert [len(rows) for rows in expected] == [3, 1, 0]
    with LLM(str(directory), dtype="float32", override_pooler_config={"step_tag_id": tag}) as llm:
        answers = rewards(llm, SOLUTIONS)
        assert [rows.shape for rows in answers] == [(3, 2), (1, 2), (0, 2)]
        assert relative_error(np.concatenate(answers), np.concatenate(expected)) < ROUNDING
        (word,) = ids_of(directory, words(1, start=4))
        assert [len(rows) for rows in rewards(llm, SOLUTIONS, pooling_params=PoolingParams(step_tag_id=word))] == [
            1,
            0,
            0,
        ]
        second = rewards(llm, SOLUTIONS, pooling_params=PoolingParams(returned_token_ids=(1,), use_activation=False))
        assert [rows.shape for rows in second] == [(3, 1), (1, 1), (0, 1)]


def test_the_step_tag_of_a_process_reward_model_is_qwens(scorer: Scorers, tmp_path: Path) -> None:
    directory, _ = process_reward(scorer, tmp_path)
    with pytest.raises(ConfigError, match="step_tag_id is 151651, but the model's vocabulary has"):
        LLM(str(directory), dtype="float32")


def test_one_label_of_a_classifier_is_the_reward_of_every_token(scorer: Scorers) -> None:
    """With Llama 3's RoPE scaling, on texts longer than it was first trained for."""
    directory = scorer("llama-reward")
    model = AutoModelForSequenceClassification.from_pretrained(directory, attn_implementation="eager").eval()
    assert model.config.rope_parameters["rope_type"] == "llama3"
    expected = []
    for text in TEXTS:
        with torch.inference_mode():
            hidden = model.model(input_ids=torch.tensor([ids_of(directory, text)])).last_hidden_state[0]
            expected.append(model.score(hidden).numpy())
    assert np.concatenate(expected).std() > 0.5
    with LLM(str(directory), dtype="float32", task="reward") as llm:
        assert max(map(relative_error, rewards(llm, TEXTS), expected)) < ROUNDING


def test_a_causal_model_judges_steps_with_tokens_of_its_vocabulary(scorer: Scorers) -> None:
    """As the model card of math-shepherd-mistral-7b-prm does: softmax over two logits, at the tags."""
    directory = scorer("math-shepherd")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    good, bad, tag = tokenizer.convert_tokens_to_ids(["-", "+", STEP_TAG])
    assert good > bad  # columns keep the order they are asked for, as in the card's own 648 and 387
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()
    expected = []
    for text in SOLUTIONS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            expected.append(model(input_ids=ids).logits[:, :, [good, bad]].softmax(-1)[ids == tag].numpy())
    assert np.concatenate(expected).std() > 0.1
    override = {"pooling_type": "STEP", "step_tag_id": tag, "returned_token_ids": [good, bad]}
    with LLM(str(directory), task="reward", dtype="float32", override_pooler_config=override) as llm:
        assert (llm.card.tasks, llm.card.labels) == (("reward", "token_classify"), (str(good), str(bad)))
        answers = rewards(llm, SOLUTIONS)
        assert [len(rows) for rows in answers] == [3, 1, 0]
        assert relative_error(np.concatenate(answers), np.concatenate(expected)) < ROUNDING
        assert rewards(llm, SOLUTIONS[2:])[0].shape == (0, 2)
        with pytest.raises(InvalidRequest, match="the columns 0 to 1"):
            rewards(llm, SOLUTIONS, pooling_params=PoolingParams(returned_token_ids=(good,)))
        with pytest.raises(UnsupportedTask, match="Unsupported task: 'score'"):
            llm.score("a", "b")


@pytest.mark.parametrize("ids", [[], [100_000]])
def test_tokens_outside_of_the_vocabulary_are_refused(scorer: Scorers, ids: list[int]) -> None:
    override = {"pooling_type": "STEP", "step_tag_id": 1, "returned_token_ids": ids}
    with pytest.raises(ConfigError, match="the model's vocabulary has the ids 0 to"):
        LLM(str(scorer("math-shepherd")), dtype="float32", override_pooler_config=override)


@pytest.mark.parametrize(
    ("architecture", "sentence"),
    [
        ("InternLM2ForRewardModel", "model type internlm2 needs Python code that comes with the model"),
        ("LlamaForRewardModel", "LlamaForRewardModel has a head that is not served; supported .* Qwen2ForRewardModel"),
    ],
)
def test_reward_models_of_other_makes_are_refused(
    scorer: Scorers, tmp_path: Path, architecture: str, sentence: str
) -> None:
    shutil.copytree(scorer("qwen2-reward"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    if architecture.startswith("InternLM2"):
        config |= {"model_type": "internlm2", "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
    with pytest.raises(CheckpointError, match=sentence):
        LLM(str(tmp_path), dtype="float32")


@pytest.fixture
def closed_after() -> Iterator[type[LLM]]:
    """LLM for programs that leave it open."""
    opened = []

    class Closed(LLM):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            opened.append(self)

    yield Closed
    for llm in opened:
        llm.close()


def test_the_programs_of_the_specification_run(
    scorer: Scorers, checkpoint: Callable[[str], Path], closed_after: type[LLM]
) -> None:
    LLM = closed_after
    (output,) = LLM(model=str(scorer("qwen2-reward")), task="reward").encode("Hello, my name is")
    assert output.outputs.data.shape == (len(output.prompt_token_ids), 1)

    (output,) = LLM(model=str(checkpoint("qwen3")), task="embed").embed("Hello, my name is")
    assert len(output.outputs.embedding) == 64

    (output,) = LLM(model=str(scorer("bert-3-labels")), task="classify").classify("Hello, my name is")
    assert sum(output.outputs.probs) == pytest.approx(1)

    (output,) = LLM(model=str(scorer("qwen3-reranker")), task="score").score(
        "What is the capital of France?", "The capital of Brazil is Brasilia."
    )
    assert 0 < output.outputs.score < 1
    (start,) = AutoTokenizer.from_pretrained(scorer("qwen3-reranker")).convert_tokens_to_ids(["<|im_start|>"])
    assert output.prompt_token_ids[0] == start  # it read the template
