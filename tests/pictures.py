"""Pictures that stretch an engine: of every shape, smooth enough that resizing keeps something of them."""

import numpy as np
from PIL import Image

_SIZES = [(32, 32), (48, 64), (100, 37), (17, 90), (64, 48), (200, 200), (5, 7)]


def picture(width: int, height: int, seed: int) -> Image.Image:
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def pictures() -> list[Image.Image]:
    return [picture(width, height, seed) for seed, (width, height) in enumerate(_SIZES)]
