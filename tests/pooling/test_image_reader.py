"""Images are processed by the model's own processor, identical ones once, in bounded memory; a wrong one is refused."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pooling import Intake, ModelSpec, PoolingRequest
from pooling.errors import CheckpointError, ImageTooLarge, InvalidRequest
from pooling.judge import check_batch
from pooling.loading.describe import describe
from pooling.media import Content, Image, ProcessedImage
from pooling.request import PackedBatch
from pooling.vision.cache import ImageCache
from tests.pictures import picture, pictures


@pytest.fixture(scope="module")
def intake(checkpoint: Callable[[str], Path]) -> Intake:
    return Intake.load(ModelSpec(source=str(checkpoint("clip"))))


def _tokenize(intake: Intake, *inputs: Any) -> PackedBatch:
    return intake.tokenize(PoolingRequest(list(inputs), "embed"))


def test_identical_images_are_processed_once(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    assert intake.images is not None
    processed = []
    process = intake.images._process
    monkeypatch.setattr(intake.images, "_process", lambda image: processed.append(image) or process(image))
    drawn = picture(33, 21, seed=50)
    media = _tokenize(intake, Image.of(drawn), "a dog", Image.of(drawn)).media
    again = _tokenize(intake, Image.of(drawn)).media
    assert len(processed) == 1
    assert media is not None
    assert again is not None
    assert media[0][0] is media[2][0] is again[0][0]
    assert media[1] == ()


def test_the_cache_keeps_what_was_used_last_within_its_bound() -> None:
    images = [ProcessedImage(bytes([number]), np.zeros(100, np.float32), 1) for number in range(4)]
    cache = ImageCache(max_bytes=3 * 400)
    for image in images[:3]:
        cache.add(image)
    assert cache.get(images[0].key) is images[0]
    cache.add(images[3])
    assert [cache.get(image.key) is image for image in images] == [True, False, True, True]
    cache.add(ProcessedImage(b"large", np.zeros(1_000, np.float32), 1))
    assert cache.get(b"large") is None
    assert cache.get(images[3].key) is images[3]


def test_threads_may_share_an_intake(intake: Intake) -> None:
    images = [Image.of(image) for image in pictures()]
    alone = [_tokenize(intake, image).media[0][0].pixels for image in images]  # type: ignore[index]
    with ThreadPoolExecutor(8) as pool:
        for batch in pool.map(lambda _: _tokenize(intake, *images), range(16)):
            assert batch.media is not None
            for (image,), expected in zip(batch.media, alone, strict=True):
                assert np.array_equal(image.pixels, expected)


def test_one_pixel_is_an_image(intake: Intake) -> None:
    batch = _tokenize(intake, Image.of(np.full((1, 1, 3), 200, np.uint8)))
    check_batch(batch, intake.card)


@pytest.mark.parametrize("shape", [(1, 201, 3), (402, 2, 3), (201, 1, 3)])
def test_a_strip_is_refused_before_it_is_made_larger(
    intake: Intake, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    strip = Image.of(np.zeros(shape, np.uint8))
    _tokenize(intake, Image.of(np.zeros((1, 200, 3), np.uint8)))
    monkeypatch.setattr(intake.images, "_process", lambda _: pytest.fail("it was processed"))
    with pytest.raises(InvalidRequest, match=f"{strip.width}x{strip.height} pixels; allowed is an aspect ratio of at"):
        _tokenize(intake, strip)


def test_an_image_for_which_there_is_no_memory_is_refused(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    def process(**_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(intake.images, "_processor", process)
    with pytest.raises(InvalidRequest, match="an image of 8x6 pixels needs more memory to be processed than there is"):
        _tokenize(intake, Image.of(picture(8, 6, seed=51)))


def test_the_images_of_a_request_are_bounded_as_they_are_processed(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_one = 3 * 32 * 32 * 4
    intake = Intake.load(ModelSpec(source=str(checkpoint("clip"))), max_processed_bytes=3 * of_one)
    assert intake.images is not None
    images = [Image.of(np.full((1, 1, 3), shade, np.uint8)) for shade in range(10)]
    _tokenize(intake, *images[:3], *images[:3])
    processed = []
    process = intake.images._process
    monkeypatch.setattr(intake.images, "_process", lambda image: processed.append(image) or process(image))
    with pytest.raises(ImageTooLarge, match=f"the first 4 images of a request take {4 * of_one} bytes .* {3 * of_one}"):
        _tokenize(intake, *images)
    assert len(processed) == 1  # the first three were known


def test_the_images_of_pairs_are_bounded_too(checkpoint: Callable[[str], Path]) -> None:
    spec = ModelSpec(source=str(checkpoint("qwen3-vl")), task="score")
    pairs: list[Any] = [("a cat", Content((Image.of(picture(60, 60, seed=seed)),))) for seed in range(3)]
    whole = Intake.load(spec).tokenize(PoolingRequest(pairs))
    assert whole.media is not None
    of_two = sum(images[0].pixels.nbytes for images in whole.media[:2])
    with pytest.raises(ImageTooLarge, match="the first 3 images of a request take"):
        Intake.load(spec, max_processed_bytes=of_two).tokenize(PoolingRequest(pairs))


def test_a_batch_with_other_images_than_the_model_reads_is_refused(intake: Intake) -> None:
    image = ProcessedImage(b"1", np.zeros((1, 3, 64, 64), np.float32), 17)
    batch = PackedBatch(np.zeros(17, np.int32), np.array([17], np.int32), media=((image,),))
    with pytest.raises(InvalidRequest, match=r"a processed image is \[1, 3, 64, 64\]; allowed are pixels of"):
        check_batch(batch, intake.card)


def test_no_more_images_than_the_limit(intake: Intake) -> None:
    image = _tokenize(intake, Image.of(picture(9, 9, 1))).media[0][0]  # type: ignore[index]
    batch = PackedBatch(np.zeros(17, np.int32), np.array([17], np.int32), media=((image, image),))
    with pytest.raises(InvalidRequest, match="an input has 2 images; allowed are at most 1"):
        check_batch(batch, intake.card)


def test_a_model_without_a_processor_is_refused(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(checkpoint("clip"), tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="the model has no preprocessor_config"):
        Intake.load(ModelSpec(source=str(tmp_path / "model")))


def test_a_processor_of_another_size_is_refused(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(checkpoint("clip"), tmp_path / "model")
    file = tmp_path / "model" / "preprocessor_config.json"
    settings = json.loads(file.read_text()) | {"crop_size": {"height": 24, "width": 24}}
    file.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"makes images of \[3, 24, 24\], but the model reads \[3, 32, 32\]"):
        Intake.load(ModelSpec(source=str(tmp_path / "model")))


def test_another_model_with_a_vision_part_is_refused_by_name(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(checkpoint("clip"), tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "idefics3", "architectures": ["X"]}))
    with pytest.raises(CheckpointError, match="a vision part that is not supported; those that take images are clip,"):
        Intake.load(ModelSpec(source=str(tmp_path / "model")))


def test_a_card_says_how_a_model_takes_images(checkpoint: Callable[[str], Path]) -> None:
    said = {}
    for name in ("clip", "siglip", "vit", "qwen2-vl", "colqwen2"):
        said[name] = str(describe(ModelSpec(source=str(checkpoint(name)))).card.vision)
    assert said == {
        "clip": "one in place of a text, 17 tokens each",
        "siglip": "one in place of a text, 16 tokens each",
        "vit": "images alone, 17 tokens each",
        "qwen2-vl": "up to 8 among the texts of an input",
        "colqwen2": "one in place of a text",
    }
