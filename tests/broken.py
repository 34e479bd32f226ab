"""Checkpoints that are damaged in one way each; a good copy of a BERT one is broken in place."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_WEIGHTS = "model.safetensors"
TENSOR = "encoder.layer.1.attention.self.query.weight"


def _missing_tensor(directory: Path) -> None:
    _rewrite(directory, lambda tensors: tensors.pop(TENSOR))


def _unknown_tensor(directory: Path) -> None:
    _rewrite(directory, lambda tensors: tensors.update({"encoder.layer.7.flux.weight": torch.zeros(2, 3)}))


def _misshapen_tensor(directory: Path) -> None:
    _rewrite(directory, lambda tensors: tensors.update({TENSOR: torch.zeros(64, 63)}))


def _truncated_weights(directory: Path) -> None:
    whole = (directory / _WEIGHTS).read_bytes()
    (directory / _WEIGHTS).write_bytes(whole[: len(whole) // 2])


def _truncated_header(directory: Path) -> None:
    (directory / _WEIGHTS).write_bytes((directory / _WEIGHTS).read_bytes()[:20])


def _empty_weights(directory: Path) -> None:
    (directory / _WEIGHTS).write_bytes(b"")


def _pickled_weights_only(directory: Path) -> None:
    torch.save(load_file(directory / _WEIGHTS), directory / "pytorch_model.bin")
    (directory / _WEIGHTS).unlink()


def _no_weights(directory: Path) -> None:
    (directory / _WEIGHTS).unlink()


def _missing_shard(directory: Path) -> None:
    """An index that names a file which never arrived."""
    tensors = load_file(directory / _WEIGHTS)
    (directory / _WEIGHTS).rename(directory / "model-00001-of-00002.safetensors")
    files = dict.fromkeys(tensors, "model-00001-of-00002.safetensors") | {TENSOR: "model-00002-of-00002.safetensors"}
    _write(directory / "model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": files}))


def _not_a_number(directory: Path) -> None:
    _rewrite(directory, lambda tensors: tensors[TENSOR].fill_(float("nan")))


def _no_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def _config_is_not_json(directory: Path) -> None:
    _write(directory / "config.json", '{"model_type": "bert",')


def _unknown_architecture(directory: Path) -> None:
    _reconfigure(directory, model_type="orrery", architectures=["OrreryModel"])


def _other_vocabulary(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    _reconfigure(directory, vocab_size=config["vocab_size"] + 1)


def _no_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").unlink()


def _tokenizer_is_not_json(directory: Path) -> None:
    _write(directory / "tokenizer.json", "{")


def _unknown_pooling(directory: Path) -> None:
    _write(directory / "1_Pooling" / "config.json", json.dumps({"pooling_mode_first_last_avg_tokens": True}))


def _unknown_module(directory: Path) -> None:
    modules = json.loads((directory / "modules.json").read_text(encoding="utf-8"))
    modules.append({"idx": 3, "name": "3", "path": "3_WordWeights", "type": "sentence_transformers.models.WordWeights"})
    _write(directory / "modules.json", json.dumps(modules))


def _of_another_shape(file: str, content: object) -> Callable[[Path], None]:
    return lambda directory: _write(directory / file, json.dumps(content))


def _indexed(content: object) -> Callable[[Path], None]:
    """An index where the one file was: beside that file it would not be read."""

    def change(directory: Path) -> None:
        (directory / _WEIGHTS).unlink()
        _write(directory / "model.safetensors.index.json", json.dumps(content))

    return change


BREAKAGES: dict[str, Callable[[Path], None]] = {
    "missing tensor": _missing_tensor,
    "unknown tensor": _unknown_tensor,
    "misshapen tensor": _misshapen_tensor,
    "truncated weights": _truncated_weights,
    "truncated header": _truncated_header,
    "empty weights": _empty_weights,
    "pickled weights only": _pickled_weights_only,
    "no weights": _no_weights,
    "missing shard": _missing_shard,
    "not a number": _not_a_number,
    "no config": _no_config,
    "config is not JSON": _config_is_not_json,
    "unknown architecture": _unknown_architecture,
    "other vocabulary": _other_vocabulary,
    "no tokenizer": _no_tokenizer,
    "tokenizer is not JSON": _tokenizer_is_not_json,
    "unknown pooling": _unknown_pooling,
    "unknown module": _unknown_module,
    "modules without a type": _of_another_shape("modules.json", [{}]),
    "modules as a mapping": _of_another_shape("modules.json", {"a": 1}),
    "settings as a list": _of_another_shape("sentence_bert_config.json", []),
    "prompts as a list": _of_another_shape("config_sentence_transformers.json", []),
    "length as text": _of_another_shape("sentence_bert_config.json", {"max_seq_length": "many"}),
    "index without a map": _indexed({}),
    "index of numbers": _indexed({"weight_map": {"a": 1}}),
    "index that leads away": _indexed({"weight_map": {"a": "../a"}}),
    "whole numbers for weights": lambda directory: _rewrite(
        directory, lambda tensors: tensors.update({TENSOR: torch.ones(64, 64, dtype=torch.int8)})
    ),
    "eight-bit floats": lambda directory: _rewrite(
        directory, lambda tensors: tensors.update({TENSOR: torch.ones(64, 64).to(torch.float8_e4m3fn)})
    ),
    "length of nothing": _of_another_shape("sentence_bert_config.json", {"max_seq_length": 0}),
}


def _rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / _WEIGHTS)
    change(tensors)
    save_file(tensors, directory / _WEIGHTS, metadata={"format": "pt"})


def _reconfigure(directory: Path, **changes: object) -> None:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    _write(directory / "config.json", json.dumps(config | changes))


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
