"""The nouns that travel: PoolingRequest -> TokenizedInput -> PackedBatch -> PooledOutput."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Rows = NDArray[np.float32]
Pair = tuple[str, str]
Prompt = str | Sequence[int] | Ids | Pair
Number = TypeVar("Number", bound="np.generic")


@dataclass(frozen=True, slots=True)
class PoolingParams:
    """What a caller may ask of the pooler for one request; None keeps the model's choice.

    use_activation: normalise vectors, make probabilities of logits. dimensions:
    keep so many leading components (Matryoshka) before normalising.
    step_tag_id: of a token task, keep the rows of this token alone.
    returned_token_ids: keep these columns, in this order.
    """

    use_activation: bool | None = None
    dimensions: int | None = None
    step_tag_id: int | None = None
    returned_token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class PoolingRequest:
    """What a caller asks for, before tokenising.

    inputs: texts, lists of token ids, or pairs of a query and a document for a
    model that reads them together. max_tokens_per_query and max_tokens_per_doc
    cut each text of a pair, special tokens not counted; None: not at all.
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
    max_tokens_per_query: int | None = None
    max_tokens_per_doc: int | None = None


class TokenizedInput(NamedTuple):
    """One input as the model reads it: ids [tokens] int32; from token `second` on it is the second text of a pair."""

    ids: Ids
    second: int | None = None


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Inputs of one request laid end to end, without padding.

    ids [tokens] int32, lengths [inputs] int32 in tokens, all positive.
    second [inputs] int32, where inputs are pairs and the model is told so: the
    token of each input at which its second text begins.
    """

    ids: Ids
    lengths: Ids
    task: str = "embed"
    params: PoolingParams = PoolingParams()
    second: Ids | None = None

    @classmethod
    def pack(cls, inputs: Sequence[TokenizedInput], task: str, params: PoolingParams) -> "PackedBatch":
        lengths = np.fromiter((len(item.ids) for item in inputs), dtype=np.int32, count=len(inputs))
        ids = np.concatenate([item.ids for item in inputs]) if inputs else np.empty(0, np.int32)
        second = None
        if any(item.second is not None for item in inputs):
            second = np.array([len(i.ids) if i.second is None else i.second for i in inputs], np.int32)
        return cls(ids.astype(np.int32, copy=False), lengths, task, params, second)

    @classmethod
    def join(cls, batches: Sequence["PackedBatch"]) -> "PackedBatch":
        """The inputs of several batches as one; task and params are those of the first, which all share."""
        if len(batches) == 1:
            return batches[0]
        ids, lengths = (np.concatenate([getattr(batch, name) for batch in batches]) for name in ("ids", "lengths"))
        return replace(batches[0], ids=ids, lengths=lengths, second=join_second(batches))

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
        second = None if self.second is None else self.second[start:stop]
        ids = self.ids[bounds[start] : bounds[stop]]
        return replace(self, ids=ids, lengths=self.lengths[start:stop], second=second)

    def take(self, inputs: NDArray[np.int64], bounds: NDArray[np.int64]) -> "PackedBatch":
        """The chosen inputs, in that order, as a batch of their own; bounds are offsets()."""
        if len(inputs) == len(self) and (len(inputs) == 1 or np.array_equal(inputs, np.arange(len(inputs)))):
            return self
        ids = np.concatenate([self.ids[bounds[i] : bounds[i + 1]] for i in inputs])
        second = None if self.second is None else self.second[inputs]
        return replace(self, ids=ids, lengths=self.lengths[inputs], second=second)


def join_second(batches: Sequence[PackedBatch]) -> Ids | None:
    """`second` of several batches laid end to end; inputs of a batch without one have no second text."""
    if all(batch.second is None for batch in batches):
        return None
    return np.concatenate([batch.lengths if batch.second is None else batch.second for batch in batches])


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a request went in the engine, in seconds."""

    queue_s: float = 0.0
    forward_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PooledOutput:
    """The answer to a PackedBatch, in input order.

    data [inputs, width] float32 for a sequence task; for a token task
    [rows, width], and `lengths` [inputs] int32 says how many rows each input has:
    one for each token, or fewer where only some tokens are asked for.
    """

    data: Rows
    lengths: Ids | None = None
    timing: Timing = field(default_factory=Timing)

    def rows(self) -> list[Rows]:
        """The answer of each input: [dim], or [tokens, dim] for a token task."""
        return self.split(self.data)

    def split(self, data: NDArray[Number]) -> list[NDArray[Number]]:
        """Data with the rows of this answer, e.g. in another number format, by input as in rows()."""
        if self.lengths is None:
            return list(data)
        return np.split(data, np.cumsum(self.lengths)[:-1])

    @staticmethod
    def merge(parts: Sequence["PooledOutput"]) -> "PooledOutput":
        """The answers of consecutive slices as one; times are those of the slowest slice."""
        if len(parts) == 1:
            return parts[0]
        data = np.concatenate([part.data for part in parts])
        counts = [part.lengths for part in parts if part.lengths is not None]
        timing = Timing(max(p.timing.queue_s for p in parts), max(p.timing.forward_s for p in parts))
        return PooledOutput(data, np.concatenate(counts) if counts else None, timing)
