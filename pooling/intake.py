"""Intake: text or ids -> TokenizedInput -> PackedBatch; with judge.py the only place where input is judged."""

from dataclasses import replace
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from pooling.config import ModelSpec
from pooling.errors import InvalidRequest
from pooling.judge import (
    EMPTY,
    Places,
    as_ids,
    check_params,
    check_request_types,
    check_task,
    refuse_empty,
    refuse_out_of_vocabulary,
    refuse_surrogates,
    too_many_characters,
    too_many_tokens,
)
from pooling.judge_media import check_media
from pooling.loading.card import ModelCard, Side
from pooling.loading.describe import describe
from pooling.loading.tokenizer import TextTokenizer
from pooling.loading.vision import Vision
from pooling.media import Content
from pooling.pair_intake import PairIntake
from pooling.pairs import check_template
from pooling.prompts import ROLES, prompt_of
from pooling.request import Chunks, Frame, Ids, PackedBatch, PoolingRequest, Prompt, TokenizedInput
from pooling.vision.decoder_intake import DecoderIntake, RetrievalIntake
from pooling.vision.intake import MEDIA, MediaIntake, Place, Reading, TowersIntake
from pooling.vision.processed import ProcessedBytes
from pooling.vision.reader import ImageReader


class Intake:
    """Judges and tokenises the requests of one model; holds no weights, so it runs anywhere.

    Safe to call from several threads.
    """

    def __init__(
        self,
        card: ModelCard,
        tokenizer: TextTokenizer,
        reader: ImageReader | None = None,
        max_processed_bytes: int | None = None,
    ) -> None:
        """reader: of a model that takes images. max_processed_bytes: of one request's images; None: any number."""
        self.card, self.images, self._max_processed_bytes = card, reader, max_processed_bytes
        self._media = None if reader is None else _media_intake(card, reader, tokenizer)
        self._fill = _filling(card.vision, tokenizer)
        self.tokenizer = self._tokenizer = tokenizer
        self._pairs = PairIntake(card, tokenizer, self._media, max_processed_bytes)
        check_template(tokenizer, card.template)

    @classmethod
    def load(cls, spec: ModelSpec, max_processed_bytes: int | None = None) -> Self:
        """Reads the model's small files. Raises StartupError of the fitting kind."""
        description = describe(spec)
        vision, backbone = description.card.vision, description.backbone
        images_alone = vision is not None and vision.kind == "images"
        tokenizer = TextTokenizer.none() if images_alone else TextTokenizer.load(backbone, description.card.markers)
        reader = None if vision is None else ImageReader.load(backbone, vision)
        return cls(description.card, tokenizer, reader, max_processed_bytes)

    def tokenize(self, request: PoolingRequest) -> PackedBatch:
        """The request as the engine reads it.

        Raises UnsupportedTask, InputTooLong or InvalidRequest; the message says
        what was given and what is allowed, `param` names the field.
        """
        check_request_types(request)
        task = request.task or self.card.tasks[0]
        check_task(task, self.card)
        check_params(task, request.params, self.card)
        if isinstance(request.inputs, str) or not len(request.inputs):
            raise InvalidRequest("You must pass at least one prompt", "input")
        if request.input_type not in (None, *ROLES):
            allowed = " or ".join(ROLES)
            raise InvalidRequest(f"input_type is {request.input_type!r}; allowed is {allowed}", "input_type")
        read: dict[int, TokenizedInput] = {}
        if self.card.vision is not None or not MEDIA.isdisjoint(map(type, request.inputs)):
            request, read = self._with_images(request, task)
        if any(isinstance(item, Chunks) for item in request.inputs):
            batch = PackedBatch.pack(self._chunks(request, task), task, request.params)
            return replace(batch, by_segment=True, first=request.first)
        limit = self._limit(request, task)
        if any(_is_pair(item) for item in request.inputs):
            batch = replace(
                PackedBatch.pack(self._pairs.read(request, limit), task, request.params), first=request.first
            )
            if self._media is not None:
                check_media(batch, self.card)  # a text may name the place of an image that it has not
            return batch
        given = next((name for name in ("instruction", "chat_template") if getattr(request, name) is not None), None)
        if given is not None:
            raise InvalidRequest(f"{given} needs pairs of a query and a document", given)
        texts = [index for index, item in enumerate(request.inputs) if isinstance(item, str) and index not in read]
        places = Places.of(request, texts)
        ids: list[Ids] = []
        if texts or not read:  # a prompt for what is no text is refused there
            ids = self._texts(cast(list[str], [request.inputs[i] for i in texts]), request, task, limit, places)
        left_out = self._left_out(request, task, limit) if texts else 0
        side = self._side(request) or self._fill
        by_index = read | {
            i: _expanded(TokenizedInput(one, segments=_behind(left_out, one)), side)
            for i, one in zip(texts, ids, strict=True)
        }
        items = [
            by_index[i] if i in by_index else _expanded(TokenizedInput(self._ids(item, i, request, task, limit)), side)
            for i, item in enumerate(request.inputs)
        ]
        batch = PackedBatch.pack(items, task, request.params, request.input_type)
        batch = replace(batch, first=request.first) if request.first else batch
        if self._media is not None:
            check_media(batch, self.card)
        return self._framed(batch, request)

    def _with_images(self, request: PoolingRequest, task: str) -> tuple[PoolingRequest, dict[int, TokenizedInput]]:
        """The request with inputs of text alone as that text, and its inputs that have images, by index."""
        vision = self.card.vision
        if vision is None or self._media is None:
            raise InvalidRequest(f"{self.card.name!r} reads text alone; images are for models that take them", "input")
        kinds = MEDIA if vision.texts is None else MEDIA | {str}
        if vision.kind != "images" and kinds.isdisjoint(map(type, request.inputs)):
            return request, {}
        reading = Reading(request, prompt_of(request, self.card, has_text=True), self._limit(request, task))
        count = request.of or len(request.inputs)
        inputs: list[Prompt] = list(request.inputs)
        read: dict[int, TokenizedInput] = {}
        processed = ProcessedBytes(self._max_processed_bytes)
        for index, item in enumerate(request.inputs):
            one: Any = item
            if type(item) in kinds:
                one = self._media.read(item, Place(request.first + index, count), reading)
            if isinstance(one, TokenizedInput):
                processed.take(one.media)
                read[index] = one
            else:
                inputs[index] = one
        if len(read) < len(inputs) and vision.kind == "images":
            raise InvalidRequest(f"{self.card.name!r} reads images alone; a text is given", "input")
        return replace(request, inputs=inputs), read

    def tokenize_text(self, text: str, special: bool) -> Ids:
        """The ids of a text as it is, of any length, without a prompt. Raises InvalidRequest for half a character."""
        (encoding,) = self.detail([text], special)
        return np.array(encoding.ids, np.int32)

    def detail(self, texts: list[str], special: bool) -> list[Encoding]:
        """Texts as they are, with all that is known of each token. Raises InvalidRequest for half a character."""
        refuse_surrogates(texts)
        return self._tokenizer.detail([self._lower(text) for text in texts], special)

    def _side(self, request: PoolingRequest) -> Side | None:
        return None if request.input_type is None else self.card.sides.get(request.input_type)

    def _longest(self, request: PoolingRequest, task: str) -> int | None:
        """Tokens that an input may have; None: any number."""
        side, most = self._side(request), self.card.longest(task)
        if side is None or side.max_tokens is None:
            return most
        return side.max_tokens if most is None else min(most, side.max_tokens)

    def _limit(self, request: PoolingRequest, task: str) -> int | None:
        """To how many tokens inputs are cut; None: not at all."""
        asked, most = request.truncate_prompt_tokens, self._longest(request, task)
        if request.truncation_side not in (None, "left", "right"):
            raise InvalidRequest(
                f"truncation_side must be left or right, got {request.truncation_side!r}", "truncation_side"
            )
        if asked is None:
            return None
        if not isinstance(asked, int) or isinstance(asked, bool) or asked < -1:
            raise InvalidRequest(
                f"truncate_prompt_tokens must be a whole number of -1 or more, got {asked!r} (-1 cuts to "
                f"{'what the model takes' if most is None else f'the {most} tokens that the model takes'})",
                "truncate_prompt_tokens",
            )
        if most is not None and asked > most:
            raise InvalidRequest(
                "truncate_prompt_tokens value is greater than max_model_len. Please request a smaller truncation "
                f"size. (parameter=truncate_prompt_tokens, value={asked})",
                "truncate_prompt_tokens",
            )
        if asked == 0:
            raise InvalidRequest(EMPTY, "truncate_prompt_tokens")
        return most if asked == -1 else asked

    def _texts(
        self, texts: list[str], request: PoolingRequest, task: str, limit: int | None, places: Places
    ) -> list[Ids]:
        prefix = prompt_of(request, self.card, has_text=bool(texts))
        if prefix:
            texts = [prefix + text for text in texts]
        if self.card.lower_case:
            texts = [text.lower() for text in texts]
        refuse_surrogates(texts, places.numbers)
        special, side = request.add_special_tokens, request.truncation_side
        if limit is not None:
            cut = self._tokenizer.encode_cut(texts, special, limit, side)
            for number, ids in zip(places.numbers, cut, strict=True):
                refuse_empty(ids, number, places.count)
            return cut
        most = self._longest(request, task)
        self._refuse_many_characters(texts, most, places)
        encoded = self._tokenizer.encode(texts, special)
        for number, ids in zip(places.numbers, encoded, strict=True):
            refuse_empty(ids, number, places.count)
            if most is not None and len(ids) > most:
                raise too_many_tokens(f"at least {most + 1}", most + 1, most, number, places.count)
        return encoded

    def _refuse_many_characters(self, texts: list[str], most: int | None, places: Places) -> None:
        """A text that cannot but have too many tokens need not be read to be refused."""
        if most is None:
            return
        most_chars = most * self._tokenizer.max_chars_per_token
        for number, text in zip(places.numbers, texts, strict=True):
            if len(text) > most_chars:
                raise too_many_characters(len(text), most_chars, most, number, places.count)

    def _framed(self, batch: PackedBatch, request: PoolingRequest) -> PackedBatch:
        """The batch with what its chunks repeat, if they will and there are any."""
        if self.card.chunk_overlap is None or int(batch.lengths.max()) <= self.card.max_model_len:
            return batch
        head, tail = self._tokenizer.special_ends()
        prompt = self._lower(prompt_of(request, self.card, has_text=True))
        if prompt:
            head = self._tokenizer.prompt_ids(prompt, request.add_special_tokens)
        return replace(batch, frame=Frame(head, tail))

    def _chunks(self, request: PoolingRequest, task: str) -> list[TokenizedInput]:
        """Texts in chunks: each read as one, every token of a chunk counted to it."""
        self._check_chunks(request, task)
        chunks = [
            Chunks(tuple(map(self._lower, item.texts)), item.separator) for item in cast(list[Chunks], request.inputs)
        ]
        prompt = self._lower(prompt_of(request, self.card, has_text=True))
        texts = [prompt + one.separator.join(one.texts) for one in chunks]
        places = Places.of(request)
        refuse_surrogates(texts, places.numbers)
        most = self.card.max_model_len
        self._refuse_many_characters(texts, most, places)
        items = []
        encoded = self._tokenizer.encode_places(texts, request.add_special_tokens)
        for number, one, (ids, ends) in zip(places.numbers, chunks, encoded, strict=True):
            if len(ids) > most:
                raise too_many_tokens(str(len(ids)), len(ids), most, number, places.count)
            items.append(TokenizedInput(ids, segments=_chunk_of(ends, len(prompt), one, number)))
        return items

    def _check_chunks(self, request: PoolingRequest, task: str) -> None:
        pooler = self.card.poolers[task]
        if task != "embed" or pooler.pooling_type != "MEAN":
            raise InvalidRequest(
                "late chunking averages the tokens of each chunk, so it is for task embed of a model that pools MEAN; "
                f"{self.card.name!r} pools {pooler.pooling_type} for {task}",
                "input",
            )
        if request.truncate_prompt_tokens is not None:
            raise InvalidRequest(
                "late chunking reads the whole text; truncate_prompt_tokens must be unset "
                f"(received {request.truncate_prompt_tokens})",
                "truncate_prompt_tokens",
            )
        for index, item in enumerate(request.inputs):
            if not (isinstance(item, Chunks) and item.texts and all(isinstance(text, str) for text in item.texts)):
                raise InvalidRequest(
                    f"input {index} is no list of texts, the chunks of a document, as others are", "input"
                )

    def _lower(self, text: str) -> str:
        return text.lower() if self.card.lower_case else text

    def _left_out(self, request: PoolingRequest, task: str, limit: int | None) -> int:
        """How many tokens at the beginning of a text are its prompt's and not pooled."""
        prompt = "" if self.card.include_prompt or task != "embed" else prompt_of(request, self.card, has_text=True)
        if not prompt:
            return 0
        if limit is not None and (request.truncation_side or self._tokenizer.truncation_side) == "left":
            raise InvalidRequest(
                f"{self.card.name!r} leaves prompts out of the pooling, so texts behind one are cut at the end only; "
                "set truncation_side to right",
                "truncation_side",
            )
        left_out = len(self._tokenizer.prompt_ids(self._lower(prompt), request.add_special_tokens))
        if left_out >= self.card.max_model_len:
            raise InvalidRequest(
                f"the prompt has {left_out} tokens, which the model does not pool; allowed are fewer than "
                f"{self.card.max_model_len}",
                "prompt",
            )
        return left_out

    def _ids(self, item: Any, index: int, request: PoolingRequest, task: str, limit: int | None) -> Ids:
        number, count = request.first + index, request.of or len(request.inputs)
        if self._side(request) is not None:
            raise InvalidRequest("input_type needs text inputs; token ids are taken as they are", "input_type")
        ids = as_ids(item, number)
        refuse_empty(ids, number, count)
        refuse_out_of_vocabulary(ids, self.card)
        if limit is not None and len(ids) > limit:
            side = request.truncation_side or self._tokenizer.truncation_side
            return ids[-limit:] if side == "left" else ids[:limit]
        most = self.card.longest(task)
        if most is not None and len(ids) > most:
            raise too_many_tokens(str(len(ids)), len(ids), most, number, count)
        return ids


def _behind(left_out: int, ids: Ids) -> Ids | None:
    """The segments of a text whose first tokens are not pooled."""
    if not left_out:
        return None
    if left_out >= len(ids):
        raise InvalidRequest(
            f"the prompt has {left_out} tokens, which the model does not pool, and of the {len(ids)} tokens of prompt "
            "and text none is left; shorten the prompt or truncate to more tokens",
            "prompt",
        )
    segments = np.zeros(len(ids), np.int32)
    segments[:left_out] = -1
    return segments


def _chunk_of(places: NDArray[np.int64], start: int, chunks: Chunks, index: int) -> Ids:
    """The segments of a text in chunks that begins at character `start`: a token is of the chunk with its last
    character, so that a token which begins with the space before a word goes with the word."""
    sizes = np.array([len(text) for text in chunks.texts])
    begins = start + np.cumsum(sizes + len(chunks.separator)) - sizes - len(chunks.separator)
    chunk = np.searchsorted(begins, places, side="right") - 1
    inside = (chunk >= 0) & (places < begins[chunk] + sizes[chunk])
    segments = np.where(inside, chunk, -1).astype(np.int32)
    empty = np.setdiff1d(np.arange(len(sizes)), segments)
    if len(empty):
        raise InvalidRequest(f"chunk {empty[0]} of input {index} has no tokens", "input")
    return segments


def _expanded(read: TokenizedInput, side: Side | None) -> TokenizedInput:
    """A query of a multi-vector model, filled up to the length at which the model reads queries."""
    ids = read.ids
    if side is None or side.expand_to is None or len(ids) >= side.expand_to:
        return read
    more = np.full(side.expand_to - len(ids), side.expansion_id, np.int32)
    return TokenizedInput(np.concatenate([ids, more]), attended=None if side.attends else len(ids))


def _media_intake(card: ModelCard, reader: ImageReader, tokenizer: TextTokenizer) -> MediaIntake:
    assert card.vision is not None
    if card.vision.kind != "decoder":
        return TowersIntake(card, reader)
    kind = RetrievalIntake if card.vision.texts == "query" else DecoderIntake
    return kind(card, reader, tokenizer)


def _filling(vision: Vision | None, tokenizer: TextTokenizer) -> Side | None:
    """How texts are filled up by a model that was trained on texts of one length."""
    if vision is None or vision.fill_to is None:
        return None
    return Side(expand_to=vision.fill_to, expansion_id=tokenizer.named_ids.get("pad", 0), attends=True)


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and any(isinstance(part, str | Content) for part in item)
