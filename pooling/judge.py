"""What may be asked of a model: each check raises a refusal that says what was given and what is allowed."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pooling.errors import InputTooLong, InvalidRequest, UnsupportedTask
from pooling.judge_media import check_media
from pooling.loading.card import ModelCard
from pooling.request import Ids, PackedBatch, PoolingParams, PoolingRequest
from pooling.tasks import TASKS, parts_of

EMPTY = "The decoder prompt cannot be empty"


@dataclass(frozen=True, slots=True)
class Places:
    """What the caller calls the inputs at hand: numbers[i] of `count`."""

    numbers: Sequence[int]
    count: int

    @classmethod
    def of(cls, request: PoolingRequest, inputs: Sequence[int] | None = None) -> "Places":
        """Of all inputs of a request, or of some of them."""
        chosen = range(len(request.inputs)) if inputs is None else inputs
        return cls([request.first + index for index in chosen], request.of or len(request.inputs))


def check_batch(batch: PackedBatch, card: ModelCard) -> None:
    """Judges a batch that a caller packed alone, before it costs a forward pass.

    Raises UnsupportedTask, InputTooLong or InvalidRequest naming what was given
    and what is allowed.
    """
    check_task(batch.task, card)
    check_params(batch.task, batch.params, card)
    if not len(batch):
        raise InvalidRequest("You must pass at least one prompt", "input")
    if int(batch.lengths.min()) < 1:
        raise InvalidRequest(EMPTY, "input")
    if int(batch.lengths.sum(dtype=np.int64)) != batch.tokens:
        raise InvalidRequest(f"lengths sum to {batch.lengths.sum()}, but there are {batch.tokens} token ids", "input")
    refuse_out_of_vocabulary(batch.ids, card)
    second = batch.second
    if second is not None and (len(second) != len(batch) or (second < 0).any() or not card.token_types):
        raise InvalidRequest("`second` is for pairs of a model with token types, one number for each input", "input")
    attended = batch.attended
    if attended is not None and (
        len(attended) != len(batch) or (attended < 1).any() or (attended > batch.lengths).any() or not card.sides
    ):
        raise InvalidRequest(
            "`attended` is for queries of a multi-vector model, one number for each input, from 1 to its tokens",
            "input",
        )
    if batch.segments is not None or batch.by_segment:
        _check_segments(batch, card)
    lengths = batch.lengths
    if batch.media is not None or card.vision is not None:
        check_media(batch, card)
        if batch.media is not None and card.vision is not None and card.vision.kind != "decoder":
            lengths = np.where([bool(images) for images in batch.media], 0, lengths)  # an image is no text of the model
    most = card.max_model_len if batch.by_segment else card.longest(batch.task)
    if most is not None and int(lengths.max()) > most:
        index = int(lengths.argmax())
        given = int(lengths[index])
        raise too_many_tokens(str(given), given, most, batch.first + index, len(batch))


def _check_segments(batch: PackedBatch, card: ModelCard) -> None:
    segments = batch.segments
    if batch.task != "embed" or segments is None or len(segments) != batch.tokens:
        raise InvalidRequest("`segments` is for embed, one number for each token", "input")
    pooled = segments >= 0
    # Of the segments that an input's tokens name, none goes back, none is left out, and the first is 0.
    inputs = np.repeat(np.arange(len(batch)), batch.lengths)[pooled]
    named = segments[pooled]
    first = np.diff(inputs, prepend=-1) > 0
    step = np.diff(named, prepend=0)
    if (
        len(np.unique(inputs)) != len(batch)
        or (named[first] != 0).any()
        or not np.isin(step[~first], (0, 1)).all()
        or (segments < -1).any()
        or (not batch.by_segment and named.any())
    ):
        raise InvalidRequest("`segments` of each input must count up from 0, with -1 at tokens of none", "input")


def check_task(task: str, card: ModelCard) -> None:
    """Raises UnsupportedTask naming the tasks that a forward pass of the model can answer."""
    parts = parts_of(task)
    if len(set(parts)) != len(parts) or any(part not in card.poolers for part in parts):
        hint = " (`score` compares two texts: give both to score())" if task == "score" and card.scoring else ""
        raise UnsupportedTask(
            f"Unsupported task: {task!r} Supported tasks: {list(card.poolers)} (parameter=task){hint}", "task"
        )


def check_params(task: str, params: PoolingParams, card: ModelCard) -> None:
    """Raises InvalidRequest naming what the task's answer may be asked to be."""
    _check_param_types(params)
    known = [
        name for name in TASKS[parts_of(task)[0]].params if all(name in TASKS[part].params for part in parts_of(task))
    ]
    given = [one.name for one in fields(params) if getattr(params, one.name) is not None]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InvalidRequest(
            f"Task {task!r} only supports {list(known)} parameters, does not support {unknown} parameters", unknown[0]
        )
    _check_dimensions(params.dimensions, card)
    tag, columns, labels = params.step_tag_id, params.returned_token_ids, len(card.labels) or 1
    if tag is not None and not 0 <= tag < card.vocab_size:
        raise InvalidRequest(f"step_tag_id {tag} is out of vocabulary", "step_tag_id")
    if columns is not None and not (columns and all(0 <= column < labels for column in columns)):
        raise InvalidRequest(
            f"returned_token_ids is {list(columns)}, but the model's head has the columns 0 to {labels - 1}",
            "returned_token_ids",
        )


def _check_param_types(params: PoolingParams) -> None:
    """Below the door they are keys and indices: a wrong one would fail a step, and all who share it."""
    if not isinstance(params, PoolingParams):
        raise InvalidRequest(f"pooling_params is {type(params).__name__}; allowed is a PoolingParams", "params")
    if not isinstance(params.use_activation, bool | None):
        raise InvalidRequest(f"use_activation is {_given(params.use_activation)}; allowed is a bool", "use_activation")
    for name in ("dimensions", "step_tag_id"):
        if (value := getattr(params, name)) is not None and not _is_whole(value):
            raise InvalidRequest(f"{name} is {_given(value)}; allowed is a whole number", name)
    columns = params.returned_token_ids
    if columns is not None and not (isinstance(columns, tuple) and all(map(_is_whole, columns))):
        raise InvalidRequest(
            f"returned_token_ids is {_given(columns)}; allowed are whole numbers", "returned_token_ids"
        )


def check_request_types(request: PoolingRequest) -> None:
    """Raises InvalidRequest for a field that is of another kind than it says."""
    texts = ("task", "input_type", "prompt_name", "prompt", "instruction", "chat_template")
    wrong = next((name for name in texts if not isinstance(getattr(request, name), str | None)), None)
    if wrong is not None:
        raise InvalidRequest(f"{wrong} is {_given(getattr(request, wrong))}; allowed is a text", wrong)
    if not isinstance(request.add_special_tokens, bool):
        raise InvalidRequest(
            f"add_special_tokens is {_given(request.add_special_tokens)}; allowed is a bool", "add_special_tokens"
        )
    for name in ("max_tokens_per_query", "max_tokens_per_doc"):
        if (value := getattr(request, name)) is not None and not _is_whole(value):
            raise InvalidRequest(f"{name} is {_given(value)}; allowed is a whole number", name)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _given(value: Any) -> str:
    """Short: a message must not carry an array back."""
    return f"{value!r}" if isinstance(value, str | int | float | bool) else type(value).__name__


def _check_dimensions(asked: int | None, card: ModelCard) -> None:
    """Raises InvalidRequest naming the sizes that the model's vectors may be cut to."""
    sizes, dim = card.matryoshka, card.dim
    if asked is None or asked == dim:
        return
    if sizes == ():
        raise InvalidRequest(
            f"Model {card.name!r} does not support Matryoshka embeddings; dimensions must be unset "
            f"(received dimensions={asked}).",
            "dimensions",
        )
    if not 1 <= asked <= dim:
        raise InvalidRequest(
            f"Model {card.name!r} only supports dimensions in range [1, {dim}], got {asked}.", "dimensions"
        )
    if sizes is not None and asked not in sizes:
        raise InvalidRequest(
            f"Model {card.name!r} only supports Matryoshka dimensions {list(sizes)}, got {asked}.", "dimensions"
        )


def as_ids(item: Any, index: int) -> Ids:
    if not isinstance(item, np.ndarray | Sequence) or (isinstance(item, np.ndarray) and not item.ndim):
        raise InvalidRequest(
            f"input {index} is {type(item).__name__}; allowed are text or a list of token ids", "input"
        )
    try:
        wide: NDArray[Any] = np.asarray(item) if len(item) else np.empty(0, np.int64)
    except ValueError:  # lists of unequal depth
        wide = np.empty((0, 0))
    if wide.ndim != 1 or wide.dtype.kind not in "iu":
        raise InvalidRequest(f"input {index} is no flat list of integers; allowed are text or token ids", "input")
    bounds = np.iinfo(np.int32)
    if len(wide) and (wide.max() > bounds.max or wide.min() < bounds.min):
        worst = int(wide.max()) if wide.max() > bounds.max else int(wide.min())
        raise InvalidRequest(f"Token id {worst} is out of vocabulary", "input")
    return wide.astype(np.int32)


def refuse_surrogates(texts: Sequence[str], numbers: Sequence[int] | None = None) -> None:
    """Half a surrogate pair is no character: it cannot be written as UTF-8, so no tokenizer takes it.

    numbers: what the caller calls the texts; None: by their order.
    """
    for index, text in zip(numbers or range(len(texts)), texts, strict=True):
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InvalidRequest(
                    f"text {index} is no valid Unicode: lone surrogate at character {error.start}", "input"
                ) from None


def refuse_empty(ids: Ids, number: int, count: int) -> None:
    if not len(ids):
        raise InvalidRequest(EMPTY + _which(number, count), "input")


def refuse_out_of_vocabulary(ids: Ids, card: ModelCard) -> None:
    for worst in (int(ids.min()), int(ids.max())):
        if not 0 <= worst < card.vocab_size:
            raise InvalidRequest(f"Token id {worst} is out of vocabulary", "input")


def too_many_tokens(given: str, value: int, most: int, number: int, count: int) -> InputTooLong:
    return InputTooLong(
        f"This model's maximum context length is {most} tokens. However, your prompt contains {given} input tokens, "
        "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
        f"(parameter=input_tokens, value={value}){_which(number, count)}",
        "input_tokens",
    )


def too_many_characters(given: int, most_chars: int, most: int, number: int, count: int) -> InputTooLong:
    return InputTooLong(
        f"This model's maximum context length is {most} tokens. However, your prompt contains {given} characters "
        f"(more than {most_chars} characters, which is the upper bound for {most} input tokens). Please reduce the "
        f"length of the input prompt. (parameter=input_text, value={given}){_which(number, count)}",
        "input_text",
    )


def _which(number: int, count: int) -> str:
    return f" (input {number} of {count})" if count > 1 else ""
