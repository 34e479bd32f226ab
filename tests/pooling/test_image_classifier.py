"""ViT through `classify`: the labels of images are those of transformers; texts and other tasks are refused."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ViTForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from pooling import LLM, PoolingParams
from pooling.errors import InvalidRequest, UnsupportedTask
from pooling.media import Image, ImagePrompt
from tests.pictures import picture, pictures
from tests.reference import Rows, relative_error

ROUNDING = 2e-5


@pytest.fixture(scope="module")
def vit(checkpoint: Callable[[str], Path]) -> Iterator[LLM]:
    with LLM(str(checkpoint("vit")), dtype="float32") as llm:
        yield llm


@pytest.fixture(scope="module")
def logits(checkpoint: Callable[[str], Path]) -> Rows:
    model = ViTForImageClassification.from_pretrained(checkpoint("vit"), attn_implementation="eager").eval()
    processor = AutoImageProcessor.from_pretrained(checkpoint("vit"), backend="pil")
    with torch.inference_mode():
        rows = [model(**processor(images=[image], return_tensors="pt")).logits[0].numpy() for image in pictures()]
    return np.stack(rows)


def test_probabilities_and_logits_are_those_of_transformers(vit: LLM, logits: Rows) -> None:
    images = [Image.of(image) for image in pictures()]
    answers = vit.classify(images, use_tqdm=False)
    probabilities = np.array([answer.outputs.probs for answer in answers])
    assert relative_error(probabilities, torch.tensor(logits).softmax(-1).numpy()) < ROUNDING
    assert answers[0].outputs.labels == ("cat", "dog", "tree", "house", "none of these")
    plain = vit.classify(images, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    assert relative_error(np.array([answer.outputs.probs for answer in plain]), logits) < ROUNDING


def test_one_image_alone_is_the_same(vit: LLM, logits: Rows) -> None:
    prompt = ImagePrompt("", (Image.of(pictures()[2]),))
    (answer,) = vit.classify(prompt, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    assert relative_error(np.array(answer.outputs.probs), logits[2]) < ROUNDING


@pytest.mark.parametrize("asked", ["a dog", [1, 2], ("a", "b"), ImagePrompt("a dog", ())])
def test_a_text_is_refused(vit: LLM, asked: object) -> None:
    with pytest.raises(InvalidRequest, match="reads images alone; a text is given"):
        vit.classify([Image.of(picture(9, 9, 1)), asked], use_tqdm=False)  # type: ignore[list-item]


def test_it_only_classifies(vit: LLM) -> None:
    assert vit.card.tasks == ("classify",)
    with pytest.raises(UnsupportedTask):
        vit.embed(Image.of(picture(9, 9, 1)), use_tqdm=False)
