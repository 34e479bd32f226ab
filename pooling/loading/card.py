"""ModelCard: what a model is and can do, known from its small files before any weight is read."""

from dataclasses import dataclass, field

from pooling.config import PoolingType


@dataclass(frozen=True, slots=True)
class ResolvedPooler:
    """The pooling in force, and where each part of it was decided.

    sources maps `pooling_type`, `normalize` and `dimensions` to one of
    `override_pooler_config`, `sentence_transformers`, `model` or `default`.
    """

    pooling_type: PoolingType
    normalize: bool
    dimensions: int | None = None
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model is and can do.

    dim: components of a vector. max_model_len: tokens an input may have.
    tasks: what it does, the default first. matryoshka: the sizes it was trained
    to be cut to, () for none, None for any size up to dim.
    prompts: Sentence Transformers' prompts by name.
    """

    name: str
    source: str
    architecture: str
    model_type: str
    dim: int
    max_model_len: int
    vocab_size: int
    tasks: tuple[str, ...]
    pooler: ResolvedPooler
    matryoshka: tuple[int, ...] | None = ()
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    lower_case: bool = False
