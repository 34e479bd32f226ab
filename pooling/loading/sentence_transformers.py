"""What Sentence Transformers' files say of a model: modules.json and the files it points to."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pooling.config import SequencePooling
from pooling.errors import CheckpointError

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
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
# sentence_bert_config.json was named after the model in early releases.
_SETTINGS = tuple(
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta")
)


@dataclass(frozen=True, slots=True)
class SentenceTransformersFiles:
    """pooling_type and normalize are None where the files are silent (no modules.json).

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
    include_prompt: bool = True


def read_sentence_transformers(directory: Path) -> SentenceTransformersFiles:
    """Reads the files under a model's directory; all of them are optional.

    Raises CheckpointError for a module or mode that would change the answer
    and that we do not apply: a wrong vector is worse than none.
    """
    prompts, default_prompt_name, similarity = _config(directory)
    modules_file = directory / "modules.json"
    if not modules_file.exists():
        length, lower_case = _settings(directory)
        return SentenceTransformersFiles(
            directory, None, None, length, lower_case, prompts, default_prompt_name, similarity
        )
    backbone, pooling_type, normalize, include_prompt = directory, None, False, True
    for module in read_json(modules_file):
        kind, place = str(module["type"]).rsplit(".", 1)[-1], directory / str(module.get("path", ""))
        if kind == "Transformer":
            backbone = place
        elif kind == "Pooling":
            pooling_type, include_prompt = _pooling(place / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Dropout":  # Dropout does nothing outside training
            raise CheckpointError(
                f"modules.json lists a {kind} module, which is not supported; supported are Transformer, Pooling, "
                "Normalize and Dropout"
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


def _settings(backbone: Path) -> tuple[int | None, bool]:
    for name in _SETTINGS:
        if (backbone / name).exists():
            config = read_json(backbone / name)
            return config.get("max_seq_length"), bool(config.get("do_lower_case", False))
    return None, False


def _config(directory: Path) -> tuple[dict[str, str], str | None, Similarity | None]:
    """Prompts by name, the default one's name, and how two vectors are compared."""
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
    return prompts, default, cast(Similarity | None, similarity)
