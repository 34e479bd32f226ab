"""PairIntake: pairs of texts, which one forward pass reads together, judged and tokenised."""

from typing import cast

from pooling.errors import ConfigError, InvalidRequest
from pooling.judge import Places, refuse_empty, refuse_surrogates, too_many_characters, too_many_tokens
from pooling.loading.card import ModelCard
from pooling.loading.score_templates import ChatTemplate, Template
from pooling.loading.tokenizer import TextTokenizer
from pooling.media import Content, Picture
from pooling.pairs import check_template, read_pairs
from pooling.prompts import prompt_of
from pooling.request import ContentPair, Ids, Pair, PoolingRequest, TokenizedInput
from pooling.vision.decoder_intake import DecoderIntake
from pooling.vision.intake import MediaIntake, Place
from pooling.vision.processed import ProcessedBytes


class PairIntake:
    """Reads the pairs of a request. media: of a model that takes images."""

    def __init__(
        self,
        card: ModelCard,
        tokenizer: TextTokenizer,
        media: MediaIntake | None = None,
        max_processed_bytes: int | None = None,
    ) -> None:
        self._card, self._tokenizer, self._media = card, tokenizer, media
        self._max_processed_bytes = max_processed_bytes

    def read(self, request: PoolingRequest, limit: int | None) -> list[TokenizedInput]:
        """Pairs of texts, which one forward pass reads together."""
        if request.input_type is not None:
            raise InvalidRequest("input_type is for texts that are read apart; a pair has both sides", "input_type")
        if not self._card.labels:
            raise InvalidRequest(
                f"{self._card.name!r} reads one text at a time; pairs are for models with a head that compares them",
                "input",
            )
        pairs, pictures = self._given(request)
        places = Places.of(request)
        self._check(request, pairs, limit, places)
        bounds = (
            most_tokens(self._card, request.max_tokens_per_query, "query"),
            most_tokens(self._card, request.max_tokens_per_doc, "doc"),
        )
        template = self._template(request)
        plain = [pair for index, pair in enumerate(pairs) if not pictures.get(index)]
        encoded = self._encoded(plain, request, template, limit, bounds)
        if len(plain) < len(pairs):
            # A placeholder must not be cut off; what is too long with its images is refused.
            drawn = [pair for index, pair in enumerate(pairs) if pictures.get(index)]
            apart = iter(encoded), iter(self._encoded(drawn, request, template, None, bounds))
            encoded = [next(apart[bool(pictures.get(index))]) for index in range(len(pairs))]
        marked = self._card.token_types and self._tokenizer.marks_second and template is None
        items = [TokenizedInput(ids, second if marked else None) for ids, second in encoded]
        processed, most = ProcessedBytes(self._max_processed_bytes), self._card.max_model_len
        for index, number in enumerate(places.numbers):
            refuse_empty(items[index].ids, number, places.count)
            if pictures.get(index):
                items[index] = self._expanded_pair(
                    items[index].ids, pictures[index], Place(number, places.count), limit
                )
                processed.take(items[index].media)
            if len(items[index].ids) > most:
                raise too_many_tokens(f"at least {most + 1}", most + 1, most, number, places.count)
        return items

    def _given(self, request: PoolingRequest) -> tuple[list[Pair], dict[int, list[Picture]]]:
        """The pairs as texts, and the images of those that have some, by index."""
        pairs: list[Pair] = []
        pictures: dict[int, list[Picture]] = {}
        for index, item in enumerate(request.inputs):
            if not (
                isinstance(item, tuple) and len(item) == 2 and all(isinstance(text, str | Content) for text in item)
            ):
                raise InvalidRequest(f"input {request.first + index} is no pair of two texts, as others are", "input")
            if any(isinstance(text, Content) for text in item):
                item, pictures[index] = self._written(cast(ContentPair, item))
            pairs.append(cast(Pair, item))
        if self._card.lower_case:
            pairs = [(first.lower(), second.lower()) for first, second in pairs]
        return pairs, pictures

    def _check(self, request: PoolingRequest, pairs: list[Pair], limit: int | None, places: Places) -> None:
        refuse_surrogates([" ".join(pair) for pair in pairs], places.numbers)
        if request.truncation_side == "left":
            raise InvalidRequest("truncation_side is left, but a pair of texts is cut at their ends", "truncation_side")
        if limit is not None:
            return
        most = self._card.max_model_len
        most_chars = most * self._tokenizer.max_chars_per_token
        for number, (first, second) in zip(places.numbers, pairs, strict=True):
            if len(first) + len(second) > most_chars:
                raise too_many_characters(len(first) + len(second), most_chars, most, number, places.count)

    def _encoded(
        self,
        pairs: list[Pair],
        request: PoolingRequest,
        template: Template | None,
        limit: int | None,
        most: tuple[int | None, int | None],
    ) -> list[tuple[Ids, int]]:
        """Each pair as one input, and the token at which its second text begins."""
        prompt = prompt_of(request, self._card, has_text=True)
        if template is not None:
            told = request.instruction if request.instruction is not None else prompt or None
            return [(ids, len(ids)) for ids in read_pairs(self._tokenizer, template, pairs, limit, most, told)]
        prompt = prompt.lower() if self._card.lower_case else prompt
        pairs = [(prompt + first, second) for first, second in pairs]
        return self._tokenizer.encode_pairs(pairs, request.add_special_tokens, limit, most)

    def _expanded_pair(self, ids: Ids, pictures: list[Picture], place: Place, limit: int | None) -> TokenizedInput:
        assert isinstance(self._media, DecoderIntake)
        read = self._media.expand(ids, pictures, place)
        if limit is not None and len(read.ids) > limit:
            raise InvalidRequest(
                f"a pair with images has {len(read.ids)} tokens, and truncate_prompt_tokens allows {limit}; only texts "
                f"are cut{place}",
                "truncate_prompt_tokens",
            )
        return read

    def _written(self, pair: ContentPair) -> tuple[Pair, list[Picture]]:
        """A pair with images as its texts, with the places of the images, and the images."""
        if not isinstance(self._media, DecoderIntake):
            raise InvalidRequest(f"{self._card.name!r} reads text alone; images are for models that take them", "input")
        texts: list[str] = []
        pictures: list[Picture] = []
        for side in pair:
            text, more = (side, []) if isinstance(side, str) else self._media.written(side)
            texts.append(text)
            pictures += more
        return (texts[0], texts[1]), pictures

    def _template(self, request: PoolingRequest) -> Template | None:
        if request.chat_template is None:
            if request.instruction is not None and self._card.template is None:
                raise InvalidRequest(
                    f"{self._card.name!r} reads pairs without a template, so it takes no instruction", "instruction"
                )
            return self._card.template
        template = ChatTemplate(request.chat_template, special=True)
        try:
            check_template(self._tokenizer, template)
        except ConfigError as error:
            raise InvalidRequest(error.detail, "chat_template") from None
        return template


def most_tokens(card: ModelCard, asked: int | None, which: str) -> int | None:
    """Tokens that one text of a pair may have; 0 means no limit, as in vLLM."""
    name, most = f"max_tokens_per_{which}", card.max_model_len
    if asked is not None and asked < 0:
        raise InvalidRequest(f"{name} must be a non-negative integer, got {asked}", name)
    if asked is not None and asked >= most:
        raise InvalidRequest(f"{name} ({asked}) must be less than max_model_len ({most}).", name)
    return asked or None
