"""check_media(): the images of a batch that a caller packed alone; a wrong one would fail all who share its step."""

import numpy as np

from pooling.errors import InvalidRequest
from pooling.loading.card import ModelCard
from pooling.loading.vision import Vision
from pooling.media import ProcessedImage
from pooling.request import PackedBatch


def check_media(batch: PackedBatch, card: ModelCard) -> None:
    """Raises InvalidRequest for images that the model does not take, and for ones that do not fit their inputs."""
    vision, media = card.vision, batch.media
    if vision is None:
        raise InvalidRequest(f"{card.name!r} reads text alone; the batch has images", "input")
    media = ((),) * len(batch) if media is None else media
    if len(media) != len(batch):
        raise InvalidRequest(f"the batch has images for {len(media)} inputs, but {len(batch)} inputs", "input")
    if batch.segments is not None:
        raise InvalidRequest("`segments` is for models that read text alone", "input")
    for length, images in zip(batch.lengths.tolist(), media, strict=True):
        if len(images) > vision.max_images:
            raise InvalidRequest(f"an input has {len(images)} images; allowed are at most {vision.max_images}", "input")
        if vision.kind == "images" and not images:
            raise InvalidRequest(f"{card.name!r} reads images alone; the batch has a text", "input")
        if vision.kind != "decoder" and images and length != images[0].tokens:
            raise InvalidRequest(f"an image of {images[0].tokens} tokens is in an input of {length}", "input")
        for image in images:
            _check_image(image, vision)
    if vision.kind == "decoder":
        _check_places(batch, vision)


def _check_image(image: ProcessedImage, vision: Vision) -> None:
    pixels = image.pixels
    if vision.patch is not None and pixels.dtype == np.float32:
        _check_patches(image, vision)
        return
    if pixels.dtype != np.float32:
        raise InvalidRequest(f"a processed image holds {pixels.dtype}; allowed is float32", "input")
    if image.embedded or (vision.shape is not None and pixels.shape != vision.shape):
        wanted = "" if vision.shape is None else f" of {list(vision.shape)}"
        raise InvalidRequest(
            f"a processed image is {'embedded already' if image.embedded else list(pixels.shape)}; allowed are "
            f"pixels{wanted}",
            "input",
        )
    if vision.tokens is not None and image.tokens != vision.tokens:
        raise InvalidRequest(f"an image has {image.tokens} tokens; allowed are {vision.tokens}", "input")


def _check_patches(image: ProcessedImage, vision: Vision) -> None:
    """Of a decoder."""
    shape, grid, merge = image.pixels.shape, image.grid, vision.merge
    if len(grid) != 3 or min(grid) < 1 or grid[1] % merge or grid[2] % merge:
        raise InvalidRequest(f"an image has the grid {list(grid)}; allowed are three sizes, of whole tokens", "input")
    patches = grid[0] * grid[1] * grid[2]
    wanted = (image.tokens, vision.row) if image.embedded else (patches, vision.patch)
    if shape != wanted or image.tokens * merge**2 != patches:
        kind = "image_embeds" if image.embedded else "processed image"
        raise InvalidRequest(
            f"{kind} of the grid {list(grid)} and {image.tokens} tokens is {list(shape)}; allowed is {list(wanted)}",
            "image_embeds" if image.embedded else "input",
        )


def _check_places(batch: PackedBatch, vision: Vision) -> None:
    """Whether each input has as many tokens of images as its images have."""
    ends = np.cumsum(batch.ids == vision.token_id)[batch.offsets()[1:] - 1]
    places = np.diff(ends, prepend=0)
    media = batch.media or ((),) * len(batch)
    given = np.array([sum(image.tokens for image in images) for images in media])
    wrong = np.flatnonzero(places != given)
    if len(wrong):
        raise InvalidRequest(
            f"input {batch.first + wrong[0]} has {places[wrong[0]]} tokens that stand for images, but its "
            f"{len(media[wrong[0]])} images have {given[wrong[0]]}",
            "input",
        )
