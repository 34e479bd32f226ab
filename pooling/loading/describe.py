"""describe(): a ModelSpec and the model's small files -> ModelCard, without reading a weight."""

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedConfig

from pooling.config import ModelSpec
from pooling.errors import CheckpointError, ConfigError
from pooling.loading.anatomy import Anatomy, anatomy_of
from pooling.loading.bge_m3 import TokenLayers, token_layers
from pooling.loading.card import ModelCard, SparseTask
from pooling.loading.families import Family, family_of
from pooling.loading.files import read_json
from pooling.loading.model_config import read_config, refuse_own_code
from pooling.loading.modules import width_after
from pooling.loading.resolve import Facts, resolve
from pooling.loading.scorer import scorer_of
from pooling.loading.sentence_transformers import SentenceTransformersFiles, read_sentence_transformers
from pooling.loading.sides import sides_of
from pooling.loading.source import locate
from pooling.loading.tensor_file import shape_of
from pooling.loading.tokenizer import TextTokenizer
from pooling.loading.vector_settings import check_vector_settings
from pooling.loading.vision import Vision, stack_of, vision_of
from pooling.parallel.plans import obstacle_to, sizes_of

# transformers writes int(1e30) where a tokenizer has no limit of its own.
_NO_LIMIT = 10**12
_VISION_ARCHITECTURES = (
    "CLIPModel",
    "SiglipModel",
    "ViTForImageClassification",
    "ColQwen2ForRetrieval",
    "ColPaliForRetrieval",
    *(
        f"{name}{head}"
        for name in ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL")
        for head in ("Model", "ForConditionalGeneration")
    ),
)


@dataclass(frozen=True, slots=True)
class Description:
    """All that the small files say: `backbone` is the directory with config.json and the weights.

    files and token_layers name what else has weights.
    """

    card: ModelCard
    config: PreTrainedConfig
    anatomy: Anatomy
    family: Family
    backbone: Path
    files: SentenceTransformersFiles
    token_layers: TokenLayers | None

    @property
    def stack(self) -> PreTrainedConfig:
        """The config of the layers that read text."""
        config: PreTrainedConfig = stack_of(self.config, self.family)
        return config


def describe(spec: ModelSpec) -> Description:
    """Reads the model's small files and settles what it is, what it does and how it pools.

    Raises SourceError, CheckpointError or ConfigError, each naming what was
    found and what is allowed.
    """
    try:
        return _describe(spec)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # A file that is JSON, but holds another kind of thing than the one whose name it has.
        raise CheckpointError(
            f"a configuration file of the model holds what it should not: {type(error).__name__}: {error}"
        ) from None


def _describe(spec: ModelSpec) -> Description:
    files = read_sentence_transformers(locate(spec.source))
    config = _overridden(read_config(files.backbone), spec)
    family = family_of(config.model_type)
    _refuse_split(spec, config, family)
    scorer, template = scorer_of(spec, config, files)
    anatomy = anatomy_of(config, scorer, splade=files.splade is not None)
    if not anatomy.labels:
        _refuse_template(spec, files, family)
    refuse_own_code(anatomy.architecture, config)
    stack = stack_of(config, family)
    vision = _vision(spec, config, family, anatomy, files)
    dim = _dim(config, stack, anatomy, files)
    layers = token_layers(files.backbone)
    facts = Facts(spec, stack, anatomy, family, files, dim, layers)
    poolers, scoring = resolve(facts)
    max_model_len = _max_model_len(spec, stack, family, files, vision)
    check_vector_settings(facts, poolers, max_model_len)
    colbert, markers = files.multi_vector, _markers(files)
    ranks = sizes_of(config, family.packed)
    sparse: SparseTask | None = "embed" if files.splade else "token_classify" if layers else None
    card = ModelCard(
        name=spec.served_name,
        source=spec.source,
        architecture=anatomy.architecture,
        model_type=config.model_type,
        dim=dim,
        max_model_len=max_model_len,
        vocab_size=1 if vision is not None and vision.kind == "images" else int(stack.vocab_size),
        poolers=poolers,
        scoring=scoring,
        labels=anatomy.labels,
        template=template if anatomy.labels else None,
        token_types=(getattr(stack, "type_vocab_size", None) or 0) > 1,
        matryoshka=_matryoshka(config),
        prompts=files.prompts,
        default_prompt_name=files.default_prompt_name,
        lower_case=files.lower_case,
        include_prompt=files.include_prompt,
        int8_range=facts.override.int8_range,
        chunked=facts.override.enable_chunked_processing,
        max_embed_len=facts.override.max_embed_len,
        chunk_overlap=facts.override.chunk_overlap,
        sides=sides_of(colbert, TextTokenizer.load(files.backbone, markers), config, max_model_len) if colbert else {},
        markers=markers,
        sparse_task=sparse if sparse in poolers else None,
        tensor_parallel_sizes=ranks,
        unsplit_because=None if ranks else obstacle_to(2, config, family.packed),
        vision=vision,
    )
    return Description(card, config, anatomy, family, files.backbone, files, layers)


def _refuse_split(spec: ModelSpec, config: PreTrainedConfig, family: Family) -> None:
    size = spec.tensor_parallel_size
    reason = obstacle_to(size, config, family.packed) if size > 1 else None
    if reason is not None:
        raise ConfigError(f"{spec.served_name}: tensor_parallel_size is {size}, but {reason}")


def _dim(config: PreTrainedConfig, stack: PreTrainedConfig, anatomy: Anatomy, files: SentenceTransformersFiles) -> int:
    if anatomy.kind in ("colbert", "retriever") and files.layers:
        raise CheckpointError(
            f"{anatomy.architecture} has its layer beside its weights; modules.json lists others, which is refused"
        )
    if anatomy.kind == "retriever":
        return int(config.embedding_dim)
    if anatomy.kind == "colbert":
        return shape_of(files.backbone, "linear.weight")[0]
    # OPT may project its answer; the two towers of CLIP and of SigLIP do.
    names = ("word_embed_proj_dim", "projection_dim")
    own = next((size for name in names if (size := getattr(config, name, None))), None)
    if own is None and config.model_type == "siglip":
        own = config.text_config.projection_size
    own = own or stack.hidden_size
    return width_after(files.layers, int(stack.vocab_size if anatomy.kind == "masked_lm" else own))


def _markers(files: SentenceTransformersFiles) -> tuple[str, ...]:
    markers = tuple((files.multi_vector.markers or {}).values()) if files.multi_vector else ()
    if markers and files.lower_case:
        raise CheckpointError("the model marks its texts with tokens, but do_lower_case would change them")
    return markers


def _overridden(config: PreTrainedConfig, spec: ModelSpec) -> PreTrainedConfig:
    overrides = spec.hf_overrides
    if overrides is not None and overrides.architectures is not None and not overrides.reads_tokens:
        config.architectures = list(overrides.architectures)
    return config


def _refuse_template(spec: ModelSpec, files: SentenceTransformersFiles, family: Family) -> None:
    """An embedding model reads texts as they are."""
    given = next((name for name in ("chat_template", "instruction") if getattr(spec, name) is not None), None)
    if given is not None:
        raise ConfigError(f"{spec.served_name}: {given} is for models that read a pair of texts together")
    if files.messages is not None and family.vision != "decoder":
        raise CheckpointError(
            "Sentence Transformers renders this model's texts as chat messages (modality_config has message), which is "
            "supported for models that score a pair, and for those that read images among texts"
        )


def _vision(
    spec: ModelSpec, config: PreTrainedConfig, family: Family, anatomy: Anatomy, files: SentenceTransformersFiles
) -> Vision | None:
    vision = vision_of(config, family, spec, files.backbone)
    if vision is None:
        return None
    name = anatomy.architecture
    if name not in _VISION_ARCHITECTURES:
        known = ", ".join(_VISION_ARCHITECTURES)
        raise CheckpointError(f"architecture {name} of {config.model_type} is not supported; supported are {known}")
    if spec.override_pooler_config is not None and spec.override_pooler_config.enable_chunked_processing:
        raise ConfigError(
            f"{spec.served_name}: enable_chunked_processing is for models that read text alone; {name} takes images"
        )
    return replace(vision, texts="message") if files.messages is not None else vision


def _max_model_len(
    spec: ModelSpec, config: PreTrainedConfig, family: Family, files: SentenceTransformersFiles, vision: Vision | None
) -> int:
    if vision is not None and vision.kind == "images":
        assert vision.tokens is not None
        return vision.tokens
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
    if derived < 1:
        raise CheckpointError(f"the model's files say that an input may have at most {derived} tokens")
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
