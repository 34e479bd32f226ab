"""A config.json that transformers would read as another model is put right or refused in a sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pooling import LLM, ModelSpec, PoolerConfig
from pooling.choose import obstacle
from pooling.errors import CheckpointError, ConfigError
from pooling.loading.describe import Description, describe
from pooling.loading.families import FAMILIES, family_of
from tests.checkpoints.writing import read_json, write_json

Described = Callable[..., Description]


@pytest.fixture
def described(checkpoint: Callable[[str], Path], tmp_path: Path) -> Described:
    """A family's small files with other values in config.json (None leaves a value out), described."""

    def describe_with(family: str, spec: dict[str, Any] | None = None, **values: Any) -> Description:
        for file in checkpoint(family).rglob("*.json"):
            place = tmp_path / file.relative_to(checkpoint(family))
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(file.read_bytes())
        config = read_json(tmp_path / "config.json") | values
        write_json(tmp_path / "config.json", {key: value for key, value in config.items() if value is not None})
        return describe(ModelSpec(source=str(tmp_path), **(spec or {})))

    return describe_with


@pytest.mark.parametrize(
    ("family", "values", "named"),
    [
        # gte-large-en-v1.5: a model type that only its own code knows.
        ("bert", {"model_type": "new", "architectures": ["NewModel"]}, "model type new"),
        # LLM2Vec: a Llama by type, whose own class looks both ways.
        ("llama", {"architectures": ["LlamaEncoderModel"]}, "architecture LlamaEncoderModel"),
        ("bert", {"architectures": ["JinaBertForMaskedLM"]}, "architecture JinaBertForMaskedLM"),
    ],
)
def test_code_of_the_models_own_is_refused(described: Described, family: str, values: Any, named: str) -> None:
    with pytest.raises(CheckpointError, match=f"{named} needs Python code that comes with the model .*never run"):
        described(family, auto_map={"AutoModel": "modeling.Model"}, **values)


def test_own_code_beside_a_class_of_transformers_is_left_alone_and_named(
    described: Described, caplog: pytest.LogCaptureFixture
) -> None:
    assert described("eurobert", auto_map={"AutoModel": "modeling_eurobert.EuroBertModel"}).card.dim == 64
    assert "own code is not run; transformers' EuroBertModel is" in caplog.text


@pytest.mark.parametrize(
    ("kind", "packed", "pooling"),
    [("bert", True, "CLS"), ("llama", True, "LAST"), ("roformer", False, "CLS"), ("mixtral", False, "LAST")],
)
def test_a_family_that_is_not_listed_is_padded_and_pooled_as_its_kind(kind: str, packed: bool, pooling: str) -> None:
    assert (family_of(kind).packed, family_of(kind).pooling_type) == (packed, pooling)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"n_embd": 1024}, "n_embd is 1024, read as 64"),
        ({"n_layer": 24}, "n_layer is 24, read as 2"),
        ({"rotary_emb_base": 10_000}, "rotary_emb_base is 10000, read as 1000.0"),
        ({"qkv_proj_bias": True}, "qkv_proj_bias is True, read as False"),
        ({"num_experts": 8}, "num_experts is 8, read as 0"),
    ],
)
def test_a_nomic_config_that_transformers_would_not_read_is_refused(
    described: Described, values: Any, named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        described("nomic", **values)


def test_a_nomic_config_that_comes_to_the_same_is_taken(described: Described) -> None:
    described("nomic", n_embd=64, n_layer=2, n_head=4, rotary_emb_base=1000, prenorm=False)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "mistral"])
def test_a_decoder_turned_both_ways_is_turned_in_every_family(described: Described, family: str) -> None:
    assert getattr(described(family).config, "is_causal", True)
    assert described(family, use_bidirectional_attention=True).config.is_causal is False


def test_gemma3_turns_itself_and_halves_its_window(described: Described) -> None:
    config = described("embedding-gemma").config
    assert (getattr(config, "is_causal", None), config.sliding_window) == (None, 25)


@pytest.mark.parametrize(("stated", "meant"), [("avg", "MEAN"), ("cls", "CLS"), ("last", "LAST")])
def test_a_pooling_that_the_config_states_is_the_models_own(described: Described, stated: str, meant: str) -> None:
    pooler = described("llama-both-ways", pooling=stated).card.pooler
    assert (pooler.pooling_type, pooler.sources["pooling_type"]) == (meant, "model")
    override = PoolerConfig(pooling_type="MAX")
    assert described("llama-both-ways", {"override_pooler_config": override}).card.pooler.pooling_type == "MAX"


def test_a_stated_pooling_that_is_not_known_is_refused(described: Described) -> None:
    with pytest.raises(CheckpointError, match="'weighted_avg'; supported is one of avg, mean, cls, last"):
        described("llama-both-ways", pooling="weighted_avg")


def test_inputs_end_where_frequencies_would_depend_on_the_longest_of_a_batch(described: Described) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    long = described("phi3", rope_parameters=rope, original_max_position_embeddings=64, max_position_embeddings=256)
    assert long.card.max_model_len == 64


def test_a_model_without_a_last_position_takes_what_is_asked(described: Described) -> None:
    assert described("t5").card.max_model_len == 180  # what its tokenizer names
    assert described("t5", {"max_model_len": 4096}).card.max_model_len == 4096


def test_a_length_that_nothing_states_must_be_set(described: Described) -> None:
    directory = described("bloom").backbone
    tokenizer = read_json(directory / "tokenizer_config.json") | {"model_max_length": 10**30}
    write_json(directory / "tokenizer_config.json", tokenizer)
    with pytest.raises(ConfigError, match="set max_model_len"):
        describe(ModelSpec(source=str(directory)))
    assert describe(ModelSpec(source=str(directory), max_model_len=4096)).card.max_model_len == 4096


def test_another_encoder_decoder_is_refused(described: Described) -> None:
    with pytest.raises(CheckpointError, match="bart is an encoder-decoder model"):
        described("t5", model_type="bart", architectures=["BartModel"], is_encoder_decoder=True)


def test_a_padding_id_outside_the_vocabulary_is_no_matter(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    for file in checkpoint("bloom").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write_json(tmp_path / "config.json", read_json(tmp_path / "config.json") | {"pad_token_id": -1})
    texts = ["a", "b c d e f"]
    with LLM(str(tmp_path), dtype="float32") as llm, LLM(str(checkpoint("bloom")), dtype="float32") as same:
        assert [a.outputs.embedding for a in llm.embed(texts, use_tqdm=False)] == [
            a.outputs.embedding for a in same.embed(texts, use_tqdm=False)
        ]


@pytest.mark.parametrize(
    ("family", "values", "reason"),
    [
        ("bert", {}, None),
        ("gemma3", {}, None),
        ("gemma2", {}, "no softcap"),
        ("t5", {}, "no position bias"),
        ("qwen3", {"head_dim": 512}, "heads of up to 256"),
        ("bert", {"num_attention_heads": 16}, "a multiple of 8"),  # heads of 4 dimensions
        ("bloom", {}, "not known to run packed"),
    ],
)
def test_what_the_cuda_kernel_cannot_do_runs_padded_there(
    described: Described, family: str, values: Any, reason: str | None
) -> None:
    description = described(family, **values)
    found = obstacle(description, torch.bfloat16, torch.device("cuda"))
    assert found is None if reason is None else reason in str(found)
    on_cpu = obstacle(description, torch.bfloat16, torch.device("cpu"))
    assert (on_cpu is None) == FAMILIES[description.card.model_type].packed
