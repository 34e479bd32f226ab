"""Distinct: the images of a step, each once, however many inputs have it."""

from collections.abc import Iterable
from dataclasses import dataclass

from pooling.media import ProcessedImage


@dataclass(frozen=True, slots=True)
class Distinct:
    """images: each once. of: for each image that was asked for, in order, its number among them."""

    images: tuple[ProcessedImage, ...]
    of: tuple[int, ...]

    @classmethod
    def among(cls, images: Iterable[ProcessedImage]) -> "Distinct":
        number: dict[bytes, int] = {}
        distinct: list[ProcessedImage] = []
        of = []
        for image in images:
            if image.key not in number:
                number[image.key] = len(distinct)
                distinct.append(image)
            of.append(number[image.key])
        return cls(tuple(distinct), tuple(of))
