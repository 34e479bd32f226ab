"""check_images(): the forward pass of a model that takes images proves itself at the start, on texts and images."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pooling.forward import StepInput
from pooling.loading.describe import Description
from pooling.loading.vision import Vision
from pooling.media import Media, ProcessedImage
from pooling.self_check import difference, draw_ids

_Input = tuple[NDArray[np.int32], tuple[ProcessedImage, ...]]
# Tokens of the images of a decoder's check, in height and width.
_GRIDS = ((2, 4), (4, 2))


class VisionForward(Protocol):
    """What is checked of a forward pass: rows of inputs together, and of one alone."""

    def prepare(
        self,
        ids: NDArray[np.int32],
        lengths: NDArray[np.int32],
        second: NDArray[np.int32] | None = None,
        attended: NDArray[np.int32] | None = None,
        media: Media | None = None,
    ) -> StepInput: ...

    def __call__(self, step: StepInput) -> Tensor: ...

    def alone(self, ids: NDArray[np.int32], images: Sequence[ProcessedImage] = ()) -> Tensor: ...


def check_images(forward: VisionForward, description: Description, dtype: torch.dtype) -> str | None:
    """Runs texts and images together and each alone; what is wrong, None if nothing is. As self_check.check().

    An image's rows may be rounded otherwise in another batch, so a leak is asked for within rounding.
    """
    vision = description.card.vision
    assert vision is not None
    inputs = _mixed(vision, description) if vision.kind == "decoder" else _apart(vision, description)
    allowed = 1e-3 if dtype == torch.float32 else 0.05
    with torch.inference_mode():
        alone = [forward.alone(*one) for one in inputs]
        sizes = [len(rows) for rows in alone]
        together = torch.split(_run(forward, inputs), sizes)
        other = torch.split(_run(forward, inputs[1:]), sizes[1:]) if inputs[1:] else ()
    if any(difference(*rows) > allowed for rows in zip(other, together[1:], strict=True)):
        return "an input changes when another one does"
    error = max(map(difference, together, alone))
    return None if error < allowed else f"its answers differ from the model's own by {error:.1e} of their length"


def _apart(vision: Vision, description: Description) -> list[_Input]:
    """Of a model that reads a text or an image."""
    assert vision.shape is not None
    assert vision.tokens is not None
    draw = np.random.default_rng(0)
    inputs: list[_Input] = []
    for number in range(2):
        pixels = draw.standard_normal(vision.shape).astype(np.float32)
        image = ProcessedImage(bytes([number]), pixels, vision.tokens)
        inputs.append((np.zeros(vision.tokens, np.int32), (image,)))
    if vision.kind == "images":
        return inputs
    limit = description.card.max_model_len
    lengths = [min(size, limit) for size in (24, 11)] if vision.fill_to is None else [vision.fill_to] * 2
    return [*((draw_ids(draw, length, description), ()) for length in lengths), *inputs]


def _mixed(vision: Vision, description: Description) -> list[_Input]:
    """Of a model that reads images among texts: an input with two images, one with one of them, and a text."""
    draw, limit = np.random.default_rng(0), description.card.max_model_len
    images = [_image(number, vision, draw) for number in range(2)]

    def text(size: int) -> NDArray[np.int32]:
        ids = draw_ids(draw, size, description)
        return np.where(ids == vision.token_id, (ids + 1) % description.card.vocab_size, ids).astype(np.int32)

    def tokens_of(image: ProcessedImage) -> NDArray[np.int32]:
        return np.full(image.tokens, vision.token_id, np.int32)

    first, second = images
    both = np.concatenate([text(3), tokens_of(first), text(2), tokens_of(second), text(5)])
    one = np.concatenate([text(1), tokens_of(first), text(4)])
    inputs: list[_Input] = [(both, (first, second)), (one, (first,)), (text(min(7, limit)), ())]
    return [one for one in inputs if len(one[0]) <= limit]


def _image(number: int, vision: Vision, draw: np.random.Generator) -> ProcessedImage:
    key = bytes([number])
    if vision.shape is not None and vision.tokens is not None:
        return ProcessedImage(key, draw.standard_normal(vision.shape).astype(np.float32), vision.tokens)
    assert vision.patch is not None
    height, width = (tokens * vision.merge for tokens in _GRIDS[number])
    pixels = draw.standard_normal((height * width, vision.patch)).astype(np.float32)
    return ProcessedImage(key, pixels, height * width // vision.merge**2, (1, height, width))


def _run(forward: VisionForward, inputs: Sequence[_Input]) -> Tensor:
    lengths = np.array([len(ids) for ids, _ in inputs], np.int32)
    media = tuple(images for _, images in inputs)
    return forward(forward.prepare(np.concatenate([ids for ids, _ in inputs]), lengths, media=media))
