"""Intake: text or ids -> TokenizedInput -> PackedBatch; the only place where input is judged."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from pooling.config import ModelSpec
from pooling.errors import InputTooLong, InvalidRequest, UnsupportedTask
from pooling.loading.card import ModelCard
from pooling.loading.describe import describe
from pooling.loading.tokenizer import TextTokenizer
from pooling.request import Ids, PackedBatch, Pair, PoolingParams, PoolingRequest, TokenizedInput
from pooling.tasks import TASKS

EMPTY = "The decoder prompt cannot be empty"


class Intake:
    """Judges and tokenises the requests of one model; holds no weights, so it runs anywhere.

    Safe to call from several threads.
    """

    def __init__(self, card: ModelCard, tokenizer: TextTokenizer) -> None:
        self.card = card
        self.tokenizer = self._tokenizer = tokenizer

    @classmethod
    def load(cls, spec: ModelSpec) -> Self:
        """Reads the model's small files. Raises StartupError of the fitting kind."""
        description = describe(spec)
        return cls(description.card, TextTokenizer.load(description.backbone))

    def tokenize(self, request: PoolingRequest) -> PackedBatch:
        """The request as the engine reads it.

        Raises UnsupportedTask, InputTooLong or InvalidRequest; the message says
        what was given and what is allowed, `param` names the field.
        """
        task = request.task or self.card.tasks[0]
        check_task(task, self.card)
        check_params(task, request.params, self.card)
        if isinstance(request.inputs, str) or not len(request.inputs):
            raise InvalidRequest("You must pass at least one prompt", "input")
        limit = self._limit(request)
        count = len(request.inputs)
        if any(_is_pair(item) for item in request.inputs):
            return PackedBatch.pack(self._pairs(request, limit), task, request.params)
        texts = [index for index, item in enumerate(request.inputs) if isinstance(item, str)]
        ids = self._texts(cast(list[str], [request.inputs[i] for i in texts]), request, limit)
        by_index = dict(zip(texts, ids, strict=True))
        items = [
            TokenizedInput(by_index[i] if i in by_index else self._ids(item, i, count, request, limit))
            for i, item in enumerate(request.inputs)
        ]
        return PackedBatch.pack(items, task, request.params)

    def tokenize_text(self, text: str, special: bool) -> Ids:
        """The ids of a text as it is, of any length, without a prompt. Raises InvalidRequest for half a character."""
        (encoding,) = self.detail([text], special)
        return np.array(encoding.ids, np.int32)

    def detail(self, texts: list[str], special: bool) -> list[Encoding]:
        """Texts as they are, with all that is known of each token. Raises InvalidRequest for half a character."""
        _refuse_surrogates(texts)
        return self._tokenizer.detail([text.lower() for text in texts] if self.card.lower_case else texts, special)

    def _limit(self, request: PoolingRequest) -> int | None:
        """To how many tokens inputs are cut; None: not at all."""
        asked, most = request.truncate_prompt_tokens, self.card.max_model_len
        if asked is None:
            return None
        if asked < -1:
            raise InvalidRequest(
                f"truncate_prompt_tokens must be -1 or more, got {asked} (-1 cuts to the model's {most} tokens)",
                "truncate_prompt_tokens",
            )
        if asked > most:
            raise InvalidRequest(
                "truncate_prompt_tokens value is greater than max_model_len. Please request a smaller truncation "
                f"size. (parameter=truncate_prompt_tokens, value={asked})",
                "truncate_prompt_tokens",
            )
        if asked == 0:
            raise InvalidRequest(EMPTY, "truncate_prompt_tokens")
        return most if asked == -1 else asked

    def _texts(self, texts: list[str], request: PoolingRequest, limit: int | None) -> list[Ids]:
        prefix = self._prompt(request, bool(texts))
        if prefix:
            texts = [prefix + text for text in texts]
        if self.card.lower_case:
            texts = [text.lower() for text in texts]
        _refuse_surrogates(texts)
        special, side = request.add_special_tokens, request.truncation_side
        if limit is not None:
            cut = self._tokenizer.encode_cut(texts, special, limit, side)
            for ids in cut:
                _refuse_empty(ids)
            return cut
        count = len(request.inputs)
        most = self.card.max_model_len
        most_chars = most * self._tokenizer.max_chars_per_token
        for index, text in enumerate(texts):
            if len(text) > most_chars:
                raise _too_many_characters(len(text), most_chars, most, index, count)
        encoded = self._tokenizer.encode(texts, special)
        for index, ids in enumerate(encoded):
            _refuse_empty(ids)
            if len(ids) > most:
                raise _too_many_tokens(f"at least {most + 1}", most + 1, most, index, count)
        return encoded

    def _pairs(self, request: PoolingRequest, limit: int | None) -> list[TokenizedInput]:
        """Pairs of texts, which one forward pass reads together."""
        if not self.card.labels:
            raise InvalidRequest(
                f"{self.card.name!r} reads one text at a time; pairs are for models with a head that compares them",
                "input",
            )
        pairs: list[Pair] = []
        for index, item in enumerate(request.inputs):
            if not (_is_pair(item) and len(item) == 2 and all(isinstance(text, str) for text in item)):
                raise InvalidRequest(f"input {index} is no pair of two texts, as others are", "input")
            pairs.append(cast(Pair, item))
        if self.card.lower_case:
            pairs = [(first.lower(), second.lower()) for first, second in pairs]
        _refuse_surrogates([text for pair in pairs for text in pair])
        most = self.card.max_model_len
        if limit is None:
            most_chars = most * self._tokenizer.max_chars_per_token
            for index, (first, second) in enumerate(pairs):
                if len(first) + len(second) > most_chars:
                    raise _too_many_characters(len(first) + len(second), most_chars, most, index, len(pairs))
        bounds = (
            self.most_tokens(request.max_tokens_per_query, "query"),
            self.most_tokens(request.max_tokens_per_doc, "doc"),
        )
        encoded = self._tokenizer.encode_pairs(pairs, request.add_special_tokens, limit, bounds)
        for index, (ids, _) in enumerate(encoded):
            _refuse_empty(ids)
            if len(ids) > most:
                raise _too_many_tokens(f"at least {most + 1}", most + 1, most, index, len(pairs))
        return [TokenizedInput(ids, second if self.card.token_types else None) for ids, second in encoded]

    def most_tokens(self, asked: int | None, which: str) -> int | None:
        """Tokens that one text of a pair may have; 0 means no limit, as in vLLM."""
        name, most = f"max_tokens_per_{which}", self.card.max_model_len
        if asked is not None and asked < 0:
            raise InvalidRequest(f"{name} must be a non-negative integer, got {asked}", name)
        if asked is not None and asked >= most:
            raise InvalidRequest(f"{name} ({asked}) must be less than max_model_len ({most}).", name)
        return asked or None

    def _prompt(self, request: PoolingRequest, has_text: bool) -> str:
        name, known = request.prompt_name, self.card.prompts
        if name is None:
            default = self.card.default_prompt_name
            return known[default] if default is not None else ""
        if name not in known:
            allowed = ", ".join(sorted(known)) or "none: this model defines no prompts"
            raise InvalidRequest(f"Unknown prompt_name {name!r}. Supported values: {allowed}", "prompt_name")
        if not has_text:
            raise InvalidRequest("prompt_name needs text inputs; token ids are taken as they are", "prompt_name")
        return known[name]

    def _ids(self, item: Any, index: int, count: int, request: PoolingRequest, limit: int | None) -> Ids:
        ids = _as_ids(item, index)
        _refuse_empty(ids)
        _refuse_out_of_vocabulary(ids, self.card)
        if limit is not None and len(ids) > limit:
            side = request.truncation_side or self._tokenizer.truncation_side
            return ids[-limit:] if side == "left" else ids[:limit]
        if len(ids) > self.card.max_model_len:
            raise _too_many_tokens(str(len(ids)), len(ids), self.card.max_model_len, index, count)
        return ids


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and any(isinstance(part, str) for part in item)


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
    _refuse_out_of_vocabulary(batch.ids, card)
    second = batch.second
    if second is not None and (len(second) != len(batch) or (second < 0).any() or not card.token_types):
        raise InvalidRequest("`second` is for pairs of a model with token types, one number for each input", "input")
    if int(batch.lengths.max()) > card.max_model_len:
        index = int(batch.lengths.argmax())
        given = int(batch.lengths[index])
        raise _too_many_tokens(str(given), given, card.max_model_len, index, len(batch))


def check_task(task: str, card: ModelCard) -> None:
    """Raises UnsupportedTask naming the tasks that a forward pass of the model can answer."""
    if task not in card.poolers:
        hint = " (`score` compares two texts: give both to score())" if task == "score" and card.scoring else ""
        raise UnsupportedTask(
            f"Unsupported task: {task!r} Supported tasks: {list(card.poolers)} (parameter=task){hint}", "task"
        )


def check_params(task: str, params: PoolingParams, card: ModelCard) -> None:
    """Raises InvalidRequest naming what the task's answer may be asked to be."""
    known = TASKS[task].params
    given = [one.name for one in fields(params) if getattr(params, one.name) is not None]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InvalidRequest(
            f"Task {task!r} only supports {list(known)} parameters, does not support {unknown} parameters", unknown[0]
        )
    _check_dimensions(params.dimensions, card)
    tag, columns, labels = params.step_tag_id, params.returned_token_ids, len(card.labels)
    if tag is not None and not 0 <= tag < card.vocab_size:
        raise InvalidRequest(f"step_tag_id {tag} is out of vocabulary", "step_tag_id")
    if columns is not None and not (columns and all(0 <= column < labels for column in columns)):
        raise InvalidRequest(
            f"returned_token_ids is {list(columns)}, but the model's head has the columns 0 to {labels - 1}",
            "returned_token_ids",
        )


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


def _as_ids(item: Any, index: int) -> Ids:
    if not isinstance(item, np.ndarray | Sequence):
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


def _refuse_surrogates(texts: list[str]) -> None:
    """Half a surrogate pair is no character: it cannot be written as UTF-8, so no tokenizer takes it."""
    for index, text in enumerate(texts):
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InvalidRequest(
                    f"text {index} is no valid Unicode: lone surrogate at character {error.start}", "input"
                ) from None


def _refuse_empty(ids: Ids) -> None:
    if not len(ids):
        raise InvalidRequest(EMPTY, "input")


def _refuse_out_of_vocabulary(ids: Ids, card: ModelCard) -> None:
    for worst in (int(ids.min()), int(ids.max())):
        if not 0 <= worst < card.vocab_size:
            raise InvalidRequest(f"Token id {worst} is out of vocabulary", "input")


def _too_many_tokens(given: str, value: int, most: int, index: int, count: int) -> InputTooLong:
    return InputTooLong(
        f"This model's maximum context length is {most} tokens. However, your prompt contains {given} input tokens, "
        "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
        f"(parameter=input_tokens, value={value}){_which(index, count)}",
        "input_tokens",
    )


def _too_many_characters(given: int, most_chars: int, most: int, index: int, count: int) -> InputTooLong:
    return InputTooLong(
        f"This model's maximum context length is {most} tokens. However, your prompt contains {given} characters "
        f"(more than {most_chars} characters, which is the upper bound for {most} input tokens). Please reduce the "
        f"length of the input prompt. (parameter=input_text, value={given}){_which(index, count)}",
        "input_text",
    )


def _which(index: int, count: int) -> str:
    return f" (input {index} of {count})" if count > 1 else ""
