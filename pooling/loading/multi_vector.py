"""How a multi-vector (ColBERT) model reads its two sides: files of Sentence Transformers, PyLate and Stanford.

Source: sentence_transformers/multi_vector_encoder/model.py of Sentence Transformers 6.2, whose loader translates the
two older layouts in the same way.
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pooling.errors import CheckpointError
from pooling.loading.files import read_json
from pooling.loading.modules import Mask

# What ColBERT pads its queries to where a checkpoint does not say.
_QUERY_LENGTH = 32
_PYLATE = (
    "query_length",
    "document_length",
    "query_expansion",
    "do_query_expansion",
    "attend_to_expansion_tokens",
    "attend_to_mask_tokens",
    "query_prefix",
    "document_prefix",
    "skiplist_words",
)
_PUNCTUATION = Mask(tuple(string.punctuation))


@dataclass(frozen=True, slots=True)
class Expansion:
    """Queries shorter than `length` tokens are filled up with `token`, None being the tokenizer's mask.

    cuts: whether `length` is also the most that a query may have. attends:
    whether the query's own tokens see those that fill it up; else these see
    the query only.
    """

    length: int
    cuts: bool
    attends: bool
    token: str | None


@dataclass(frozen=True, slots=True)
class MultiVector:
    """markers: prompts by name whose first word is one token, though the tokenizer may not know that yet."""

    mask: Mask
    query_length: int | None = None
    document_length: int | None = None
    expansion: Expansion | None = None
    markers: Mapping[str, str] | None = None


def is_multi_vector(config: Mapping[str, Any], architectures: tuple[str, ...]) -> bool:
    """By config_sentence_transformers.json and the names in config.json."""
    return config.get("model_type") in ("ColBERT", "MultiVectorEncoder") or "HF_ColBERT" in architectures


def is_pylate(config: Mapping[str, Any]) -> bool:
    """Whether PyLate saved it, which lists no mask and no normalisation: both were part of its class."""
    return config.get("model_type") == "ColBERT"


def read_multi_vector(config: Mapping[str, Any], backbone: Path, mask: Mask | None) -> MultiVector:
    """Of a model with modules.json; config is config_sentence_transformers.json's."""
    legacy: dict[str, Any] = {key: config[key] for key in _PYLATE[:2] if config.get(key) is not None}
    if "query_expansion" in config:
        legacy["query_expansion"] = config["query_expansion"]
    elif any(key in config for key in _PYLATE):
        legacy["query_expansion"] = None
        if config.get("do_query_expansion") is not False:
            attends = config.get("attend_to_expansion_tokens", config.get("attend_to_mask_tokens"))
            length = legacy.pop("query_length", None) or _QUERY_LENGTH
            legacy["query_expansion"] = {"strategy": "fixed", "attend": bool(attends), "length": length}
    file = backbone / "sentence_bert_config.json"
    settings = {**legacy, **(read_json(file) if file.exists() else {})}
    if is_pylate(config):
        words = config.get("skiplist_words")
        mask = _PUNCTUATION if words is None else Mask(tuple(words))
    expansion = _expansion(settings.get("query_expansion"))
    if expansion is not None and mask is None:
        raise CheckpointError("the model expands its queries, but modules.json lists no MultiVectorMask to score them")
    markers = {name: str(config[key] or "") for name, key in _prefixes() if key in config}
    return MultiVector(
        mask or Mask(), settings.get("query_length"), settings.get("document_length"), expansion, markers or None
    )


def read_stanford(directory: Path) -> MultiVector:
    """Of a checkpoint of the class HF_ColBERT, whose settings are in artifact.metadata."""
    file = directory / "artifact.metadata"
    config = read_json(file) if file.exists() else {}
    return MultiVector(
        mask=_PUNCTUATION if config.get("mask_punctuation", True) else Mask(),
        document_length=config.get("doc_maxlen"),
        expansion=Expansion(
            config.get("query_maxlen") or _QUERY_LENGTH, True, bool(config.get("attend_to_mask_tokens")), None
        ),
        markers={
            "query": (config.get("query_token_id") or "[unused0]") + " ",
            "document": (config.get("doc_token_id") or "[unused1]") + " ",
        },
    )


def with_markers(prompts: dict[str, str], markers: Mapping[str, str] | None) -> dict[str, str]:
    """The prompts with the marker of their side before them, which may be in them already."""
    marked = {name: marker + prompts.get(name, "").removeprefix(marker) for name, marker in (markers or {}).items()}
    return {**prompts, **marked}


def _prefixes() -> tuple[tuple[str, str], ...]:
    return (("query", "query_prefix"), ("document", "document_prefix"))


def _expansion(config: Mapping[str, Any] | None) -> Expansion | None:
    if config is None:
        return None
    strategy, length, attends = config.get("strategy"), config.get("length"), config.get("attend", False)
    unknown = sorted(set(config) - {"strategy", "length", "attend", "token"})
    good = strategy in ("fixed", "min") and isinstance(length, int) and length > 0 and isinstance(attends, bool)
    if unknown or not good:
        raise CheckpointError(
            f"query_expansion is {dict(config)}; supported are strategy fixed or min, a positive length, attend and "
            "token"
        )
    return Expansion(int(config["length"]), strategy == "fixed", bool(attends), config.get("token"))
