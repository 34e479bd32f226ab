"""The nouns of images: what a caller hands in beside text, and what the model's image processor makes of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from pooling.errors import InvalidRequest

Pixels = NDArray[np.uint8]
_KEY_BYTES = 16
# Pixels that are blended at a time: in floating-point numbers they take forty bytes each.
_BLENDED = 65_536
# The largest number of float16, the narrowest type that a model runs in; what is larger would be infinite in it, and in
# the first layers of any other soon after.
_MAX_EMBED = 65_504.0


@dataclass(frozen=True, slots=True)
class Image:
    """A decoded picture: pixels [height, width, 3] uint8, RGB.

    key: a digest of shape and pixels, by which identical images are known: images
    of equal keys are equal.
    """

    pixels: Pixels = field(compare=False, repr=False)
    key: bytes

    @classmethod
    def of(cls, picture: Any) -> Self:
        """From a PIL image of any mode, or an array [height, width] or [height, width, 1, 3 or 4] of uint8.

        What is transparent becomes white. Raises InvalidRequest for anything else,
        and for a picture without a pixel.
        """
        pixels = np.ascontiguousarray(_rgb(picture))
        if not pixels.size:
            raise InvalidRequest("an image has no pixels", "image")
        return cls(pixels, _digest(pixels))

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class ImageEmbeds:
    """An image that is embedded already: rows [tokens, dim] float32, which the decoder reads in place of its tokens.

    grid: patches in time, height and width before they are merged into tokens, for
    decoders that number their tokens by place; None for the others.
    Raises InvalidRequest for rows of another shape, and for numbers that are not
    finite or that no vision part makes, which would fail the model.
    """

    rows: NDArray[np.float32] = field(repr=False)
    grid: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        rows: Any = self.rows
        if not isinstance(rows, np.ndarray) or rows.ndim != 2 or not rows.size or rows.dtype.kind != "f":
            shape = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, np.ndarray) else type(rows).__name__
            raise InvalidRequest(
                f"image_embeds is {shape}; allowed is a float array of [tokens, components]", "image_embeds"
            )
        if not np.isfinite(rows).all():
            raise InvalidRequest("image_embeds holds NaN or infinity", "image_embeds")
        largest = max(float(rows.max()), -float(rows.min()))
        if largest > _MAX_EMBED:
            raise InvalidRequest(
                f"image_embeds holds a number of magnitude {largest:g}; allowed are at most {_MAX_EMBED:g}",
                "image_embeds",
            )
        object.__setattr__(self, "rows", np.ascontiguousarray(rows, np.float32))

    @property
    def key(self) -> bytes:
        """A digest of the rows, unlike that of any Image."""
        return b"embedded " + _digest(self.rows)


Picture = Image | ImageEmbeds
Part = str | Image | ImageEmbeds


@dataclass(frozen=True, slots=True)
class Content:
    """One message of texts and images, in order. role: who says it, in the chat template's words."""

    parts: tuple[Part, ...]
    role: str = "user"


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages that the model's chat template makes one text of; a Content alone is a conversation of one message.

    add_generation_prompt, continue_final_message and variables are the template's, as in ChatTemplate.render().
    """

    messages: tuple[Content, ...]
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImagePrompt:
    """A text, or token ids, that names the place of each of its images by the model's own placeholder.

    Without any text it is images alone, which is what a model takes whose images have a tower of their own.
    """

    prompt: str | Sequence[int] | NDArray[np.int32]
    images: tuple[Picture, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ProcessedImage:
    """An image as the model's vision part reads it.

    key: that of the image; equal images are embedded once in a step. pixels
    float32: [1, channels, height, width], [tiles, channels, height, width] or
    [patches, numbers of a patch], as the model's own processor makes them; for
    an image that is embedded already, its rows [tokens, dim]. tokens: how many
    the image has in its input. grid: patches in time, height and width, or the
    height and width of the original, where the model reads that; else ().
    """

    key: bytes
    pixels: NDArray[np.float32] = field(repr=False)
    tokens: int
    grid: tuple[int, ...] = ()
    embedded: bool = False


# Of each input of a batch its images, in the order of their places.
Media = tuple[tuple[ProcessedImage, ...], ...]


def join_media(media: Sequence[Media | None], inputs: Sequence[int]) -> Media | None:
    """The images of several batches laid end to end, of so many inputs each; None: none has any."""
    if all(images is None for images in media):
        return None
    return tuple(
        of_input
        for images, count in zip(media, inputs, strict=True)
        for of_input in (((),) * count if images is None else images)
    )


def _digest(array: NDArray[Any]) -> bytes:
    """Of the shape and the numbers of a contiguous array, without a copy of them."""
    # The fastest digest where the processor has instructions for it; a photo has megabytes.
    digest = sha256(np.array(array.shape, "<i8").tobytes())
    digest.update(array.data)
    return digest.digest()[:_KEY_BYTES]


def _rgb(picture: Any) -> Pixels:
    if isinstance(picture, np.ndarray):
        return _array(picture)
    if not isinstance(picture, Pillow.Image):
        raise InvalidRequest(
            f"an image is {type(picture).__name__}; allowed are a PIL image and a uint8 array of [height, width, 3]",
            "image",
        )
    if "A" in picture.getbands() or "transparency" in picture.info:
        return _array(np.asarray(picture if picture.mode == "RGBA" else picture.convert("RGBA")))
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _array(array: NDArray[Any]) -> Pixels:
    channels = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    if array.dtype != np.uint8 or channels not in (1, 3, 4):
        raise InvalidRequest(
            f"an image is an array of {array.dtype} {list(array.shape)}; allowed is uint8 [height, width, 3]", "image"
        )
    array = array.reshape(*array.shape[:2], channels)
    if channels == 4:
        return _on_white(array)
    return np.broadcast_to(array, (*array.shape[:2], 3))


def _on_white(array: Pixels) -> Pixels:
    """[height, width, 4] -> [height, width, 3]."""
    flat = array.reshape(-1, 4)
    blended = np.empty((len(flat), 3), np.uint8)
    for start in range(0, len(flat), _BLENDED):
        strip = flat[start : start + _BLENDED]
        seen = strip[:, 3:].astype(np.float32) / 255
        blended[start : start + _BLENDED] = np.rint(strip[:, :3] * seen + 255 * (1 - seen))
    return blended.reshape(*array.shape[:2], 3)
