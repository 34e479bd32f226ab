"""positions_by_place(): where tokens of texts and images stand in time, height and width, as Qwen's decoders count."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pooling.media import ProcessedImage


def positions_by_place(is_image: NDArray[np.bool_], images: Sequence[ProcessedImage], merge: int) -> NDArray[np.int64]:
    """[3, tokens] of one input. merge: patches to a token, along each side.

    A text's token is one further than the one before in all three; an image's have
    the place of their patches, counted from where the text was; the text goes on
    behind the longer side. Source: transformers' Qwen2VLModel.get_rope_index.
    """
    runs: list[NDArray[np.int64]] = []
    place = next_token = 0
    starts = np.flatnonzero(is_image)
    for image in images:
        start = int(starts[np.searchsorted(starts, next_token)])
        runs.append(_line(place, start - next_token))
        place += start - next_token
        frames, height, width = (size // side for size, side in zip(image.grid, (1, merge, merge), strict=True))
        runs.append(place + np.indices((frames, height, width)).reshape(3, -1))
        place += max(height, width)
        next_token = start + image.tokens
    runs.append(_line(place, len(is_image) - next_token))
    return np.concatenate(runs, axis=1)


def _line(start: int, length: int) -> NDArray[np.int64]:
    return np.broadcast_to(np.arange(start, start + length), (3, length))
