"""DecoderIntake: conversations and prompts with images -> the ids that a language model reads, images among them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pooling.errors import CheckpointError, InvalidRequest
from pooling.judge import EMPTY, as_ids, refuse_out_of_vocabulary, refuse_surrogates, too_many_tokens
from pooling.loading.card import ModelCard
from pooling.loading.tokenizer import TextTokenizer
from pooling.media import Content, Conversation, Image, ImageEmbeds, ImagePrompt, Picture, ProcessedImage
from pooling.request import Ids, TokenizedInput
from pooling.vision.intake import Place, Reading, parts_of
from pooling.vision.reader import ImageReader

# Source: query_augmentation_token * 10 in transformers' ColQwen2Processor and ColPaliProcessor.
_FILLING = 10


class DecoderIntake:
    """Of a model that reads images as tokens among those of a text."""

    def __init__(self, card: ModelCard, reader: ImageReader, tokenizer: TextTokenizer) -> None:
        assert card.vision is not None
        self._card, self._vision, self._reader, self._tokenizer = card, card.vision, reader, tokenizer
        self._placeholder = tokenizer.token_of(self._vision.token_id)
        if tokenizer.id_of(self._placeholder) != self._vision.token_id:
            raise CheckpointError(
                f"token {self._vision.token_id} stands for images, but the model's tokenizer has no such token"
            )
        edges = [tokenizer.token_of(token) for token in self._vision.edge_ids] or ["", ""]
        self._place = self._placeholder.join(edges)

    def read(self, item: Any, place: Place, reading: Reading) -> TokenizedInput:
        """An input of texts and images, by the chat template, or as a prompt with placeholders."""
        if isinstance(item, ImageEmbeds):
            raise InvalidRequest(f"image_embeds need a text or a conversation around them{place}", "image_embeds")
        if isinstance(item, ImagePrompt):
            ids, pictures = self._prompt(item, place, reading), list(item.images)
        else:
            messages = item if isinstance(item, Conversation) else Conversation((_content(item),))
            ids, pictures = self._conversation(messages, place, reading), _pictures(messages, place)
        return self._within(self.expand(ids, pictures, place), place, reading)

    def written(self, content: Content) -> tuple[str, list[Picture]]:
        """A query or a document of texts and images as one text, a placeholder for each image; and the images."""
        text = "".join(part if isinstance(part, str) else self._place for part in content.parts)
        return text, _pictures(Conversation((content,)), Place(0, 1))

    def expand(self, ids: Ids, pictures: Sequence[Picture], place: Place) -> TokenizedInput:
        """Each placeholder becomes as many tokens as its image has.

        Raises InputTooLong before an image is processed, if the images alone have more than the model takes.
        """
        if len(pictures) > self._vision.max_images:
            raise InvalidRequest(
                f"At most {self._vision.max_images} image(s) may be provided in one prompt; given are "
                f"{len(pictures)}{place}",
                "image",
            )
        at = np.flatnonzero(ids == self._vision.token_id)
        if len(at) != len(pictures):
            raise InvalidRequest(
                f"the prompt names the places of {len(at)} images ({self._placeholder}), but {len(pictures)} are "
                f"given{place}",
                "input",
            )
        self._refuse_many_tokens(pictures, place)
        images = tuple(self._image(picture, place) for picture in pictures)
        counts = np.ones(len(ids), np.int64)
        counts[at] = [image.tokens for image in images]
        return TokenizedInput(np.repeat(ids, counts), media=images)

    def _within(self, read: TokenizedInput, place: Place, reading: Reading) -> TokenizedInput:
        """Cut to the limit, if that leaves every image whole."""
        ids, most, limit = read.ids, self._card.max_model_len, reading.limit
        if not len(ids):
            raise InvalidRequest(f"{EMPTY}{place}", "input")
        if limit is None or len(ids) <= limit:
            if len(ids) > most:
                raise too_many_tokens(str(len(ids)), len(ids), most, place.number, place.count)
            return read
        left = (reading.request.truncation_side or self._tokenizer.truncation_side) == "left"
        kept, lost = (ids[-limit:], ids[:-limit]) if left else (ids[:limit], ids[limit:])
        if (lost == self._vision.token_id).any():
            raise InvalidRequest(
                f"truncate_prompt_tokens cuts to {limit} tokens, which would cut an image: the input has {len(ids)} "
                f"tokens{place}",
                "truncate_prompt_tokens",
            )
        return read._replace(ids=kept)

    def _refuse_many_tokens(self, pictures: Sequence[Picture], place: Place) -> None:
        most, tokens = self._card.max_model_len, 0
        for picture in pictures:
            if isinstance(picture, Image):
                tokens += self._reader.tokens_of(picture)
            elif isinstance(picture, ImageEmbeds):
                tokens += len(picture.rows)
        if tokens > most:
            raise too_many_tokens(f"at least {tokens}", tokens, most, place.number, place.count)

    def _image(self, picture: Picture, place: Place) -> ProcessedImage:
        if isinstance(picture, Image):
            return self._reader.read(picture)
        if not isinstance(picture, ImageEmbeds):
            raise InvalidRequest(
                f"an image is {type(picture).__name__}; allowed are Image and ImageEmbeds{place}", "image"
            )
        rows, grid, vision = picture.rows, picture.grid, self._vision
        if rows.shape[1] != vision.row:
            raise InvalidRequest(
                f"image_embeds has rows of {rows.shape[1]} numbers; the model reads rows of {vision.row}{place}",
                "image_embeds",
            )
        if vision.by_place and (grid is None or int(np.prod(grid)) != len(rows) * vision.merge**2):
            raise InvalidRequest(
                f"image_embeds of {len(rows)} tokens needs its grid, {vision.merge**2 * len(rows)} patches in time, "
                f"height and width; given is {grid}{place}",
                "image_embeds",
            )
        return ProcessedImage(picture.key, rows, len(rows), grid or (), embedded=True)

    def _prompt(self, item: ImagePrompt, place: Place, reading: Reading) -> Ids:
        if isinstance(item.prompt, str):
            return self._encode(reading.prompt + item.prompt, reading.request.add_special_tokens, place)
        ids = as_ids(item.prompt, place.number)
        if len(ids):
            refuse_out_of_vocabulary(ids, self._card)
        return ids

    def _conversation(self, said: Conversation, place: Place, reading: Reading) -> Ids:
        chat = self._tokenizer.chat
        if chat is None:
            raise InvalidRequest(
                f"{self._card.name!r} has no chat template, so it takes no messages; give a prompt in which "
                f"{self._placeholder} stands for each image{place}",
                "messages",
            )
        messages = [{"role": message.role, "content": _typed(message)} for message in said.messages]
        if reading.prompt and (not messages or messages[0]["role"] != "system"):
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": reading.prompt}]})
        text = chat.render(
            messages,
            add_generation_prompt=said.add_generation_prompt,
            continue_final_message=said.continue_final_message,
            variables=said.variables,
        )
        return self._encode(text, False, place)  # a template writes its special tokens itself

    def _encode(self, text: str, special: bool, place: Place) -> Ids:
        refuse_surrogates([text], [place.number])
        most = self._card.max_model_len * self._tokenizer.max_chars_per_token
        if len(text) > most:
            raise InvalidRequest(f"a text has {len(text)} characters; allowed are at most {most}{place}", "input")
        (ids,) = self._tokenizer.encode([text], special)
        return ids


def _content(item: Any) -> Content:
    """A text or an image alone is what a user says."""
    return item if isinstance(item, Content) else Content((item,))


def _pictures(said: Conversation, place: Place) -> list[Picture]:
    parts = [part for message in said.messages for part in message.parts]
    odd = next((part for part in parts if not isinstance(part, str | Image | ImageEmbeds)), None)
    if odd is not None:
        raise InvalidRequest(f"an input holds {type(odd).__name__}; allowed are texts and images{place}", "input")
    return [part for part in parts if not isinstance(part, str)]


def _typed(message: Content) -> list[dict[str, str]]:
    """The parts of a message as chat templates name them."""
    return [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in message.parts]


class RetrievalIntake(DecoderIntake):
    """Of a multi-vector model that reads a text as a query, or an image as a page, each in a form of its own."""

    def read(self, item: Any, place: Place, reading: Reading) -> TokenizedInput:
        if isinstance(item, ImagePrompt) and item.prompt != "":
            return super().read(item, place, reading)
        parts = [part for part in parts_of(item, place) if part != ""]
        texts = [part for part in parts if isinstance(part, str)]
        pictures = [part for part in parts if not isinstance(part, str)]
        if (texts and pictures) or len(pictures) > 1:
            raise InvalidRequest(
                f"{self._card.name!r} reads a text or an image at a time; an input has {len(texts)} texts and "
                f"{len(pictures)} images{place}",
                "input",
            )
        query, page = (form.replace("{bos}", self._named("bos")) for form in self._vision.forms)
        said = reading.prompt + "\n".join(texts)
        # Tokens without a meaning of their own, in which the model was trained to go on thinking about the query.
        written = page if pictures else f"{query}{said}{self._named('pad') * _FILLING}\n"
        return self._within(self.expand(self._encode(written, False, place), pictures, place), place, reading)

    def _named(self, name: str) -> str:
        return self._tokenizer.named_tokens.get(f"{name}_token", "")
