"""What the methods of LLM return, shaped like vLLM's."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class PoolingOutput:
    """data float32: [dim] for a sequence task, [tokens, dim] for a token task."""

    data: Tensor


@dataclass(frozen=True, slots=True)
class PoolingRequestOutput:
    """One input's answer. num_cached_tokens is always 0: nothing is taken from earlier requests."""

    request_id: str
    outputs: PoolingOutput
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """embedding: `hidden_size` float32 values as Python floats; integers where the precision asked for has them."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass(frozen=True, slots=True)
class EmbeddingRequestOutput:
    """One input's vector."""

    request_id: str
    outputs: EmbeddingOutput
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True


@dataclass(frozen=True, slots=True)
class ClassificationOutput:
    """probs: one float32 value for each label, as Python floats; labels says what they mean."""

    probs: list[float]
    labels: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.probs)

    @property
    def label(self) -> str | None:
        """The likeliest one."""
        return self.labels[max(range(len(self.probs)), key=self.probs.__getitem__)] if self.labels else None


@dataclass(frozen=True, slots=True)
class ClassificationRequestOutput:
    """One input's probabilities."""

    request_id: str
    outputs: ClassificationOutput
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True


@dataclass(frozen=True, slots=True)
class ScoringOutput:
    """How relevant the second text is to the first."""

    score: float


@dataclass(frozen=True, slots=True)
class ScoringRequestOutput:
    """One pair's score. prompt_token_ids: the pair as one input, or the tokens of both texts one after another."""

    request_id: str
    outputs: ScoringOutput
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True
