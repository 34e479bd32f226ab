"""The nouns that travel: PoolingRequest -> TokenizedInput -> PackedBatch -> PooledOutput."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Rows = NDArray[np.float32]
Prompt = str | Sequence[int] | Ids


@dataclass(frozen=True, slots=True)
class PoolingParams:
    """What a caller may ask of the pooler for one request; None keeps the model's choice.

    use_activation: normalise the vectors. dimensions: keep so many leading
    components (Matryoshka) before normalising.
    """

    use_activation: bool | None = None
    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class PoolingRequest:
    """What a caller asks for, before tokenising.

    truncate_prompt_tokens: None refuses an over-long input, -1 cuts it to what
    the model takes, k > 0 to k tokens, special tokens counted. truncation_side
    None means the tokenizer's own.
    """

    inputs: Sequence[Prompt]
    task: str | None = None
    params: PoolingParams = PoolingParams()
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool = True
    prompt_name: str | None = None


class TokenizedInput(NamedTuple):
    """One input as the model reads it: ids [tokens] int32."""

    ids: Ids


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Inputs of one request laid end to end, without padding.

    ids [tokens] int32, lengths [inputs] int32 in tokens, all positive.
    """

    ids: Ids
    lengths: Ids
    task: str = "embed"
    params: PoolingParams = PoolingParams()

    @classmethod
    def pack(cls, inputs: Sequence[TokenizedInput], task: str, params: PoolingParams) -> "PackedBatch":
        lengths = np.fromiter((len(item.ids) for item in inputs), dtype=np.int32, count=len(inputs))
        ids = np.concatenate([item.ids for item in inputs]) if inputs else np.empty(0, np.int32)
        return cls(ids.astype(np.int32, copy=False), lengths, task, params)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return len(self.ids)

    def offsets(self) -> NDArray[np.int64]:
        """Where each input begins in `ids`, and the end: [inputs + 1]."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    def slice(self, start: int, stop: int) -> "PackedBatch":
        """Inputs start..stop as a batch of their own."""
        bounds = self.offsets()
        return replace(self, ids=self.ids[bounds[start] : bounds[stop]], lengths=self.lengths[start:stop])


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a request went in the engine, in seconds."""

    queue_s: float = 0.0
    forward_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PooledOutput:
    """The answer to a PackedBatch, in input order.

    data [inputs, dim] float32 for a sequence task; for a token task
    [tokens, dim], and `lengths` [inputs] int32 says how many rows each input has.
    """

    data: Rows
    lengths: Ids | None = None
    timing: Timing = field(default_factory=Timing)

    def rows(self) -> list[Rows]:
        """The answer of each input: [dim], or [tokens, dim] for a token task."""
        if self.lengths is None:
            return list(self.data)
        return np.split(self.data, np.cumsum(self.lengths)[:-1])

    @staticmethod
    def merge(parts: Sequence["PooledOutput"]) -> "PooledOutput":
        """The answers of consecutive slices as one; times are those of the slowest slice."""
        if len(parts) == 1:
            return parts[0]
        data = np.concatenate([part.data for part in parts])
        counts = [part.lengths for part in parts if part.lengths is not None]
        timing = Timing(max(p.timing.queue_s for p in parts), max(p.timing.forward_s for p in parts))
        return PooledOutput(data, np.concatenate(counts) if counts else None, timing)
