"""describe(): a ModelSpec and the model's small files -> ModelCard, without reading a weight."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from pooling.config import ModelSpec, PoolingType
from pooling.errors import CheckpointError, ConfigError
from pooling.loading.card import ModelCard, ResolvedPooler
from pooling.loading.families import Family, family_of
from pooling.loading.model_config import read_config, refuse_own_code
from pooling.loading.sentence_transformers import SentenceTransformersFiles, read_json, read_sentence_transformers
from pooling.loading.source import locate

_EMBEDDERS = ("Model", "ForMaskedLM", "ForCausalLM", "ForPreTraining", "LMHeadModel", "T5ForConditionalGeneration")
# The `pooling` of NVIDIA's bidirectional Llamas.
_STATED: dict[str, PoolingType] = {"avg": "MEAN", "mean": "MEAN", "cls": "CLS", "last": "LAST"}
# transformers writes int(1e30) where a tokenizer has no limit of its own.
_NO_LIMIT = 10**12


@dataclass(frozen=True, slots=True)
class Description:
    """All that the small files say: `backbone` is the directory with config.json and the weights."""

    card: ModelCard
    config: PreTrainedConfig
    family: Family
    backbone: Path


def describe(spec: ModelSpec) -> Description:
    """Reads the model's small files and settles what it is, what it does and how it pools.

    Raises SourceError, CheckpointError or ConfigError, each naming what was
    found and what is allowed.
    """
    files = read_sentence_transformers(locate(spec.source))
    config = read_config(files.backbone)
    family = family_of(config.model_type)
    dim = int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)  # OPT may project its answer
    pooler = _resolve_pooler(spec, family, files, config, dim)
    card = ModelCard(
        name=spec.served_name,
        source=spec.source,
        architecture=_architecture(config),
        model_type=config.model_type,
        dim=dim,
        max_model_len=_max_model_len(spec, config, family, files),
        vocab_size=int(config.vocab_size),
        tasks=_tasks(spec, pooler),
        pooler=pooler,
        matryoshka=_matryoshka(config),
        prompts=files.prompts,
        default_prompt_name=files.default_prompt_name,
        lower_case=files.lower_case,
    )
    return Description(card, config, family, files.backbone)


def _architecture(config: PreTrainedConfig) -> str:
    names = config.architectures or ["(none named)"]
    embeds = names[0].endswith(_EMBEDDERS) and not names[0].endswith("RewardModel")
    if config.architectures and not embeds:
        raise CheckpointError(
            f"architecture {names[0]} has a task head that this release does not serve; "
            f"supported are embedding models, whose architecture ends in {', '.join(_EMBEDDERS)}"
        )
    refuse_own_code(str(names[0]), config)
    return str(names[0])


def _tasks(spec: ModelSpec, pooler: ResolvedPooler) -> tuple[str, ...]:
    if pooler.pooling_type == "ALL":
        if spec.task == "embed":
            raise ConfigError(f"{spec.served_name}: pooling_type ALL keeps every token, so task embed is impossible")
        return ("token_embed",)
    return ("token_embed", "embed") if spec.task == "token_embed" else ("embed", "token_embed")


def _max_model_len(spec: ModelSpec, config: PreTrainedConfig, family: Family, files: SentenceTransformersFiles) -> int:
    nominal = _tokenizer_limit(files.backbone, config)
    limits = [files.max_seq_length, _position_limit(config, family), None if family.position_bias else nominal]
    known = [int(limit) for limit in limits if limit is not None]
    if not known:
        # Nothing ends at the lengths these models name: they take longer inputs than they were trained on.
        length = spec.max_model_len or nominal or getattr(config, "n_positions", None)
        if length is None:
            raise ConfigError(f"{spec.served_name}: the model states no maximum length; set max_model_len")
        return int(length)
    derived = min(known)
    if spec.max_model_len is not None and spec.max_model_len > derived:
        raise ConfigError(
            f"{spec.served_name}: max_model_len is {spec.max_model_len}, but the model takes at most {derived} tokens"
        )
    return spec.max_model_len or derived


def _position_limit(config: PreTrainedConfig, family: Family) -> int | None:
    table: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if table is not None and rope.get("rope_type") == "longrope":
        # Beyond this, other frequencies count for the whole batch, so an input's answer would depend on the others.
        table = min(rope.get("original_max_position_embeddings", table), table)
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


def _stated_pooling(config: PreTrainedConfig) -> PoolingType | None:
    stated = getattr(config, "pooling", None)
    if stated is not None and stated not in _STATED:
        raise CheckpointError(f"config.json asks for pooling {stated!r}; supported is one of {', '.join(_STATED)}")
    return _STATED[stated] if stated is not None else None


def _resolve_pooler(
    spec: ModelSpec, family: Family, files: SentenceTransformersFiles, config: PreTrainedConfig, dim: int
) -> ResolvedPooler:
    """override_pooler_config beats Sentence Transformers' files, they beat the model, it beats the task's default."""
    override = spec.override_pooler_config
    sources: dict[str, str] = {}

    def settle(part: str, *candidates: tuple[str, Any]) -> Any:
        for source, value in candidates:
            if value is not None:
                sources[part] = source
                return value
        return None

    pooling_type: PoolingType = settle(
        "pooling_type",
        ("override_pooler_config", override and override.pooling_type),
        ("sentence_transformers", files.pooling_type),
        ("model", _stated_pooling(config)),
        ("model" if family.pooling_type != "LAST" else "default", family.pooling_type),
    )
    normalize = settle(
        "normalize",
        ("override_pooler_config", override and override.activation),
        ("sentence_transformers", files.normalize),
        ("default", True),
    )
    dimensions = settle("dimensions", ("override_pooler_config", override and override.dimensions))
    if dimensions is not None and dimensions > dim:
        raise ConfigError(f"{spec.served_name}: dimensions is {dimensions}, but the model's vectors have {dim}")
    return ResolvedPooler(pooling_type, bool(normalize), dimensions, sources)
