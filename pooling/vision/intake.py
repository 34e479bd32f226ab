"""MediaIntake: inputs with images -> TokenizedInput; TowersIntake reads those of a model that reads one at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pooling.errors import InvalidRequest
from pooling.loading.card import ModelCard
from pooling.media import Content, Conversation, Image, ImageEmbeds, ImagePrompt, Picture
from pooling.request import PoolingRequest, TokenizedInput
from pooling.vision.reader import ImageReader

MEDIA = frozenset((Image, ImageEmbeds, ImagePrompt, Content, Conversation))


@dataclass(frozen=True, slots=True)
class Place:
    """What the caller calls an input: `number` of `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f" (input {self.number} of {self.count})" if self.count > 1 else ""


@dataclass(frozen=True, slots=True)
class Reading:
    """How the inputs of a request are read. prompt: what is put before each. limit: to how many tokens they are cut."""

    request: PoolingRequest
    prompt: str
    limit: int | None


class MediaIntake(Protocol):
    """Reads inputs that may have images: a text, for whoever reads texts, or the ids with the images among them."""

    def read(self, item: Any, place: Place, reading: Reading) -> str | TokenizedInput: ...


class TowersIntake:
    """Of a model that reads a text or an image: an image is an input by itself."""

    def __init__(self, card: ModelCard, reader: ImageReader) -> None:
        assert card.vision is not None
        self._card, self._vision, self._reader = card, card.vision, reader

    def read(self, item: Any, place: Place, reading: Reading) -> str | TokenizedInput:
        """A text, for whoever reads texts, or an image."""
        parts = [part for part in parts_of(item, place) if part != ""]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "\n".join(texts)
        if len(parts) != 1 or not isinstance(parts[0], Image):
            self._refuse(parts, place)
        image = self._reader.read(parts[0])  # type: ignore[arg-type]  # else refused
        return TokenizedInput(np.full(image.tokens, self._vision.token_id, np.int32), media=(image,))

    def _refuse(self, parts: Sequence[str | Picture], place: Place) -> None:
        name = repr(self._card.name)
        allowed = "an image" if self._vision.kind == "images" else "a text or an image"
        if any(isinstance(part, ImageEmbeds) for part in parts):
            raise InvalidRequest(f"{name} embeds images itself, so it takes no image_embeds{place}", "image_embeds")
        texts = sum(isinstance(part, str) for part in parts)
        raise InvalidRequest(
            f"{name} reads {allowed} at a time; an input has {texts} texts and {len(parts) - texts} images{place}",
            "input",
        )


def parts_of(item: Any, place: Place) -> Sequence[str | Picture]:
    """What an input holds, in order. Raises InvalidRequest for what is of another type than it should be."""
    if isinstance(item, str | Image | ImageEmbeds):
        return (item,)
    if isinstance(item, Content):
        parts: Sequence[Any] = item.parts
    elif isinstance(item, Conversation):
        parts = [part for message in item.messages for part in message.parts]
    else:
        if not isinstance(item.prompt, str):
            raise InvalidRequest(f"token ids with images are for models that read both together{place}", "input")
        parts = (item.prompt, *item.images)
    odd = next((part for part in parts if not isinstance(part, str | Image | ImageEmbeds)), None)
    if odd is not None:
        raise InvalidRequest(f"an input holds {type(odd).__name__}; allowed are texts and images{place}", "input")
    return parts
