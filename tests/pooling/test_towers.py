"""CLIP and SigLIP: texts and images, mixed in any way, have the vectors that transformers gives each alone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from transformers import AutoModel, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from pooling import LLM
from pooling.errors import ConfigError, InputTooLong, InvalidRequest
from pooling.media import Content, Conversation, Image, ImageEmbeds, ImagePrompt
from tests.checkpoints.images import TOWERS
from tests.pictures import picture, pictures
from tests.reference import Rows, relative_error
from tests.texts import words

ROUNDING = 2e-5
_TEXTS = [words(count, start=count) for count in (1, 2, 3, 9, 14, 20)]


class Subject:
    """A model's checkpoint in float32, and the true answers of transformers."""

    def __init__(self, name: str, directory: Path) -> None:
        self.checkpoint, self.directory = TOWERS[name], directory
        self._model: Any = AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._processor: Any = AutoImageProcessor.from_pretrained(directory, backend="pil")
        self.llm = LLM(str(directory), dtype="float32")

    def ids(self, text: str) -> list[int]:
        length = self.checkpoint.fill_to
        filled = {} if length is None else {"padding": "max_length", "max_length": length}
        ids: list[int] = self._tokenizer(text, **filled)["input_ids"]
        return ids

    def text(self, text: str) -> Rows:
        with torch.inference_mode():
            return _unit(self._model.get_text_features(torch.tensor([self.ids(text)])).pooler_output)

    def image(self, image: Pillow.Image) -> Rows:
        pixels = self._processor(images=[image], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            return _unit(self._model.get_image_features(pixels).pooler_output)


@pytest.fixture(scope="module", params=TOWERS)
def subject(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Iterator[Subject]:
    subject = Subject(request.param, checkpoint(request.param))
    yield subject
    subject.llm.close()


@pytest.fixture(scope="module")
def clip(checkpoint: Callable[[str], Path]) -> Iterator[LLM]:
    with LLM(str(checkpoint("clip")), dtype="float32") as llm:
        yield llm


def test_texts_have_the_vectors_of_get_text_features(subject: Subject) -> None:
    answers = subject.llm.embed(_TEXTS, use_tqdm=False)
    assert [answer.prompt_token_ids for answer in answers] == [subject.ids(text) for text in _TEXTS]
    expected = np.stack([subject.text(text) for text in _TEXTS])
    assert relative_error(_vectors(answers), expected) < ROUNDING


def test_images_have_the_vectors_of_get_image_features(subject: Subject) -> None:
    images = pictures()
    expected = np.stack([subject.image(image) for image in images])
    answers = subject.llm.embed([Image.of(image) for image in images], use_tqdm=False)
    assert relative_error(_vectors(answers), expected) < ROUNDING
    assert relative_error(expected[1:], expected[:-1]) > 0.1  # they are not all alike
    tokens = 4 * 4 + (0 if subject.checkpoint.fill_to else 1)  # patches, and CLIP's class token
    assert {len(answer.prompt_token_ids) for answer in answers} == {tokens}


def test_a_mixed_batch_gives_each_input_its_own(subject: Subject) -> None:
    images = pictures()
    inputs: list[Any] = [item for pair in zip(_TEXTS, map(Image.of, images), strict=False) for item in pair]
    inputs.append(Image.of(images[0]))
    expected = [
        f(x)
        for pair in zip(_TEXTS, images, strict=False)
        for f, x in zip((subject.text, subject.image), pair, strict=True)
    ]
    expected.append(subject.image(images[0]))
    vectors = _vectors(subject.llm.embed(inputs, use_tqdm=False))
    assert relative_error(vectors, np.stack(expected)) < ROUNDING
    assert vectors[1].tolist() == vectors[-1].tolist()  # the same image, embedded once


def test_every_form_of_an_image_is_the_same_input(subject: Subject) -> None:
    drawn = picture(40, 30, seed=3)
    image = Image.of(drawn)
    forms: list[Any] = [
        image,
        ImagePrompt("", (image,)),
        Content((image,)),
        Conversation((Content((image,)),)),
        {"prompt": "", "multi_modal_data": {"image": drawn}},
        {"prompt": "", "multi_modal_data": {"image": [np.asarray(drawn)]}},
    ]
    vectors = _vectors(subject.llm.embed(forms, use_tqdm=False))
    assert relative_error(vectors, np.tile(subject.image(drawn), (len(forms), 1))) < ROUNDING
    (said,) = subject.llm.embed(Content(("a dog",)), use_tqdm=False)
    assert relative_error(np.array(said.outputs.embedding), subject.text("a dog")) < ROUNDING


def test_a_score_is_the_cosine_of_a_text_and_an_image(subject: Subject) -> None:
    drawn = picture(40, 30, seed=3)
    (answer,) = subject.llm.score("a dog", Content((Image.of(drawn),)), use_tqdm=False)
    assert abs(answer.outputs.score - float(subject.text("a dog") @ subject.image(drawn))) < ROUNDING


def test_bfloat16_stays_close(subject: Subject) -> None:
    drawn = pictures()
    with LLM(str(subject.directory), dtype="bfloat16") as llm:
        vectors = _vectors(llm.embed([*_TEXTS, *map(Image.of, drawn)], use_tqdm=False))
    expected = np.stack([*map(subject.text, _TEXTS), *map(subject.image, drawn)])
    assert (vectors * expected).sum(axis=1).min() > 0.99


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Content(("a dog", Image.of(np.zeros((4, 4, 3), np.uint8)))), "reads a text or an image at a time"),
        (Content((Image.of(np.zeros((4, 4, 3), np.uint8)),) * 2), "an input has 0 texts and 2 images"),
        (ImageEmbeds(np.ones((3, 4), np.float32)), "takes no image_embeds"),
        (ImagePrompt([1, 2], (Image.of(np.zeros((4, 4, 3), np.uint8)),)), "token ids with images are for models"),
        ({"prompt": "", "multi_modal_data": {"video": 1}}, "multi_modal_data has video; allowed is image"),
        ({"prompt": "", "multi_modal_data": {"image": "cat.png"}}, "an image is str"),
    ],
)
def test_what_it_cannot_read_is_refused_in_words(clip: LLM, asked: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        clip.embed(["a dog", asked], use_tqdm=False)
    assert said in refusal.value.detail


def test_a_text_longer_than_its_positions_is_refused(clip: LLM) -> None:
    with pytest.raises(InputTooLong, match="maximum context length is 40 tokens"):
        clip.embed(words(60), use_tqdm=False)


def test_an_image_may_have_more_tokens_than_a_text(checkpoint: Callable[[str], Path]) -> None:
    with LLM(str(checkpoint("clip")), dtype="float32", max_model_len=8) as llm:
        (answer,) = llm.embed(Image.of(picture(9, 9, 1)), use_tqdm=False)
    assert len(answer.prompt_token_ids) == 17


def test_an_image_for_a_model_of_text_is_refused(checkpoint: Callable[[str], Path]) -> None:
    with LLM(str(checkpoint("bert")), dtype="float32") as llm, pytest.raises(InvalidRequest, match="reads text alone"):
        llm.embed(["a dog", Image.of(picture(9, 9, 1))], use_tqdm=False)


def test_another_pooling_than_its_own_is_refused(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="takes no pooling_type but its own"):
        LLM(str(checkpoint("clip")), override_pooler_config={"pooling_type": "MEAN"})


def _unit(rows: torch.Tensor) -> Rows:
    return torch.nn.functional.normalize(rows[0], dim=0).numpy()


def _vectors(answers: Any) -> Rows:
    return np.array([answer.outputs.embedding for answer in answers], np.float32)
