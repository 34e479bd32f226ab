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
    """embedding: `hidden_size` float32 values as Python floats."""

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
