"""What Sentence Transformers' files say of a model: modules.json and the files it points to."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pooling.config import SequencePooling
from pooling.errors import CheckpointError
from pooling.loading.score_templates import ChatTemplate

# The name of the flag in older Pooling configs, and of the mode in newer ones, without the prefix.
_MODES: dict[str, SequencePooling] = {
    "cls_token": "CLS",
    "cls": "CLS",
    "mean_tokens": "MEAN",
    "mean": "MEAN",
    "max_tokens": "MAX",
    "max": "MAX",
    "lasttoken": "LAST",
    "weightedmean_tokens": "WEIGHTEDMEAN",
    "weightedmean": "WEIGHTEDMEAN",
    "mean_sqrt_len_tokens": "MEAN_SQRT_LEN",
}
# Settings of the tokenizer call that change the length of an input or of its padding, and nothing else.
_HARMLESS = {"max_length", "truncation", "padding", "padding_side", "pad_to_multiple_of", "logits_to_keep"}
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
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
    """

    backbone: Path
    pooling_type: SequencePooling | None = None
    normalize: bool | None = None
    max_seq_length: int | None = None
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity: Similarity | None = None
    logit_score: tuple[int, ...] | None = None
    messages: ChatTemplate | None = None
    activation: str | None = None
    include_prompt: bool = True


def read_sentence_transformers(directory: Path) -> SentenceTransformersFiles:
    """Reads the files under a model's directory; all of them are optional.

    Raises CheckpointError for a module or mode that would change the answer
    and that we do not apply: a wrong vector is worse than none.
    """
    prompts, default_prompt_name, similarity, activation = _config(directory)
    modules_file = directory / "modules.json"
    if not modules_file.exists():
        length, lower_case = _settings(directory)
        return SentenceTransformersFiles(
            directory, None, None, length, lower_case, prompts, default_prompt_name, similarity, activation=activation
        )
    backbone, pooling_type, normalize, include_prompt, logit_score = directory, None, False, True, None
    for module in read_json(modules_file):
        kind, place = str(module["type"]).rsplit(".", 1)[-1], directory / str(module.get("path", ""))
        if kind == "Transformer":
            backbone = place
        elif kind == "Pooling":
            pooling_type, include_prompt = _pooling(place / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind == "LogitScore":
            logit_score = _logit_score(place / "config.json")
        elif kind != "Dropout":  # Dropout does nothing outside training
            raise CheckpointError(
                f"modules.json lists a {kind} module, which is not supported; supported are Transformer, Pooling, "
                "Normalize, LogitScore and Dropout"
            )
    length, lower_case = _settings(backbone)
    return SentenceTransformersFiles(
        backbone,
        pooling_type,
        normalize,
        length,
        lower_case,
        prompts,
        default_prompt_name,
        similarity,
        logit_score,
        _messages(backbone),
        activation,
        include_prompt,
    )


def read_json(file: Path) -> Any:
    """The content of a JSON file; raises CheckpointError naming the file."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"the model has no {file.name}, which it needs") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file.name} cannot be read as JSON: {error}") from None


def _pooling(file: Path) -> tuple[SequencePooling, bool]:
    """How the module pools, and whether the tokens of a prompt count."""
    config = read_json(file)
    modes = [key.removeprefix("pooling_mode_") for key, value in config.items() if value is True and "mode" in key]
    named = config.get("pooling_mode")
    if named is not None:
        modes = [named] if isinstance(named, str) else list(named)
    if len(modes) != 1 or modes[0] not in _MODES:
        allowed = ", ".join(dict.fromkeys(_MODES.values()))
        raise CheckpointError(f"the Pooling module asks for {modes or 'no mode'}; supported is one of {allowed}")
    return _MODES[modes[0]], config.get("include_prompt") is not False


def _logit_score(file: Path) -> tuple[int, ...]:
    config = read_json(file)
    true, false = config.get("true_token_id"), config.get("false_token_id")
    if true is None or config.get("module_input_name", "causal_logits") != "causal_logits":
        raise CheckpointError(f"the LogitScore module says {config}; it needs true_token_id and reads causal_logits")
    return (int(true),) if false is None else (int(false), int(true))


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


def _config(directory: Path) -> tuple[dict[str, str], str | None, Similarity | None, str | None]:
    """Prompts by name, the default one's name, how two vectors are compared, and a CrossEncoder's activation."""
    file = directory / "config_sentence_transformers.json"
    config = read_json(file) if file.exists() else {}
    prompts = {str(name): str(text or "") for name, text in (config.get("prompts") or {}).items()}
    default = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        known = ", ".join(sorted(prompts)) or "none"
        raise CheckpointError(f"default_prompt_name is {default!r}, but the model's prompts are: {known}")
    similarity = config.get("similarity_fn_name")
    if similarity is not None and similarity not in get_args(Similarity):
        raise CheckpointError(f"similarity_fn_name is {similarity!r}; supported are {', '.join(get_args(Similarity))}")
    return prompts, default, cast(Similarity | None, similarity), config.get("activation_fn")
