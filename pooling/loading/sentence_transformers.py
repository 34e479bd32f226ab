"""What Sentence Transformers' files say of a model: modules.json and the files it points to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pooling.config import SequencePooling
from pooling.errors import CheckpointError
from pooling.loading.card import Scoring
from pooling.loading.files import read_json
from pooling.loading.modules import Layer, Modules, Splade, read_modules
from pooling.loading.multi_vector import (
    MultiVector,
    is_multi_vector,
    is_pylate,
    read_multi_vector,
    read_stanford,
    with_markers,
)
from pooling.loading.score_templates import ChatTemplate

_SIMILARITIES: dict[str, Scoring] = {
    "cosine": "cosine",
    "dot": "dot",
    "euclidean": "euclidean",
    "manhattan": "manhattan",
}
# Settings of the tokenizer call that change the length of an input or of its padding, and nothing else.
_HARMLESS = {"max_length", "truncation", "padding", "padding_side", "pad_to_multiple_of", "logits_to_keep"}
# sentence_bert_config.json was named after the model in early releases.
_SETTINGS = tuple(
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta")
)


@dataclass(frozen=True, slots=True)
class SentenceTransformersFiles:
    """pooling_type and normalize are None where the files are silent (no modules.json).

    logit_score: of a causal language model, the token whose logit is a score, or
    the two whose difference is, false and true. messages: how inputs are rendered
    as chat messages, None for plain text. activation: a CrossEncoder's, by its dotted name.
    include_prompt: whether the tokens of a prompt are pooled too.
    layers: what reads the pooled rows, in order. splade: how the answers of a
    masked-language-model head are reduced. multi_vector: how queries and
    documents are read apart, each token keeping its vector.
    """

    backbone: Path
    pooling_type: SequencePooling | None = None
    normalize: bool | None = None
    max_seq_length: int | None = None
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity: Scoring | None = None
    layers: tuple[Layer, ...] = ()
    splade: Splade | None = None
    multi_vector: MultiVector | None = None
    logit_score: tuple[int, ...] | None = None
    messages: ChatTemplate | None = None
    activation: str | None = None
    include_prompt: bool = True


def read_sentence_transformers(directory: Path) -> SentenceTransformersFiles:
    """Reads the files under a model's directory; all of them are optional.

    Raises CheckpointError for a module or mode that would change the answer
    and that we do not apply: a wrong vector is worse than none.
    """
    config = _optional(directory / "config_sentence_transformers.json")
    architectures = tuple(_optional(directory / "config.json").get("architectures") or ())
    prompts = {str(name): str(text or "") for name, text in (config.get("prompts") or {}).items()}
    colbert = is_multi_vector(config, architectures)
    modules = Modules(directory, None, (), False, None, None, True)
    listed = (directory / "modules.json").exists()
    if listed:
        modules = read_modules(directory, colbert)
    multi_vector: MultiVector | None = None
    if listed and (colbert or modules.mask is not None):
        multi_vector = read_multi_vector(config, modules.backbone, modules.mask)
    elif "HF_ColBERT" in architectures:
        multi_vector = read_stanford(directory)
    if multi_vector is not None:
        prompts = with_markers(prompts, multi_vector.markers)
    length, lower_case = _settings(modules.backbone)
    return SentenceTransformersFiles(
        modules.backbone,
        modules.pooling_type,
        (modules.normalize or is_pylate(config)) if listed else None,
        length,
        lower_case,
        prompts,
        _default_prompt(config, prompts),
        _similarity(config, multi_vector is not None),
        modules.layers,
        modules.splade,
        multi_vector,
        modules.logit_score,
        _messages(modules.backbone) if listed else None,
        config.get("activation_fn"),
        modules.include_prompt,
    )


def _settings(backbone: Path) -> tuple[int | None, bool]:
    config = _transformer(backbone)
    return config.get("max_seq_length"), bool(config.get("do_lower_case", False))


def _messages(backbone: Path) -> ChatTemplate | None:
    """How the Transformer module renders its inputs as chat messages, which it does wherever it can."""
    config = _transformer(backbone)
    settings = dict(config.get("processing_kwargs") or {})
    variables = dict(settings.pop("chat_template", None) or {})
    odd = sorted({str(key) for group in settings.values() for key in group or () if key not in _HARMLESS})
    if odd:
        raise CheckpointError(f"processing_kwargs sets {', '.join(odd)}, which is not supported")
    message = (config.get("modality_config") or {}).get("message")
    if message is None:
        return None
    variables.pop("restore_suffix", None)  # what follows the texts is always kept
    source = variables.pop("chat_template", None)
    variables = {name: value for name, value in variables.items() if name not in _HARMLESS}
    return ChatTemplate(source, structured=message.get("format") != "flat", variables=variables)


def _transformer(backbone: Path) -> dict[str, Any]:
    file = next((backbone / name for name in _SETTINGS if (backbone / name).exists()), None)
    config: dict[str, Any] = {} if file is None else read_json(file)
    return config


def _default_prompt(config: Any, prompts: dict[str, str]) -> str | None:
    default: str | None = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        known = ", ".join(sorted(prompts)) or "none"
        raise CheckpointError(f"default_prompt_name is {default!r}, but the model's prompts are: {known}")
    return default


def _similarity(config: Any, multi_vector: bool) -> Scoring | None:
    """How two texts are compared. What is saved for a multi-vector model was long ignored, and may be of one vector."""
    named = config.get("similarity_fn_name")
    if multi_vector:
        return "mean_max_sim" if named == "meanmaxsim" else "max_sim"
    if named is not None and named not in _SIMILARITIES:
        raise CheckpointError(f"similarity_fn_name is {named!r}; supported are {', '.join(_SIMILARITIES)}")
    return None if named is None else _SIMILARITIES[named]


def _optional(file: Path) -> Any:
    return read_json(file) if file.exists() else {}
