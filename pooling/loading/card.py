"""ModelCard: what a model is and can do, known from its small files before any weight is read."""

from dataclasses import dataclass, field
from typing import Literal

from pooling.config import PoolingType
from pooling.loading.families import OwnPooling
from pooling.loading.score_templates import Template
from pooling.loading.vision import Vision

# cross_encoder: the model reads a pair and answers one number. The others compare vectors of the two texts apart.
Scoring = Literal["cross_encoder", "cosine", "dot", "euclidean", "manhattan", "max_sim", "mean_max_sim"]
# SPLADE's reduce what a masked-language-model head says of each token, so no other model can be asked for them.
SpladePooling = Literal["SPLADE_MAX", "SPLADE_SUM"]
InputType = Literal["query", "document"]
SparseTask = Literal["embed", "token_classify"]


@dataclass(frozen=True, slots=True)
class ResolvedPooler:
    """How one task is answered, and where each part of that was decided.

    head names the part of the model that reads the pooled rows; None leaves the
    vectors as they are. activation is `normalize`, `softmax`, `sigmoid`,
    `identity` or a class of torch.nn.modules by its dotted name; activate says
    whether it is applied where a request does not. width: numbers of a row
    before it is cut to `dimensions`. step_tag_id: of STEP, the token whose rows
    are kept. returned_token_ids: the columns that are kept, in this order.
    logit_mean and logit_sigma calibrate before the activation. skipped_id: the
    token that LAST passes over at the end of an input. head_first: the head reads
    every token, and what it says of them is pooled. edge_ids: of a token task,
    the tokens that have no row where an input begins with the one or ends with
    the other.
    sources maps `pooling_type`, `activation` and `dimensions` to one of
    `override_pooler_config`, `sentence_transformers`, `model` or `default`.
    """

    pooling_type: PoolingType | SpladePooling | OwnPooling
    width: int
    activation: str = "normalize"
    activate: bool = True
    head: str | None = None
    dimensions: int | None = None
    step_tag_id: int | None = None
    returned_token_ids: tuple[int, ...] | None = None
    logit_mean: float | None = None
    logit_sigma: float | None = None
    skipped_id: int | None = None
    head_first: bool = False
    edge_ids: tuple[int | None, int | None] = (None, None)
    sources: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """In words for whoever reads a log: `MEAN (sentence_transformers), projection, normalize (default)`."""
        parts = [
            f"{self.pooling_type} ({self.sources.get('pooling_type', 'default')})",
            *([self.head] if self.head else []),
        ]
        parts.append(f"{'' if self.activate else 'no '}{self.activation} ({self.sources.get('activation', 'default')})")
        if self.dimensions is not None:
            parts.append(f"cut to {self.dimensions} ({self.sources.get('dimensions', 'default')})")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Side:
    """How a multi-vector model reads its queries, or its documents.

    max_tokens: None means no limit of its own. expand_to: shorter inputs are
    filled up to so many tokens with expansion_id, None: not at all; attends:
    whether the input's own tokens see those. dropped_ids have no row in the
    answer, nor has any token but kept_ids, where there are some.
    """

    max_tokens: int | None = None
    expand_to: int | None = None
    expansion_id: int = 0
    attends: bool = False
    dropped_ids: tuple[int, ...] = ()
    kept_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model is and can do.

    poolers: how each task is answered that a forward pass can answer, the
    default first. scoring: how two texts are compared, None if they cannot be.
    dim: components of a vector. max_model_len: tokens an input may have.
    labels: what the columns of a classifier mean. template: how a pair reads, None
    for its two texts as the tokenizer joins them. token_types: whether the
    second text of a pair is marked for the model.
    matryoshka: the sizes it was trained to be cut to, () for none, None for any
    size up to dim. prompts: Sentence Transformers' prompts by name.
    include_prompt: whether a prompt's tokens are pooled too. int8_range: what
    int8 and uint8 vectors cover, where the configuration says so. chunked,
    max_embed_len, chunk_overlap: how texts are embedded that are longer than
    max_model_len, as in PoolerConfig.
    sides: how a multi-vector model reads queries and documents, empty for others.
    markers: prompts whose first word is one token of theirs. sparse_task: the
    task whose answer is a weight for each word of the vocabulary, or of the
    input; None for most models. tensor_parallel_sizes: over how many ranks, above
    one, it can be split; unsplit_because: why it cannot be split at all. vision:
    how it takes images, None for a model that takes none.
    """

    name: str
    source: str
    architecture: str
    model_type: str
    dim: int
    max_model_len: int
    vocab_size: int
    poolers: dict[str, ResolvedPooler]
    scoring: Scoring | None = None
    labels: tuple[str, ...] = ()
    template: Template | None = None
    token_types: bool = False
    matryoshka: tuple[int, ...] | None = ()
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    lower_case: bool = False
    include_prompt: bool = True
    int8_range: float | None = None
    chunked: bool = False
    max_embed_len: int | None = None
    chunk_overlap: int | None = None
    sides: dict[InputType, Side] = field(default_factory=dict)
    markers: tuple[str, ...] = ()
    sparse_task: SparseTask | None = None
    tensor_parallel_sizes: tuple[int, ...] = ()
    unsplit_because: str | None = None
    vision: Vision | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the model does, the default first; `score` too where it is made of vectors."""
        scores = ("score",) if self.scoring is not None and "score" not in self.poolers else ()
        return (*self.poolers, *scores)

    @property
    def pooler(self) -> ResolvedPooler:
        """That of the default task."""
        return next(iter(self.poolers.values()))

    def labels_of(self, task: str) -> tuple[str, ...]:
        """What the columns of the task's answer mean, where they have names."""
        columns = self.poolers[task].returned_token_ids
        return self.labels if columns is None else tuple(self.labels[column] for column in columns)

    def longest(self, task: str) -> int | None:
        """Tokens that an input of this task may have; None: any number."""
        if task != "embed" or not (self.chunked or self.max_embed_len):
            return self.max_model_len
        return self.max_embed_len

    def normalises(self, task: str, use_activation: bool | None) -> bool:
        """Whether the task's vectors have length one where a request asks so of the activation."""
        pooler = self.poolers[task]
        activate = pooler.activate if use_activation is None else use_activation
        return activate and pooler.activation == "normalize"
