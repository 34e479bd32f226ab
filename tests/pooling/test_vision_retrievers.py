"""ColQwen2 and ColPali: a vector for each token of a query or a page, as transformers' class and processor make it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from transformers import ColPaliForRetrieval, ColQwen2ForRetrieval

from pooling import LLM
from pooling.errors import ConfigError, InvalidRequest
from pooling.media import Content, Image, ImagePrompt
from tests.checkpoints.images import RETRIEVING
from tests.pictures import picture, pictures
from tests.reference import Rows, relative_error
from tests.texts import words

ROUNDING = 2e-5
_QUERIES = [words(count, start=count) for count in (1, 4, 9, 14)]
_CLASSES = {"colqwen2": ColQwen2ForRetrieval, "colpali": ColPaliForRetrieval}


class Subject:
    """A checkpoint in float32, and transformers' own answers, one input at a time."""

    def __init__(self, name: str, directory: Path) -> None:
        self.directory = directory
        kind: Any = _CLASSES[name]
        self._model = kind.from_pretrained(directory, attn_implementation="eager").eval()
        _, _, self._processor = RETRIEVING[name].build()
        self.llm = LLM(str(directory), dtype="float32")

    def query(self, text: str) -> tuple[list[int], Rows]:
        return self._read(self._processor.process_queries(text=[text]))

    def page(self, image: Pillow.Image) -> tuple[list[int], Rows]:
        return self._read(self._processor.process_images(images=[image]))

    def _read(self, inputs: Any) -> tuple[list[int], Rows]:
        given = {name: value for name, value in inputs.items() if name != "labels"}
        with torch.inference_mode():
            return inputs["input_ids"][0].tolist(), self._model(**given).embeddings[0].numpy()


@pytest.fixture(scope="module", params=RETRIEVING)
def subject(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Iterator[Subject]:
    subject = Subject(request.param, checkpoint(request.param))
    yield subject
    subject.llm.close()


def test_tokens_have_the_vectors_of_transformers(subject: Subject) -> None:
    drawn = pictures()
    inputs: list[Any] = [*_QUERIES, *map(Image.of, drawn)]
    expected = [*map(subject.query, _QUERIES), *map(subject.page, drawn)]
    answers = subject.llm.encode(inputs, pooling_task="token_embed", use_tqdm=False)
    for answer, (ids, rows) in zip(answers, expected, strict=True):
        assert answer.prompt_token_ids == ids
        assert relative_error(answer.outputs.data.numpy(), rows) < ROUNDING


def test_alone_is_as_together(subject: Subject) -> None:
    drawn = pictures()[1]
    for given, (_, rows) in (("a dog", subject.query("a dog")), (Image.of(drawn), subject.page(drawn))):
        (answer,) = subject.llm.encode(given, use_tqdm=False)  # type: ignore[arg-type]
        assert relative_error(answer.outputs.data.numpy(), rows) < ROUNDING


def test_a_score_is_their_late_interaction(subject: Subject) -> None:
    drawn = pictures()[:4]
    pages: list[Any] = [Content((Image.of(image),)) for image in drawn]
    answers = subject.llm.score(_QUERIES[2], pages, use_tqdm=False)
    query = subject.query(_QUERIES[2])[1]
    expected = np.array([(query @ subject.page(image)[1].T).max(axis=1).sum() for image in drawn])
    assert relative_error(np.array([answer.outputs.score for answer in answers]), expected) < ROUNDING


def test_without_packed_attention_the_answers_are_the_same(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooling.vision.choose.obstacle", lambda *_: "this device has none")
    drawn = pictures()[2]
    with LLM(str(subject.directory), dtype="float32") as llm:
        query, page = llm.encode(["a dog", Image.of(drawn)], use_tqdm=False)
    assert relative_error(query.outputs.data.numpy(), subject.query("a dog")[1]) < ROUNDING
    assert relative_error(page.outputs.data.numpy(), subject.page(drawn)[1]) < ROUNDING


def test_a_prompt_of_ones_own_is_read_as_it_stands(subject: Subject) -> None:
    drawn = picture(40, 30, 5)
    vision = subject.llm.card.vision
    assert vision is not None
    written = vision.forms[1].replace("{bos}", "<bos>")
    given = ImagePrompt(written, (Image.of(drawn),))
    (answer,) = subject.llm.encode(given, tokenization_kwargs={"add_special_tokens": False}, use_tqdm=False)
    assert relative_error(answer.outputs.data.numpy(), subject.page(drawn)[1]) < ROUNDING


def test_a_text_and_an_image_in_one_input_are_refused(subject: Subject) -> None:
    with pytest.raises(InvalidRequest, match="an input has 1 texts and 1 images"):
        subject.llm.encode(Content(("a dog", Image.of(picture(9, 9, 1)))), use_tqdm=False)


def test_one_vector_for_an_input_is_refused(subject: Subject) -> None:
    assert subject.llm.card.tasks == ("token_embed", "score")
    with pytest.raises(ConfigError):
        LLM(str(subject.directory), override_pooler_config={"pooling_type": "MEAN"})
