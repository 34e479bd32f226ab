"""check_rows(): a forward pass that answers one row for an input proves itself at the start, on texts and images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pooling.loading.describe import Description
from pooling.media import ProcessedImage
from pooling.self_check import difference, draw_ids

if TYPE_CHECKING:
    from pooling.vision.towers import ImagesForward

_Input = tuple[np.ndarray, tuple[ProcessedImage, ...]]


def check_rows(forward: "ImagesForward", description: Description, dtype: torch.dtype) -> str | None:
    """Runs two texts and two images together and each alone; what is wrong, None if nothing is. As self_check.check().

    An image's row may be rounded otherwise in another batch, so a leak is asked for within rounding.
    """
    inputs = _inputs(description)
    allowed = 1e-3 if dtype == torch.float32 else 0.05
    with torch.inference_mode():
        together = _run(forward, inputs)
        alone = torch.cat([forward.alone(*one) for one in inputs])
        other = _run(forward, [*inputs[1:], inputs[0]])
    if difference(other, together.roll(-1, 0)) > allowed:
        return "an input changes when another one does"
    error = max(difference(row, truth) for row, truth in zip(together, alone, strict=True))
    return None if error < allowed else f"its answers differ from the model's own by {error:.1e} of their length"


def _inputs(description: Description) -> list[_Input]:
    card = description.card
    vision = card.vision
    assert vision is not None
    assert vision.shape is not None
    assert vision.tokens is not None
    draw = np.random.default_rng(0)
    images = [
        ProcessedImage(bytes([number]), draw.standard_normal(vision.shape).astype(np.float32), vision.tokens)
        for number in range(2)
    ]
    inputs: list[_Input] = [(np.zeros(vision.tokens, np.int32), (image,)) for image in images]
    if vision.kind == "images":
        return inputs
    lengths = (
        [vision.fill_to] * 2 if vision.fill_to is not None else [min(size, card.max_model_len) for size in (24, 11)]
    )
    return [*((draw_ids(draw, length, description), ()) for length in lengths), *inputs]


def _run(forward: "ImagesForward", inputs: Sequence[_Input]) -> Tensor:
    lengths = np.array([len(ids) for ids, _ in inputs], np.int32)
    media = tuple(images for _, images in inputs)
    return forward(forward.prepare(np.concatenate([ids for ids, _ in inputs]), lengths, media=media))
