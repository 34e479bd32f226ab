"""outline(): the images of a step without what they show, for ranks that are told what rank 0's vision part makes."""

import numpy as np
from numpy.typing import NDArray

from pooling.media import Media, ProcessedImage

# Which input an image is of, which of the distinct ones it is, its tokens, its grid, whether it is embedded already.
COLUMNS = 7


def outline(media: Media) -> NDArray[np.int32]:
    """[images, COLUMNS], of a decoder whose images have a grid."""
    numbers: dict[bytes, int] = {}
    return np.array(
        [
            (owner, numbers.setdefault(image.key, len(numbers)), image.tokens, *image.grid, image.embedded)
            for owner, images in enumerate(media)
            for image in images
        ],
        np.int32,
    )


def media_of(rows: NDArray[np.int32], inputs: int) -> Media:
    """Images as outline() describes them, of so many inputs; their pixels are empty."""
    media: list[list[ProcessedImage]] = [[] for _ in range(inputs)]
    nothing = np.empty((0, 0), np.float32)
    for owner, number, tokens, frames, height, width, embedded in rows.tolist():
        key = number.to_bytes(4, "big")
        media[owner].append(ProcessedImage(key, nothing, tokens, (frames, height, width), bool(embedded)))
    return tuple(map(tuple, media))
