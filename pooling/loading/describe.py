"""describe(): a ModelSpec and the model's small files -> ModelCard, without reading a weight."""

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from pooling.config import ModelSpec
from pooling.errors import CheckpointError, ConfigError
from pooling.loading.anatomy import Anatomy, anatomy_of, kind_of
from pooling.loading.card import ModelCard
from pooling.loading.families import Family, family_of
from pooling.loading.resolve import Facts, resolve
from pooling.loading.scorer import scorer_of
from pooling.loading.sentence_transformers import SentenceTransformersFiles, read_json, read_sentence_transformers
from pooling.loading.source import locate

# transformers writes int(1e30) where a tokenizer has no limit of its own.
_NO_LIMIT = 10**12


@dataclass(frozen=True, slots=True)
class Description:
    """All that the small files say: `backbone` is the directory with config.json and the weights."""

    card: ModelCard
    config: PreTrainedConfig
    anatomy: Anatomy
    family: Family
    backbone: Path


def describe(spec: ModelSpec) -> Description:
    """Reads the model's small files and settles what it is, what it does and how it pools.

    Raises SourceError, CheckpointError or ConfigError, each naming what was
    found and what is allowed.
    """
    files = read_sentence_transformers(locate(spec.source))
    config = _read_config(files.backbone, spec)
    family = family_of(config.model_type)
    scorer, template = scorer_of(spec, config, files)
    anatomy = anatomy_of(config, scorer)
    if not anatomy.labels:
        _refuse_template(spec, files)
    dim = int(config.hidden_size)
    poolers, scoring = resolve(Facts(spec, config, anatomy, family, files, dim))
    card = ModelCard(
        name=spec.served_name,
        source=spec.source,
        architecture=anatomy.architecture,
        model_type=config.model_type,
        dim=dim,
        max_model_len=_max_model_len(spec, config, family, files),
        vocab_size=int(config.vocab_size),
        poolers=poolers,
        scoring=scoring,
        labels=anatomy.labels,
        template=template if anatomy.labels else None,
        token_types=getattr(config, "type_vocab_size", 0) > 1,
        matryoshka=_matryoshka(config),
        prompts=files.prompts,
        default_prompt_name=files.default_prompt_name,
        lower_case=files.lower_case,
    )
    return Description(card, config, anatomy, family, files.backbone)


def _read_config(backbone: Path, spec: ModelSpec) -> PreTrainedConfig:
    if not (backbone / "config.json").exists():
        raise CheckpointError("the model has no config.json, so its architecture is unknown")
    raw = read_json(backbone / "config.json")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(backbone, trust_remote_code=False)
    except Exception as error:  # any failure of transformers to make sense of the file has one meaning for the user
        for name in (raw.get("architectures") or [])[:1]:
            kind_of(name)  # a head that is not served is the better reason
        raise CheckpointError(f"config.json is not one that transformers knows: {str(error).splitlines()[0]}") from None
    if getattr(config, "is_encoder_decoder", False):
        raise CheckpointError(f"{config.model_type} is an encoder-decoder model, which is not supported")
    if not all(hasattr(config, name) for name in ("hidden_size", "vocab_size", "num_hidden_layers")):
        raise CheckpointError(f"{config.model_type} is not a text model of one stack of layers, which is supported")
    overrides = spec.hf_overrides
    if overrides is not None and overrides.architectures is not None and not overrides.reads_tokens:
        config.architectures = list(overrides.architectures)
    return config


def _refuse_template(spec: ModelSpec, files: SentenceTransformersFiles) -> None:
    """An embedding model reads texts as they are."""
    given = next((name for name in ("chat_template", "instruction") if getattr(spec, name) is not None), None)
    if given is not None:
        raise ConfigError(f"{spec.served_name}: {given} is for models that read a pair of texts together")
    if files.messages is not None:
        raise CheckpointError(
            "Sentence Transformers renders this model's texts as chat messages (modality_config has message), which is "
            "supported for models that score a pair"
        )


def _max_model_len(spec: ModelSpec, config: PreTrainedConfig, family: Family, files: SentenceTransformersFiles) -> int:
    limits = [files.max_seq_length, _position_limit(config, family), _tokenizer_limit(files.backbone, config)]
    known = [int(limit) for limit in limits if limit is not None]
    if not known:
        if spec.max_model_len is None:
            raise ConfigError(f"{spec.served_name}: the model states no maximum length; set max_model_len")
        return spec.max_model_len
    derived = min(known)
    if spec.max_model_len is not None and spec.max_model_len > derived:
        raise ConfigError(
            f"{spec.served_name}: max_model_len is {spec.max_model_len}, but the model takes at most {derived} tokens"
        )
    return spec.max_model_len or derived


def _position_limit(config: PreTrainedConfig, family: Family) -> int | None:
    table = getattr(config, "max_position_embeddings", None)
    if table is None or not family.positions_after_pad:
        return table
    return int(table) - int(config.pad_token_id) - 1


def _tokenizer_limit(backbone: Path, config: PreTrainedConfig) -> int | None:
    """The tokenizer's own limit, which counts for models with a table of positions only."""
    file = backbone / "tokenizer_config.json"
    if not file.exists() or getattr(config, "rope_parameters", None) is not None:
        return None
    limit = read_json(file).get("model_max_length")
    return int(limit) if limit is not None and limit < _NO_LIMIT else None


def _matryoshka(config: PreTrainedConfig) -> tuple[int, ...] | None:
    sizes = getattr(config, "matryoshka_dimensions", None)
    if sizes:
        return tuple(sorted(int(size) for size in sizes))
    return None if getattr(config, "is_matryoshka", False) else ()
