"""The models of the GPU run, each a config.json; nothing else of them exists before they are built on the device."""

from collections.abc import Mapping
from typing import Any

from benchmarks.shapes import BERT, QWEN3, XLMR

_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_QWEN3 = QWEN3 | {"architectures": ["Qwen3Model"], "vocab_size": 151_669}

SHAPES: dict[str, Mapping[str, Any]] = {
    "bge-base": BERT,
    "bge-large": BERT | _LARGE,
    "bge-reranker-v2-m3": XLMR | _LARGE | {"vocab_size": 250_002, "max_position_embeddings": 8_194},
    "Qwen3-Embedding-0.6B": _QWEN3,
    "Qwen3-Embedding-4B": _QWEN3
    | {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 9728},
    "Qwen3-Embedding-8B": _QWEN3
    | {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 12_288},
    "e5-mistral-7b": {
        "architectures": ["MistralModel"],
        "model_type": "mistral",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14_336,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "sliding_window": 4096,
        "max_position_embeddings": 32_768,
        "vocab_size": 32_000,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
}


def tiny(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same kind of model, small enough for a test on a CPU."""
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    kept = {"num_key_value_heads": 2, "head_dim": 32}
    return {**config, **small, **{name: kept[name] for name in kept if name in config}, "vocab_size": 1_000}
