"""What every checkpoint shares: sharp weights, and the files that Sentence Transformers puts beside a model."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

HIDDEN = 64
# Parts of the names of layers that make queries and keys, in one family or another.
_QUERIES_AND_KEYS = ("query", "key", "q_proj", "k_proj", "qkv", "c_attn", "in_proj", "attn.q.", "attn.k.", "_lin")


def sharpen(model: PreTrainedModel, seed: int) -> None:
    """Redraws every weight: attention that singles tokens out, norms and biases that are no identity."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    transposed = {id(m.weight) for m in model.modules() if isinstance(m, Conv1D)}
    gemma = "gemma" in model.config.model_type  # multiplies embeddings by sqrt(hidden), and a norm's weight is less 1
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if id(weight) in embeddings:
            drawn = noise * (2.0 if "relative" in name else HIDDEN**-0.5 if gemma else 1.0)
        elif weight.ndim > 1:
            drawn = noise * _gain(name) / math.sqrt(weight.shape[0 if id(weight) in transposed else -1])
        elif name.endswith("bias"):
            drawn = noise * 0.3
        else:  # the weight of a norm; those of queries and keys set how sharp Qwen3's attention is
            drawn = (2.0 if "q_norm" in name or "k_norm" in name else 1.0) + noise * 0.2 - float(gemma)
        with torch.no_grad():
            weight.copy_(drawn)


def _gain(name: str) -> float:
    if "SelfAttention.q." in name:
        return 0.5  # T5 divides no score by the root of the dimensions of a head
    return 2.0 if any(part in name for part in _QUERIES_AND_KEYS) or "Wqkv" in name else 1.4


def write_sentence_transformers(directory: Path, pooling: str, normalize: bool, max_seq_length: int | None) -> None:
    """The files that Sentence Transformers puts beside a model; pooling is one of cls, mean, max, lasttoken."""
    modules = ["Transformer", "Pooling", "Normalize"][: 3 if normalize else 2]
    places = ["", "1_Pooling", "2_Normalize"]
    write_json(
        directory / "modules.json",
        [
            {"idx": index, "name": str(index), "path": place, "type": f"sentence_transformers.models.{module}"}
            for index, (module, place) in enumerate(zip(modules, places, strict=False))
        ],
    )
    flags = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken"}
    (directory / "1_Pooling").mkdir(exist_ok=True)
    write_json(
        directory / "1_Pooling" / "config.json",
        {"word_embedding_dimension": HIDDEN}
        | {f"pooling_mode_{flag}": kind == pooling for kind, flag in flags.items()},
    )
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})


def write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def copy_with(directory: Path, copy: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """The same model with other weights in its one file."""
    shutil.copytree(directory, copy, dirs_exist_ok=True)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy
