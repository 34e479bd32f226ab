"""How each task is answered: precedence, today's and yesterday's names, and no setting that does nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertConfig, Qwen2Config

from pooling import LLM, ModelSpec, PoolingParams
from pooling.config import parse_settings
from pooling.errors import CheckpointError, ConfigError, InvalidRequest, PoolingError, UnsupportedTask
from pooling.loading.card import ModelCard, ResolvedPooler
from pooling.loading.describe import describe
from tests.headed import Headed

BERT = {"vocab_size": 500, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1}


def card_of(directory: Path, **settings: Any) -> ModelCard:
    return describe(parse_settings(ModelSpec, {"source": str(directory), **settings}, "spec")).card


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., Path]:
    """A model's small files: a BERT or Qwen2 configuration of the named architecture. No weights: none are read."""

    def write(architecture: str, **changes: Any) -> Path:
        kind = Qwen2Config if architecture.startswith("Qwen2") else BertConfig
        config = kind(**BERT, architectures=[architecture], max_position_embeddings=64)
        config.update(changes)
        config.save_pretrained(tmp_path)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("architecture", "changes", "tasks"),
    [
        ("BertModel", {}, ("embed", "token_embed", "score")),
        ("BertForMaskedLM", {}, ("embed", "token_embed", "score")),
        ("BertForSequenceClassification", {"num_labels": 3}, ("classify", "token_classify")),
        ("BertForSequenceClassification", {"num_labels": 1}, ("classify", "score", "token_classify", "reward")),
        ("BertForTokenClassification", {"num_labels": 5}, ("token_classify",)),
        ("Qwen2ForRewardModel", {"num_labels": 1}, ("reward", "token_classify")),
    ],
)
def test_an_architecture_does_what_its_head_is_for(
    configured: Callable[..., Path], architecture: str, changes: dict[str, Any], tasks: tuple[str, ...]
) -> None:
    assert card_of(configured(architecture, **changes)).tasks == tasks


@pytest.mark.parametrize(
    ("changes", "activation", "source"),
    [
        ({"num_labels": 3}, "softmax", "default"),
        ({"num_labels": 1}, "sigmoid", "default"),
        ({"num_labels": 3, "problem_type": "regression"}, "identity", "model"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "sigmoid", "model"),
        ({"num_labels": 2, "problem_type": "single_label_classification"}, "softmax", "model"),
        (
            {"num_labels": 1, "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
            "identity",
            "model",
        ),
        (
            {"num_labels": 3, "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
            "sigmoid",
            "model",
        ),
        (
            {
                "num_labels": 1,
                "problem_type": "regression",
                "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
            },
            "sigmoid",
            "model",
        ),
        (
            {"num_labels": 1, "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}},
            "torch.nn.modules.activation.Tanh",
            "model",
        ),
    ],
)
def test_what_makes_probabilities_is_the_configurations_to_say(
    configured: Callable[..., Path], changes: dict[str, Any], activation: str, source: str
) -> None:
    pooler = card_of(configured("BertForSequenceClassification", **changes)).pooler
    assert (pooler.activation, pooler.sources["activation"]) == (activation, source)


def test_a_class_named_for_activation_is_one_of_torchs_or_refused(configured: Callable[..., Path]) -> None:
    changes = {"num_labels": 1, "sbert_ce_default_activation_function": "os.system"}
    with pytest.raises(CheckpointError, match=r"the activation 'os\.system'; allowed are the classes of torch"):
        card_of(configured("BertForSequenceClassification", **changes))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ({"pooling_type": "LAST"}, ("LAST", "override_pooler_config", True)),
        ({"seq_pooling_type": "MEAN"}, ("MEAN", "override_pooler_config", True)),
        ({"softmax": False}, ("CLS", "model", False)),
        ({"use_activation": False}, ("CLS", "model", False)),
    ],
)
def test_override_beats_the_model_under_either_name(
    configured: Callable[..., Path], override: dict[str, Any], expected: tuple[str, str, bool]
) -> None:
    pooler = card_of(configured("BertForSequenceClassification"), override_pooler_config=override).pooler
    assert (pooler.pooling_type, pooler.sources["pooling_type"], pooler.activate) == expected


def test_reward_is_every_token_without_activation(configured: Callable[..., Path]) -> None:
    pooler = card_of(configured("Qwen2ForRewardModel", num_labels=1)).pooler
    assert (pooler.pooling_type, pooler.activate) == ("ALL", False)


def test_a_process_reward_model_answers_at_its_step_tags_with_probabilities(configured: Callable[..., Path]) -> None:
    directory = configured("Qwen2ForProcessRewardModel", num_labels=2, vocab_size=152_000)
    pooler = card_of(directory).pooler
    assert (pooler.pooling_type, pooler.step_tag_id, pooler.activate) == ("STEP", 151_651, True)
    other = card_of(directory, override_pooler_config={"step_tag_id": 7}).pooler
    assert other.step_tag_id == 7


def test_the_task_that_is_asked_for_comes_first(configured: Callable[..., Path]) -> None:
    directory = configured("BertForSequenceClassification", num_labels=1)
    assert card_of(directory, task="reward").tasks[0] == "reward"
    assert card_of(directory, task="score").tasks[0] == "score"


@pytest.mark.parametrize(
    ("architecture", "settings", "message"),
    [
        ("BertModel", {"task": "classify"}, "task classify is impossible for BertModel; it does embed, token_embed"),
        ("BertForTokenClassification", {"task": "embed"}, "it does token_classify"),
        ("BertForSequenceClassification", {"task": "score"}, "it does classify, token_classify"),
        ("BertModel", {"override_pooler_config": {"softmax": True}}, "sets softmax, which means nothing to embed"),
        ("BertModel", {"override_pooler_config": {"logit_mean": 1}}, "sets logit_mean, which means nothing"),
        ("BertForSequenceClassification", {"override_pooler_config": {"normalize": True}}, "sets normalize, which"),
        ("BertForSequenceClassification", {"override_pooler_config": {"dimensions": 2}}, "sets dimensions, which"),
        ("BertForSequenceClassification", {"override_pooler_config": {"step_tag_id": 2}}, "sets step_tag_id, which"),
        ("BertForSequenceClassification", {"override_pooler_config": {"pooling_type": "STEP"}}, "needs step_tag_id"),
        ("BertForSequenceClassification", {"override_pooler_config": {"returned_token_ids": [9]}}, r"columns 0 to 1"),
        ("BertModel", {"override_pooler_config": {"pooling_type": "CLS", "tok_pooling_type": "ALL"}}, "Cannot set"),
        ("BertModel", {"override_pooler_config": {"logit_sigma": 0}}, "division by zero"),
        ("BertModel", {"override_pooler_config": {"activation": True}}, "unknown setting 'activation'; known settings"),
        ("Qwen2ForProcessRewardModel", {}, "step_tag_id is 151651, but the model's vocabulary has 500"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(
    configured: Callable[..., Path], architecture: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        card_of(configured(architecture), **settings)


def test_a_head_of_another_size_than_the_labels_is_refused(tmp_path: Path) -> None:
    directory = Headed("bert", "sequence").write(tmp_path)
    config = json.loads((directory / "config.json").read_text())
    names = {str(index): f"label {index}" for index in range(5)}
    config |= {"id2label": names, "label2id": {name: int(index) for index, name in names.items()}}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"'classifier\.(weight|bias)' has shape \[3.*asks for \[5"):
        LLM(str(directory))


def test_where_each_part_was_decided_is_told(configured: Callable[..., Path]) -> None:
    assert str(card_of(configured("BertModel")).pooler) == "CLS (model), normalize (default)"
    assert str(ResolvedPooler("ALL", 1, activation="sigmoid", activate=False)) == "ALL (default), no sigmoid (default)"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM(str(Headed("bert", "sequence").write(tmp_path_factory.mktemp("classifier"))), dtype="float32")


@pytest.mark.parametrize(
    ("ask", "kind", "message"),
    [
        (lambda llm: llm.embed("a"), UnsupportedTask, "Unsupported task: 'embed' Supported tasks: "),
        (lambda llm: llm.score("a", "b"), UnsupportedTask, "it has 3 labels, and a score needs one"),
        (lambda llm: llm.reward("a"), UnsupportedTask, "Unsupported task: 'reward'"),
        (
            lambda llm: llm.classify("a", pooling_params=PoolingParams(dimensions=2)),
            InvalidRequest,
            r"Task 'classify' only supports \['use_activation'\] parameters, does not support \['dimensions'\]",
        ),
        (
            lambda llm: llm.encode("a", PoolingParams(returned_token_ids=(3,)), pooling_task="token_classify"),
            InvalidRequest,
            "has the columns 0 to 2",
        ),
        (
            lambda llm: llm.encode("a", PoolingParams(step_tag_id=-1), pooling_task="token_classify"),
            InvalidRequest,
            "-1",
        ),
        (lambda llm: llm.classify("a", tokenization_kwargs={"max_tokens_per_doc": 3}), InvalidRequest, "unknown"),
    ],
)
def test_a_request_the_head_cannot_answer_is_refused(
    classifier: LLM, ask: Callable[[LLM], Any], kind: type[PoolingError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        ask(classifier)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"use_activation": np.ones(2)}, "use_activation is ndarray; allowed is a bool"),
        ({"use_activation": "yes"}, "use_activation is 'yes'; allowed is a bool"),
        ({"returned_token_ids": np.arange(2)}, "returned_token_ids is ndarray; allowed are whole numbers"),
        ({"returned_token_ids": ("a",)}, "returned_token_ids is tuple; allowed are whole numbers"),
        ({"step_tag_id": 2.0}, "step_tag_id is 2.0; allowed is a whole number"),
        ({"dimensions": 64.0}, "dimensions is 64.0; allowed is a whole number"),
    ],
)
def test_a_parameter_of_the_wrong_kind_costs_its_caller_alone(
    classifier: LLM, params: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        classifier.encode("a", PoolingParams(**params), pooling_task="token_classify", use_tqdm=False)
    assert classifier.classify("a", use_tqdm=False)


def test_labels_are_those_of_the_columns_that_are_kept(tmp_path: Path) -> None:
    directory = Headed("bert", "sequence").write(tmp_path)
    with LLM(str(directory), dtype="float32", override_pooler_config={"returned_token_ids": [2, 0]}) as llm:
        output = llm.classify("bodo", use_tqdm=False)[0].outputs
        assert output.labels == (llm.card.labels[2], llm.card.labels[0])
        assert output.label == output.labels[output.probs.index(max(output.probs))]


def test_columns_may_be_a_list(classifier: LLM) -> None:
    params: Any = {"returned_token_ids": [1]}
    (output,) = classifier.encode("a", PoolingParams(**params), pooling_task="token_classify", use_tqdm=False)
    assert output.outputs.data.shape[1] == 1


def test_an_activation_that_is_none_of_rows_is_refused_at_the_start(tmp_path: Path) -> None:
    directory = Headed("bert", "sequence", labels=1).write(tmp_path)
    config = json.loads((directory / "config.json").read_text())
    config |= {"sbert_ce_default_activation_function": "torch.nn.modules.module.Module"}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"modules\.module\.Module', which is none of rows of 1 numbers"):
        LLM(str(directory))


def test_columns_and_steps_are_chosen_as_asked(classifier: LLM) -> None:
    text = "dida bodo dida bafo"
    (whole,) = classifier.encode(text, PoolingParams(use_activation=False), pooling_task="token_classify")
    tag = whole.prompt_token_ids[1]
    steps = [row for row, token in enumerate(whole.prompt_token_ids) if token == tag]
    assert len(steps) == 2
    params = PoolingParams(use_activation=False, step_tag_id=tag, returned_token_ids=(2, 0))
    (some, none) = classifier.encode([text, "bafo"], params, pooling_task="token_classify")
    np.testing.assert_allclose(some.outputs.data, whole.outputs.data[steps][:, [2, 0]], atol=1e-5)
    assert none.outputs.data.shape == (0, 2)


def test_classify_tells_the_label_and_its_probability(classifier: LLM) -> None:
    (output,) = classifier.classify("bodo")
    assert output.outputs.num_classes == 3
    assert abs(sum(output.outputs.probs) - 1) < 1e-6
    best = output.outputs.probs.index(max(output.outputs.probs))
    assert output.outputs.label == classifier.card.labels[best]


def test_logits_are_calibrated_before_the_activation(tmp_path: Path) -> None:
    directory = Headed("bert", "sequence", labels=1).write(tmp_path)
    with LLM(str(directory), dtype="float32") as plain:
        (logit,) = plain.classify("bodo", pooling_params=PoolingParams(use_activation=False))[0].outputs.probs
    override = {"logit_mean": 0.5, "logit_sigma": 2.0, "use_activation": False}
    with LLM(str(directory), dtype="float32", override_pooler_config=override) as calibrated:
        (other,) = calibrated.classify("bodo")[0].outputs.probs
    assert other == pytest.approx((logit - 0.5) / 2, abs=1e-5)
