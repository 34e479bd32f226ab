"""What a language model that reads images refuses, each in one sentence, and without harm to who shares its steps."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from pooling import LLM, Intake, ModelSpec, PoolingRequest
from pooling.errors import ConfigError, InputTooLong, InvalidRequest
from pooling.judge import check_batch
from pooling.media import Content, Conversation, Image, ImageEmbeds, ImagePrompt
from pooling.request import PackedBatch
from tests.checkpoints.vision_decoders import PLACE
from tests.pictures import picture, pictures
from tests.texts import words

_IMAGE = Image.of(picture(40, 30, seed=1))
_NARROW = Image.of(np.zeros((1, 300, 3), np.uint8))


@pytest.fixture(scope="module")
def intake(checkpoint: Callable[[str], Path]) -> Intake:
    return Intake.load(ModelSpec(source=str(checkpoint("qwen3-vl")), limit_mm_per_prompt={"image": 3}))


@pytest.fixture(scope="module")
def llm(checkpoint: Callable[[str], Path]) -> Iterator[LLM]:
    with LLM(str(checkpoint("qwen3-vl")), dtype="float32", limit_mm_per_prompt={"image": 3}) as llm:
        yield llm


_REFUSED: list[tuple[Any, type[Exception], str]] = [
    (ImagePrompt(f"{PLACE}", (_IMAGE, _IMAGE)), InvalidRequest, "the places of 1 images (<|image_pad|>), but 2 are"),
    (ImagePrompt("a cat", (_IMAGE,)), InvalidRequest, "the places of 0 images (<|image_pad|>), but 1 are given"),
    (f"{PLACE} a cat", InvalidRequest, "has 1 tokens that stand for images, but its 0 images have 0"),
    (Content((f"{PLACE}", _IMAGE)), InvalidRequest, "the places of 2 images"),
    (Content((_IMAGE,) * 4), InvalidRequest, "At most 3 image(s) may be provided in one prompt; given are 4"),
    (Content((_NARROW,)), InvalidRequest, "an image has 300x1 pixels; allowed is an aspect ratio of"),
    (Conversation(()), InvalidRequest, "Cannot apply chat template to an empty conversation"),
    (Content((b"a",)), InvalidRequest, "an input holds bytes; allowed are texts and images"),  # type: ignore[arg-type]
    (ImageEmbeds(np.ones((4, 192), np.float32)), InvalidRequest, "image_embeds need a text or a conversation"),
    (
        ImagePrompt(PLACE, (ImageEmbeds(np.ones((4, 64), np.float32), (1, 4, 4)),)),
        InvalidRequest,
        "image_embeds has rows of 64 numbers; the model reads rows of 192",
    ),
    (
        ImagePrompt(PLACE, (ImageEmbeds(np.ones((4, 192), np.float32)),)),
        InvalidRequest,
        "image_embeds of 4 tokens needs its grid, 16 patches in time, height and width; given is None",
    ),
    (
        ImagePrompt(PLACE, (ImageEmbeds(np.ones((4, 192), np.float32), (1, 1, 16)),)),
        InvalidRequest,
        "allowed are three sizes, of whole tokens",
    ),
    (ImagePrompt(words(500) + PLACE, (_IMAGE,)), InputTooLong, "maximum context length is 512 tokens"),
    (ImagePrompt([1, 2, 10**6], ()), InvalidRequest, "out of vocabulary"),
    (ImagePrompt("", ()), InvalidRequest, "cannot be empty"),
    (
        {"prompt": PLACE, "multi_modal_data": {"video": _IMAGE}},
        InvalidRequest,
        "multi_modal_data has video; allowed is",
    ),
    ({"prompt": PLACE, "multi_modal_data": {}}, InvalidRequest, "multi_modal_data has nothing; allowed is image"),
]


@pytest.mark.parametrize(("asked", "kind", "said"), _REFUSED, ids=[said[:40] for _, _, said in _REFUSED])
def test_it_is_refused_in_words_and_others_are_served(llm: LLM, asked: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as refusal:
        llm.embed(["a dog", asked], use_tqdm=False)
    assert said in str(refusal.value)
    assert llm.embed(["a dog", Content((_IMAGE,))], use_tqdm=False)


def test_one_pixel_is_an_image(llm: LLM) -> None:
    (answer,) = llm.embed(Content((Image.of(np.zeros((1, 1, 3), np.uint8)),)), use_tqdm=False)
    assert np.isfinite(answer.outputs.embedding).all()


def test_images_of_too_many_tokens_are_refused_before_one_is_processed(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    intake = Intake.load(ModelSpec(source=str(checkpoint("qwen3-vl")), max_model_len=24))
    assert intake.images is not None
    large = tuple(Image.of(picture(600, 600, seed=seed)) for seed in (2, 3))
    assert [intake.images.tokens_of(image) for image in large] == [16, 16]
    monkeypatch.setattr(intake.images, "_process", lambda _: pytest.fail("it was processed"))
    for limit in (None, 20):
        with pytest.raises(InputTooLong, match="your prompt contains at least 32 input tokens"):
            intake.tokenize(PoolingRequest([ImagePrompt(PLACE * 2, large)], "embed", truncate_prompt_tokens=limit))


@pytest.mark.parametrize("drawn", [*pictures(), picture(900, 300, seed=4), picture(1, 200, seed=5)])
def test_the_tokens_of_an_image_are_known_by_its_size(intake: Intake, drawn: Pillow.Image) -> None:
    assert intake.images is not None
    image = Image.of(drawn)
    assert intake.images.tokens_of(image) == intake.images.read(image).tokens


def test_a_cut_leaves_images_whole(intake: Intake) -> None:
    given = ImagePrompt(f"{PLACE}{words(30)}", (_IMAGE,))
    whole = intake.tokenize(PoolingRequest([given], "embed"))
    cut = intake.tokenize(PoolingRequest([given], "embed", truncate_prompt_tokens=20))
    assert cut.ids.tolist() == whole.ids[:20].tolist()
    with pytest.raises(InvalidRequest, match="which would cut an image"):
        intake.tokenize(PoolingRequest([given], "embed", truncate_prompt_tokens=5))
    with pytest.raises(InvalidRequest, match="which would cut an image"):
        intake.tokenize(PoolingRequest([given], "embed", truncate_prompt_tokens=20, truncation_side="left"))


def _damaged(batch: PackedBatch, **image: Any) -> PackedBatch:
    assert batch.media is not None
    return replace(batch, media=((replace(batch.media[0][0], **image),),))


def test_a_batch_whose_images_do_not_fit_is_refused(intake: Intake) -> None:
    """It would fail a step, and all who share it."""
    batch = intake.tokenize(PoolingRequest([Content((_IMAGE,))], "embed"))
    check_batch(batch, intake.card)
    assert batch.media is not None
    pixels = batch.media[0][0].pixels
    for damaged in (
        _damaged(batch, pixels=pixels[:-1]),
        _damaged(batch, pixels=pixels[:, :-1]),
        _damaged(batch, pixels=pixels.astype(np.float64)),
        _damaged(batch, grid=()),
        _damaged(batch, grid=(1, 1, len(pixels))),
        _damaged(batch, tokens=1),
        replace(batch, media=None),
        replace(batch, media=((), ())),
        replace(batch, media=((batch.media[0][0],) * 2,)),
    ):
        with pytest.raises(InvalidRequest):
            check_batch(damaged, intake.card)


def test_a_model_without_a_chat_template_says_how_else(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(checkpoint("qwen2-vl"), tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    intake = Intake.load(ModelSpec(source=str(tmp_path / "model")))
    with pytest.raises(InvalidRequest, match="has no chat template, so it takes no messages; give a prompt in which"):
        intake.tokenize(PoolingRequest([Content((_IMAGE,))], "embed"))


def test_chunks_of_long_texts_are_for_models_of_text(checkpoint: Callable[[str], Path]) -> None:
    override = {"enable_chunked_processing": True}
    with pytest.raises(ConfigError, match="enable_chunked_processing is for models that read text alone"):
        Intake.load(ModelSpec(source=str(checkpoint("qwen2-vl")), override_pooler_config=override))


def test_only_images_are_limited(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="limit_mm_per_prompt"):
        LLM(str(checkpoint("qwen2-vl")), limit_mm_per_prompt={"video": 1})
