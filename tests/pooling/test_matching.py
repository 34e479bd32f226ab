"""Every tensor of a checkpoint finds its place, whatever release of whose code wrote it, or is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel

from pooling import LLM, ModelSpec
from pooling.attention import NAME
from pooling.errors import CheckpointError
from pooling.loading.checkpoint import Checkpoint
from pooling.loading.describe import describe
from pooling.loading.matching import match
from pooling.loading.model import load_model
from tests.checkpoints import EVERY
from tests.checkpoints.writing import copy_with, read_json, write_json
from tests.reference import Rows

Checkpoints = Callable[[str], Path]
Tensors = dict[str, Tensor]
_TEXTS = ["a", "kago bemi", "one two three " * 9]


def _renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def _under(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _without(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _without_heads(tensors: Tensors) -> Tensors:
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}


def _both_names(tensors: Tensors) -> Tensors:
    return tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"].clone()}


def _old_frequencies(tensors: Tensors) -> Tensors:
    frequencies = tensors.pop(next(name for name in tensors if name.endswith("inv_freq")))
    old = "encoder.layer.{}.attention.self.rotary_embeddings.inv_freq"
    return tensors | {old.format(layer): frequencies.clone() for layer in range(2)}


def _a_word_for_padding(tensors: Tensors) -> Tensors:
    """The last position of old GPT-NeoX checkpoints' buffers."""
    return tensors | {"gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9)}


@pytest.mark.parametrize(
    ("family", "rewrite"),
    [
        ("bert", _under("bert")),
        ("xlmr", _without("roberta.")),
        ("qwen3", _without_heads),
        ("gpt2", _without("transformer.")),
        ("opt", _without("model.")),
        (
            "bert",
            lambda tensors: _renamed("LayerNorm.bias", "LayerNorm.beta")(
                _renamed("Norm.weight", "Norm.gamma")(tensors)
            ),
        ),
        ("t5", _renamed("shared.weight", "encoder.embed_tokens.weight")),
        ("t5", _both_names),
        ("esm", _old_frequencies),
        ("gpt-neox", _a_word_for_padding),
    ],
)
def test_names_of_other_times_and_places_give_the_same_vectors(
    checkpoint: Checkpoints, tmp_path: Path, family: str, rewrite: Callable[[Tensors], Tensors]
) -> None:
    before = load_file(checkpoint(family) / "model.safetensors")
    after = rewrite(dict(before))
    assert after.keys() != before.keys()
    assert np.array_equal(_vectors(copy_with(checkpoint(family), tmp_path, after)), _vectors(checkpoint(family)))


@pytest.mark.parametrize("family", ["nomic", "jina", "qwen3-moe", *(["gte"] if "gte" in EVERY else [])])
def test_tensors_in_the_models_own_pieces_give_the_same_vectors(
    checkpoint: Checkpoints, tmp_path: Path, family: str
) -> None:
    """The checkpoints keep q, k and v, or the experts, in other pieces than the modules of transformers."""
    model = AutoModel.from_pretrained(checkpoint(family))
    own = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    assert len(own) != len(load_file(checkpoint(family) / "model.safetensors"))
    assert np.array_equal(_vectors(copy_with(checkpoint(family), tmp_path, own)), _vectors(checkpoint(family)))


_EXPERT = "model.layers.1.mlp.experts.11.{}_proj.weight"


@pytest.mark.parametrize(
    ("family", "break_it", "named"),
    [
        ("qwen3-moe", lambda tensors: tensors.pop(_EXPERT.format("up")), ["experts.gate_up_proj", "experts.0."]),
        ("qwen3-moe", lambda tensors: tensors.pop(_EXPERT.format("down")), ["11, 64, 32", "12, 64, 32"]),
        ("qwen3-moe", lambda tensors: tensors.update({"model.layers.9.mlp.gate.weight": torch.ones(1)}), ["layers.9"]),
        ("nomic", lambda tensors: tensors.pop("encoder.layers.1.attn.Wqkv.weight"), ["lacks", "q_proj", "v_proj"]),
        ("nomic", lambda tensors: _cut(tensors, "encoder.layers.1.attn.Wqkv.weight"), ["Wqkv", "q_proj"]),
        (
            "nomic",
            lambda tensors: tensors.update({"layers.1.self_attn.k_proj.weight": torch.ones(64, 64)}),
            ["both fill"],
        ),
        ("bert", lambda tensors: tensors.update({"bert.embeddings.LayerNorm.bias": torch.ones(64)}), ["both fill"]),
        ("t5-pair", lambda tensors: tensors.pop("shared.weight"), ["lacks", "embed_tokens"]),
        ("t5-pair", lambda tensors: tensors.update({"decoder.block.7.flux": torch.ones(1)}), ["unknown", "flux"]),
    ],
)
def test_pieces_that_do_not_make_a_whole_are_refused_by_name(
    checkpoint: Checkpoints, tmp_path: Path, family: str, break_it: Callable[[Tensors], Any], named: list[str]
) -> None:
    tensors = load_file(checkpoint(family) / "model.safetensors")
    break_it(tensors)
    with pytest.raises(CheckpointError) as refused:
        LLM(str(copy_with(checkpoint(family), tmp_path, tensors)), dtype="float32")
    for part in named:
        assert part in refused.value.detail


def test_an_embedding_saved_under_both_its_names_is_read_once(checkpoint: Checkpoints, tmp_path: Path) -> None:
    both = _both_names(load_file(checkpoint("t5") / "model.safetensors"))
    description = describe(ModelSpec(source=str(copy_with(checkpoint("t5"), tmp_path, both))))
    files = Checkpoint(description.backbone)
    model = load_model(files, description.config, NAME, torch.float32, torch.device("cpu"))
    found = match(model, files, description.config)
    assert (found.twins, set(found.source_of) & set(found.twins)) == (
        {"encoder.embed_tokens.weight": "shared.weight"},
        set(),
    )
    assert model.encoder.embed_tokens.weight.data_ptr() == model.shared.weight.data_ptr()


def test_an_unknown_layout_beside_own_code_says_so(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """As the first jina-embeddings-v3, an "xlm-roberta" whose own code keeps its tensors otherwise."""
    tensors = _renamed("attention.self.query", "mixer.Wqkv")(load_file(checkpoint("xlmr") / "model.safetensors"))
    directory = copy_with(checkpoint("xlmr"), tmp_path, tensors)
    config = read_json(directory / "config.json") | {"auto_map": {"AutoModel": "modeling.XLMRobertaModel"}}
    write_json(directory / "config.json", config)
    with pytest.raises(CheckpointError, match="code of its own, which is never run"):
        LLM(str(directory), dtype="float32")


@pytest.mark.parametrize(
    ("family", "dtype", "kept"),
    [
        ("t5", torch.float16, {"encoder.block.0.layer.1.DenseReluDense.wo.weight"}),
        ("t5", torch.bfloat16, set()),
        ("esm", torch.bfloat16, {"rotary_embeddings.inv_freq"}),
    ],
)
def test_what_a_short_float_would_spoil_stays_float32(
    checkpoint: Checkpoints, family: str, dtype: torch.dtype, kept: set[str]
) -> None:
    description = describe(ModelSpec(source=str(checkpoint(family))))
    files = Checkpoint(description.backbone)
    model = load_model(files, description, NAME, dtype, torch.device("cpu")).backbone
    long = {name for name, tensor in model.state_dict().items() if tensor.dtype == torch.float32}
    assert {name.replace("block.1", "block.0") for name in long} == kept


def _cut(tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name][:-3].contiguous()


def _vectors(directory: Path) -> Rows:
    with LLM(str(directory), dtype="float32") as llm:
        return np.array([answer.outputs.embedding for answer in llm.embed(_TEXTS, use_tqdm=False)], np.float32)
