"""Images through the methods of the Serve handle: Pillow's and the nouns, wherever a text may stand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from deployments.config import ServiceConfig
from deployments.router import load_intakes
from pooling.errors import ImageTooLarge, InvalidRequest
from pooling.media import Content, Conversation, Image
from pooling.request import PoolingRequest
from tests.deployments.local import LocalRouter
from tests.encoded import drawn


def picture(seed: int) -> Image:
    return Image.of(drawn(seed))


async def test_pillows_images_are_those_of_the_nouns(pictured: LocalRouter) -> None:
    given: list[Any] = [drawn(1), "ba", picture(2), Content((drawn(3),)), Conversation((Content((picture(1),)),))]
    rows = await pictured.embed(given, model="clip")
    nouns = await pictured.embed([picture(1), "ba", picture(2), picture(3), picture(1)], model="clip")
    np.testing.assert_allclose(rows, nouns, atol=1e-6)
    np.testing.assert_array_equal(rows[0], rows[4])
    for alone in (drawn(1), picture(1)):
        np.testing.assert_allclose(await pictured.embed(alone, model="clip"), rows[:1], atol=1e-6)


async def test_texts_and_images_are_embedded_in_order(pictured: LocalRouter) -> None:
    first, second = await pictured.embed(
        [Content(("ba", picture(1), "be")), Content(("ba", "be", picture(1)))], model="qwen"
    )
    assert abs(first - second).max() > 1e-3
    batch = await pictured.tokenize([Content(("ba", drawn(1)))], model="qwen")  # type: ignore[arg-type,list-item]
    assert batch.media is not None
    assert len(batch.media[0]) == 1


async def test_images_are_classified_and_compared(pictured: LocalRouter) -> None:
    probabilities = await pictured.classify([drawn(1), drawn(2)], model="vit")
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    documents: list[Any] = [drawn(2), "ba", picture(1)]
    scores = await pictured.score(drawn(1), documents, model="clip")
    rows = await pictured.embed([picture(1), *documents], model="clip")
    np.testing.assert_allclose(scores, rows[1:] @ rows[0], atol=1e-5)
    ranked = await pictured.rerank(drawn(1), documents, model="clip", top_n=1)
    assert ranked == [(2, pytest.approx(1, abs=1e-6))]
    judged = await pictured.score("ba", [drawn(1), Content(("ba", picture(1)))], model="reranker")
    assert judged.shape == (2,)
    assert judged[0] != judged[1]


async def test_queries_find_pages_token_by_token(pictured: LocalRouter) -> None:
    scores = await pictured.score("ba be", [drawn(1), drawn(2), drawn(1)], model="colqwen")
    assert scores[0] == pytest.approx(scores[2], rel=1e-5)
    assert scores[0] != pytest.approx(scores[1], rel=1e-3)


async def test_what_the_model_takes_no_images_for_is_refused(pictured: LocalRouter) -> None:
    with pytest.raises(InvalidRequest, match=r"At most 0 image\(s\) may be provided in one prompt: `minilm` reads"):
        await pictured.embed(["ba", drawn(1)], model="minilm")
    with pytest.raises(InvalidRequest, match=r"At most 8 image\(s\) .* 9 are given \(input 1 of 2\)"):
        await pictured.embed(["ba", Content((picture(1),) * 9)], model="qwen")


async def test_pillows_images_count_to_the_pixels_of_a_request(
    pictured: LocalRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pictured._images._config.model_copy(update={"max_request_pixels": 1_000})
    monkeypatch.setattr(pictured._images, "_config", config)
    await pictured.embed(Pillow.new("RGB", (10, 100)), model="clip")
    with pytest.raises(ImageTooLarge, match="more than 1000 pixels together"):
        await pictured.embed([Pillow.new("RGB", (10, 100)), Pillow.new("RGB", (1, 1))], model="clip")


def test_a_router_bounds_what_images_take_once_they_are_processed(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.router.MAX_PROCESSED_BYTES", 3 * 32 * 32 * 4)
    (intake,) = load_intakes(ServiceConfig.model_validate({"models": [{"source": str(checkpoint("clip"))}]}))
    intake.tokenize(PoolingRequest([picture(1)]))
    with pytest.raises(ImageTooLarge, match="the first 2 images of a request take"):
        intake.tokenize(PoolingRequest([picture(1), picture(2)]))
