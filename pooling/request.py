"""The nouns that travel: PoolingRequest -> TokenizedInput -> PackedBatch -> PooledOutput."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pooling.media import Content, Conversation, Image, ImagePrompt, Media, ProcessedImage, join_media

Ids = NDArray[np.int32]
Rows = NDArray[np.float32]
Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Chunks:
    """A text in chunks, for late chunking: read as one, `separator` between them, with a vector for each chunk."""

    texts: tuple[str, ...]
    separator: str = " "


# Of a query and a document, each a text or texts and images.
ContentPair = tuple[str | Content, str | Content]
Prompt = str | Sequence[int] | Ids | Pair | Chunks | Image | ImagePrompt | Content | Conversation | ContentPair
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

    def __post_init__(self) -> None:
        columns: Any = self.returned_token_ids
        if isinstance(columns, list):  # as vLLM takes them; params are keys, and a list is none
            object.__setattr__(self, "returned_token_ids", tuple(columns))


@dataclass(frozen=True, slots=True)
class PoolingRequest:
    """What a caller asks for, before tokenising.

    inputs: texts, lists of token ids, pairs of a query and a document for a
    model that reads them together, or Chunks; for a model that takes images also
    the nouns of pooling/media.py. max_tokens_per_query and max_tokens_per_doc
    cut each text of a pair, special tokens not counted; None: not at all.
    instruction and chat_template are for models that read a pair by a template:
    what the template tells the model, and another template; None: the model's own.
    truncate_prompt_tokens: None refuses an over-long input, -1 cuts it to what
    the model takes, k > 0 to k tokens, special tokens counted. truncation_side
    None means the tokenizer's own. What is put before every text: `prompt` as it
    stands, or the model's prompt named `prompt_name`; neither: the model's
    default prompt, if it has one. input_type: which side of a search the texts
    are on, for a model that reads queries and documents in two ways; None: on
    neither.
    first and of: where the inputs are a part of a longer list, the number of the
    first one in it and its length, by which refusals name an input.
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
    instruction: str | None = None
    chat_template: str | None = None
    prompt: str | None = None
    input_type: Literal["query", "document"] | None = None
    first: int = 0
    of: int | None = None


class TokenizedInput(NamedTuple):
    """One input as the model reads it: ids [tokens] int32; from token `second` on it is the second text of a pair.

    segments [tokens] int32: as in PackedBatch. Only its first `attended` tokens are
    seen by the others, None: all. media: its images, whose tokens are among ids.
    """

    ids: Ids
    second: int | None = None
    segments: Ids | None = None
    attended: int | None = None
    media: tuple[ProcessedImage, ...] = ()


class Frame(NamedTuple):
    """Tokens that texts begin and end with beside their own words: special ones and those of a prompt."""

    head: Ids
    tail: Ids


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Inputs of one request laid end to end, without padding.

    ids [tokens] int32, lengths [inputs] int32 in tokens, all positive.
    second [inputs] int32, where inputs are pairs and the model is told so: the
    token of each input at which its second text begins.
    segments [tokens] int32, where not all tokens of an input are pooled into its
    vector: -1 at a token that is not, else to which of the input's vectors it
    counts, from 0 on without a gap. by_segment: whether an input has a vector
    for each segment; otherwise it has the one of segment 0. frame: what every
    chunk of an input that is too long repeats, where the model's chunks do.
    attended [inputs] int32, where queries are filled up with tokens that their
    own do not see: how many of each input's tokens are seen, from its first on.
    input_type: the side that all inputs are on. first: the number of the first
    input in the caller's list, of which the batch may be a slice. media: of each
    input its images, whose tokens ids has as placeholders; None: no input has
    any. An image that several inputs share is one object, and travels once.
    """

    ids: Ids
    lengths: Ids
    task: str = "embed"
    params: PoolingParams = PoolingParams()
    second: Ids | None = None
    segments: Ids | None = None
    by_segment: bool = False
    frame: Frame | None = None
    attended: Ids | None = None
    input_type: Literal["query", "document"] | None = None
    first: int = 0
    media: Media | None = None

    @classmethod
    def pack(
        cls,
        inputs: Sequence[TokenizedInput],
        task: str,
        params: PoolingParams,
        input_type: Literal["query", "document"] | None = None,
    ) -> "PackedBatch":
        lengths = np.fromiter((len(item.ids) for item in inputs), dtype=np.int32, count=len(inputs))
        ids = np.concatenate([item.ids for item in inputs]) if inputs else np.empty(0, np.int32)
        second, attended = (_given([getattr(item, name) for item in inputs], lengths) for name in _PER_INPUT)
        segments = None
        if any(item.segments is not None for item in inputs):
            segments = np.concatenate(
                [np.zeros(len(i.ids), np.int32) if i.segments is None else i.segments for i in inputs]
            )
        media = tuple(item.media for item in inputs) if any(item.media for item in inputs) else None
        return cls(
            ids.astype(np.int32, copy=False),
            lengths,
            task,
            params,
            second,
            segments,
            attended=attended,
            input_type=input_type,
            media=media,
        )

    @classmethod
    def join(cls, batches: Sequence["PackedBatch"]) -> "PackedBatch":
        """The inputs of several batches as one; all but the inputs is that of the first, which all share."""
        if len(batches) == 1:
            return batches[0]
        ids, lengths = (np.concatenate([getattr(batch, name) for batch in batches]) for name in ("ids", "lengths"))
        second, attended = (join_given(batches, name) for name in _PER_INPUT)
        segments = join_segments(batches)
        frame = next((batch.frame for batch in batches if batch.frame is not None), None)
        return replace(
            batches[0],
            ids=ids,
            lengths=lengths,
            second=second,
            segments=segments,
            frame=frame,
            attended=attended,
            media=join_media([batch.media for batch in batches], [len(batch) for batch in batches]),
        )

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
        part = self._part(np.s_[bounds[start] : bounds[stop]], np.s_[start:stop])
        return replace(part, first=self.first + start)

    def take(self, inputs: NDArray[np.int64], bounds: NDArray[np.int64]) -> "PackedBatch":
        """The chosen inputs, in that order, as a batch of their own; bounds are offsets()."""
        if len(inputs) == len(self) and (len(inputs) == 1 or np.array_equal(inputs, np.arange(len(inputs)))):
            return self
        tokens = np.concatenate([np.arange(bounds[i], bounds[i + 1]) for i in inputs])
        return self._part(tokens, inputs)

    def _part(self, tokens: Any, inputs: Any) -> "PackedBatch":
        second, attended = (None if given is None else given[inputs] for given in (self.second, self.attended))
        segments = None if self.segments is None else self.segments[tokens]
        media = self.media
        if media is not None:
            media = media[inputs] if isinstance(inputs, slice) else tuple(media[index] for index in inputs)
        return replace(
            self,
            ids=self.ids[tokens],
            lengths=self.lengths[inputs],
            second=second,
            segments=segments,
            attended=attended,
            media=media,
        )


# Tokens counted from an input's first; where one has none, it is as if all its tokens came before.
_PER_INPUT = ("second", "attended")


def join_given(batches: Sequence[PackedBatch], name: str) -> Ids | None:
    """`second` or `attended` of several batches laid end to end; a batch without it counts all tokens of its inputs."""
    given = [getattr(batch, name) for batch in batches]
    if all(counts is None for counts in given):
        return None
    return np.concatenate(
        [batch.lengths if counts is None else counts for batch, counts in zip(batches, given, strict=True)]
    )


def _given(counts: Sequence[int | None], lengths: Ids) -> Ids | None:
    if all(count is None for count in counts):
        return None
    return np.array(
        [length if count is None else count for count, length in zip(counts, lengths, strict=True)], np.int32
    )


def join_segments(batches: Sequence[PackedBatch]) -> Ids | None:
    """`segments` of several batches laid end to end; all tokens of a batch without them count."""
    if all(batch.segments is None for batch in batches):
        return None
    return np.concatenate([np.zeros(b.tokens, np.int32) if b.segments is None else b.segments for b in batches])


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
    one for each token, or fewer where only some tokens are asked for. For tasks
    joined by `&` [numbers, 1]: the rows of all of them in a line, task after
    task, and `lengths` how many numbers that makes for each input.
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
    def together(parts: Sequence["PooledOutput"]) -> "PooledOutput":
        """The answers to several tasks of the same inputs as one."""
        lines = [
            np.concatenate([rows.ravel() for rows in of_input])
            for of_input in zip(*(p.rows() for p in parts), strict=True)
        ]
        return PooledOutput(np.concatenate(lines)[:, None], np.array([len(line) for line in lines], np.int32))

    @staticmethod
    def merge(parts: Sequence["PooledOutput"]) -> "PooledOutput":
        """The answers of consecutive slices as one; times are those of the slowest slice."""
        if len(parts) == 1:
            return parts[0]
        data = np.concatenate([part.data for part in parts])
        counts = [part.lengths for part in parts if part.lengths is not None]
        timing = Timing(max(p.timing.queue_s for p in parts), max(p.timing.forward_s for p in parts))
        return PooledOutput(data, np.concatenate(counts) if counts else None, timing)
