"""ImageReader: a decoded image -> what the model's vision part reads, by the model's own processor, on the CPU."""

from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image as Pillow

# From its own module: transformers 5.17 hides it where there is no torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from pooling.errors import CheckpointError, InvalidRequest
from pooling.loading.vision import Vision
from pooling.media import Image, ProcessedImage
from pooling.vision.cache import ImageCache

_FILES = ("preprocessor_config.json", "processor_config.json")
# A processor that resizes the shorter edge makes a strip as much longer. Source: smart_resize() in transformers'
# Qwen2-VL.
_MAX_ASPECT_RATIO = 200


class ImageReader:
    """Processes images, identical ones once. Safe to call from several threads."""

    def __init__(self, processor: Any, vision: Vision, cache: ImageCache | None = None) -> None:
        self._processor, self._vision = processor, vision
        self.cache = ImageCache() if cache is None else cache

    @classmethod
    def load(cls, directory: Path, vision: Vision) -> Self:
        """Raises CheckpointError if there is no processor, or one that makes other images than the model reads."""
        if not any((directory / file).exists() for file in _FILES):
            raise CheckpointError(
                f"the model has no {_FILES[0]}, which says how its images are resized and normalised; it needs one"
            )
        try:
            # Pillow's: torchvision's is another resampling, and would be one more thing to install.
            kind: Any = AutoImageProcessor
            processor = kind.from_pretrained(directory, backend="pil")
        except Exception as error:  # any failure of transformers to read the file has one meaning for the user
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"the model's image processor cannot be read: {reason}") from None
        reader = cls(processor, vision)
        reader._check()
        return reader

    def read(self, image: Image) -> ProcessedImage:
        """Raises InvalidRequest for a strip, and, in the processor's words, for an image that it does not take."""
        _refuse_strip(image)
        known = self.cache.get(image.key)
        if known is None:
            known = self._process(image)
            self.cache.add(known)
        return known

    def tokens_of(self, image: Image) -> int:
        """How many tokens an image will have, by its size alone. Raises InvalidRequest for a strip."""
        _refuse_strip(image)
        if self._vision.tokens is not None:
            return self._vision.tokens
        return int(self._processor.get_number_of_image_patches(image.height, image.width)) // self._vision.merge**2

    def _process(self, image: Image) -> ProcessedImage:
        try:
            made = self._processor(images=[Pillow.fromarray(image.pixels)], return_tensors="np")
        except (ValueError, ZeroDivisionError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InvalidRequest(
                f"the model's processor refuses an image of {image.width}x{image.height} pixels: {reason}", "image"
            ) from None
        except MemoryError:
            raise InvalidRequest(
                f"an image of {image.width}x{image.height} pixels needs more memory to be processed than there is; "
                "give a smaller one",
                "image",
            ) from None
        pixels = np.ascontiguousarray(made["pixel_values"], np.float32)
        if self._vision.tokens is not None:
            return ProcessedImage(image.key, pixels, self._vision.tokens)
        grid = tuple(int(size) for size in made["image_grid_thw"][0])
        return ProcessedImage(image.key, pixels, int(np.prod(grid)) // self._vision.merge**2, grid)

    def _check(self) -> None:
        """Whether it makes what the model reads; it would fail at the first request, and all who share its step."""
        vision = self._vision
        try:
            blank = Image.of(np.zeros((48, 64, 3), np.uint8))
            image = self._process(blank)
            self.tokens_of(blank)
        except (InvalidRequest, KeyError, AttributeError) as error:
            raise CheckpointError(f"the model's image processor fails: {error}") from None
        shape = image.pixels.shape
        if vision.shape is not None and shape != vision.shape:
            raise CheckpointError(
                f"{_FILES[0]} makes images of {list(shape[1:])}, but the model reads {list(vision.shape[1:])}"
            )
        if vision.patch is not None and (shape[1:] != (vision.patch,) or any(n % vision.merge for n in image.grid[1:])):
            raise CheckpointError(
                f"{_FILES[0]} makes patches of {shape[-1]} numbers in a grid of {list(image.grid)}; the model's have "
                f"{vision.patch}, and it merges {vision.merge} of them along each side"
            )


def _refuse_strip(image: Image) -> None:
    short, long = sorted((image.width, image.height))
    if long > _MAX_ASPECT_RATIO * short:
        raise InvalidRequest(
            f"an image has {image.width}x{image.height} pixels; allowed is an aspect ratio of at most "
            f"{_MAX_ASPECT_RATIO}",
            "image",
        )
