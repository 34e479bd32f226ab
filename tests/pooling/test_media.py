"""The nouns of images: what an image is known by, what is none, and how images travel with a batch."""

import pickle
import tracemalloc

import numpy as np
import pytest
from PIL import Image as Pillow

from pooling.errors import InvalidRequest
from pooling.media import Image, ImageEmbeds, ProcessedImage
from pooling.request import PackedBatch, PoolingParams, TokenizedInput


def test_an_image_is_known_by_its_shape_and_pixels() -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    image = Image.of(pixels)
    assert (image.height, image.width) == (4, 6)
    assert Image.of(Pillow.fromarray(pixels)) == image
    assert Image.of(pixels.reshape(6, 4, 3)).key != image.key
    assert Image.of(pixels[::-1]).key != image.key


def test_modes_of_pillow_become_rgb_and_what_is_transparent_white() -> None:
    grey = np.array([[0, 200]], np.uint8)
    assert Image.of(Pillow.fromarray(grey)).pixels.tolist() == [[[0] * 3, [200] * 3]]
    assert Image.of(grey) == Image.of(Pillow.fromarray(grey))
    clear = Pillow.fromarray(np.array([[[10, 20, 30, 0], [10, 20, 30, 255]]], np.uint8))
    assert Image.of(clear).pixels.tolist() == [[[255, 255, 255], [10, 20, 30]]]
    assert Image.of(np.asarray(clear)) == Image.of(clear)


def test_what_is_transparent_is_blended_in_little_memory() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (700, 900, 4)).astype(np.uint8)
    seen = pixels[..., 3:] / 255
    expected = np.rint(pixels[..., :3] * seen + 255 * (1 - seen))
    tracemalloc.start()
    try:
        image = Image.of(pixels)
        assert tracemalloc.get_traced_memory()[1] < 12 * 700 * 900
    finally:
        tracemalloc.stop()
    assert np.array_equal(image.pixels, expected)
    assert Image.of(Pillow.fromarray(pixels)) == image


def test_embeds_are_known_by_their_shape_and_rows_without_a_copy() -> None:
    rows = np.arange(600_000, dtype=np.float32).reshape(1_000, 600) % 1_000
    embeds = ImageEmbeds(rows)
    tracemalloc.start()
    try:
        key = embeds.key
        assert tracemalloc.get_traced_memory()[1] < rows.nbytes // 10
    finally:
        tracemalloc.stop()
    assert ImageEmbeds(rows.astype(np.float64)).key == key
    assert ImageEmbeds(rows.reshape(600, 1_000)).key != key
    assert ImageEmbeds(rows + 1).key != key


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        ("cat.png", "an image is str; allowed are a PIL image and a uint8 array of [height, width, 3]"),
        (np.zeros((3, 4, 3)), "an image is an array of float64 [3, 4, 3]; allowed is uint8 [height, width, 3]"),
        (np.zeros((3, 4, 5), np.uint8), "an image is an array of uint8 [3, 4, 5]; allowed is uint8 [height, width, 3]"),
        (np.zeros((0, 4, 3), np.uint8), "an image has no pixels"),
    ],
)
def test_what_is_no_image_is_refused(picture: object, said: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        Image.of(picture)
    assert refusal.value.detail == said


@pytest.mark.parametrize("rows", [np.zeros(3, np.float32), np.zeros((2, 3), np.int32), np.zeros((0, 3), np.float32)])
def test_embeds_of_another_shape_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(InvalidRequest, match="allowed is a float array of"):
        ImageEmbeds(rows)


def test_embeds_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="NaN or infinity"):
        ImageEmbeds(np.array([[np.nan]], np.float32))


@pytest.mark.parametrize(
    "number", [np.float64(1e300), np.float64(-1e300), np.float32(3e38), np.float32(-3e38), np.float32(65_505)]
)
def test_embeds_that_would_overflow_in_the_model_are_refused(number: np.floating) -> None:
    with pytest.raises(InvalidRequest, match=r"holds a number of magnitude .*; allowed are at most 65504"):
        ImageEmbeds(np.array([[0, number]], number.dtype))


def test_embeds_may_have_every_number_of_float16() -> None:
    rows = np.array([[-65_504, 65_504]], np.float16)
    assert ImageEmbeds(rows).rows.tolist() == rows.tolist()


def test_images_stay_with_their_inputs() -> None:
    first, second = _processed(b"1"), _processed(b"2")
    batch = _pack([(), (first,), (second, first)])
    assert batch.slice(1, 3).media == ((first,), (second, first))
    taken = batch.take(np.array([2, 0]), batch.offsets())
    assert taken.media == ((second, first), ())
    joined = PackedBatch.join([_pack([()]), taken])
    assert joined.media == ((), (second, first), ())


def test_a_batch_without_images_carries_nothing() -> None:
    batch = _pack([(), ()])
    assert batch.media is None
    assert PackedBatch.join([batch, batch]).media is None


def test_an_image_that_inputs_share_travels_once() -> None:
    image = _processed(b"1", size=100_000)
    data = pickle.dumps(_pack([(image,)] * 8), protocol=5)
    assert len(data) < 2 * image.pixels.nbytes
    media = pickle.loads(data).media
    assert len({id(images[0]) for images in media}) == 1
    assert np.array_equal(media[0][0].pixels, image.pixels)


def _processed(key: bytes, size: int = 4) -> ProcessedImage:
    return ProcessedImage(key, np.full((1, size), key[0], np.float32), 2)


def _pack(images: list[tuple[ProcessedImage, ...]]) -> PackedBatch:
    inputs = [TokenizedInput(np.arange(1 + index, dtype=np.int32), media=of) for index, of in enumerate(images)]
    return PackedBatch.pack(inputs, "embed", PoolingParams())
