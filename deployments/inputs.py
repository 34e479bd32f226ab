"""What callers give as input, in the one shape that intake takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image as Pillow

from pooling.errors import InvalidRequest
from pooling.media import Content, Conversation, Image, ImageEmbeds, ImagePrompt
from pooling.request import Prompt

_ALONE = (str, Pillow.Image, Image, ImageEmbeds, ImagePrompt, Content, Conversation)
_PICTURES = (Pillow.Image, Image, ImageEmbeds)


def as_inputs(given: Any) -> Sequence[Prompt]:
    """One item for each input: a text or an image alone, or a flat list of token ids, is one input.

    Raises InvalidRequest for what is none of them and no list; intake judges the items.
    """
    if isinstance(given, _ALONE):
        one: Any = given
        return [one]
    if not isinstance(given, Sequence | np.ndarray):
        raise InvalidRequest(
            f"input is {type(given).__name__}; allowed are text, token ids, or a list of either", "input"
        )
    if isinstance(given, np.ndarray):
        return [given] if given.ndim == 1 and given.dtype.kind in "iu" else list(given)
    if len(given) and isinstance(given[0], int | np.integer):
        return [given]
    return list(given)


def as_side(given: Any) -> list[str | Content]:
    """One item for each text or image that is compared, an image as the content that it is."""
    items: list[Any] = [given] if isinstance(given, (str, Content, *_PICTURES)) else list(given)
    pictures = [isinstance(item, _PICTURES) for item in items]
    return [Content((item,)) if is_picture else item for item, is_picture in zip(items, pictures, strict=True)]
