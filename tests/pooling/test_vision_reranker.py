"""Qwen3-VL-Reranker: how relevant texts and images are, by its authors' template and the logits of yes and no."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from pooling import LLM, PoolingParams
from pooling.errors import InputTooLong, InvalidRequest
from pooling.media import Content, Image
from tests.checkpoints.vision_decoders import PLACE
from tests.pictures import picture, pictures
from tests.reference import relative_error
from tests.texts import words

ROUNDING = 2e-5
# A text, or texts and pictures in order.
Said = str | tuple[str | Pillow.Image, ...]


class Judge:
    """The steps of its authors: the template, then the last token's logit of yes less that of no."""

    def __init__(self, directory: Path) -> None:
        self._model: Any = Qwen3VLForConditionalGeneration.from_pretrained(
            directory, attn_implementation="eager"
        ).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._processor: Any = AutoImageProcessor.from_pretrained(directory, backend="pil")

    def ids(self, query: Said, document: Said, instruction: str) -> list[int]:
        text = (
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
            'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
            f"<Instruct>: {instruction}<Query>:{self._text(query)}\n<Document>:{self._text(document)}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids

    def difference(
        self,
        query: Said,
        document: Said,
        instruction: str = "Given a search query, retrieve relevant candidates that answer the query.",
    ) -> float:
        ids = torch.tensor([self.ids(query, document, instruction)])
        images = [*_pictures(query), *_pictures(document)]
        given: dict[str, Any] = {}
        if images:
            made = self._processor(images=images, return_tensors="pt")
            given = {name: made[name] for name in ("pixel_values", "image_grid_thw")}
            given["mm_token_type_ids"] = (ids == self._model.config.image_token_id).int()
        self._model.model.rope_deltas = None
        with torch.inference_mode():
            logits = self._model(input_ids=ids, **given).logits[0, -1]
        yes, no = (self._tokenizer.convert_tokens_to_ids(token) for token in ("yes", "no"))
        return float(logits[yes] - logits[no])

    def _text(self, said: Said) -> str:
        if isinstance(said, str):
            return said
        return "".join(part if isinstance(part, str) else self._place(part) for part in said)

    def _place(self, image: Pillow.Image) -> str:
        tokens = int(self._processor(images=[image], return_tensors="pt")["image_grid_thw"].prod()) // 4
        return PLACE.replace("<|image_pad|>", "<|image_pad|>" * tokens)


def _pictures(said: Said) -> list[Pillow.Image]:
    return [] if isinstance(said, str) else [part for part in said if not isinstance(part, str)]


def _content(said: Said) -> str | Content:
    if isinstance(said, str):
        return said
    return Content(tuple(part if isinstance(part, str) else Image.of(part) for part in said))


def _pairs() -> list[tuple[Said, Said]]:
    drawn = pictures()
    return [
        (words(3), words(12)),
        (words(4), (drawn[1],)),
        ((drawn[2], words(2)), (words(5), drawn[3], words(1), drawn[4])),
        ((drawn[1],), words(9)),
        (words(2), (drawn[5], words(3))),
        (words(6), words(2)),
    ]


@pytest.fixture(scope="module")
def judge(checkpoint: Callable[[str], Path]) -> Judge:
    return Judge(checkpoint("qwen3-vl"))


@pytest.fixture(scope="module")
def llm(checkpoint: Callable[[str], Path]) -> Iterator[LLM]:
    with LLM(str(checkpoint("qwen3-vl")), dtype="float32", task="score") as llm:
        yield llm


def _scores(llm: LLM, pairs: list[tuple[Said, Said]], **options: Any) -> np.ndarray:
    queries, documents = ([_content(said) for said in side] for side in zip(*pairs, strict=True))
    return np.array([out.outputs.score for out in llm.score(queries, documents, use_tqdm=False, **options)])


def test_logits_and_scores_are_those_of_its_authors(llm: LLM, judge: Judge) -> None:
    expected = np.array([judge.difference(*pair) for pair in _pairs()])
    assert expected.std() > 0.5  # they can be told apart
    logits = _scores(llm, _pairs(), pooling_params=PoolingParams(use_activation=False))
    assert relative_error(logits, expected) < ROUNDING
    assert np.abs(_scores(llm, _pairs()) - 1 / (1 + np.exp(-expected))).max() < ROUNDING


def test_a_pair_alone_is_as_in_a_batch(llm: LLM, judge: Judge) -> None:
    for pair in _pairs()[1:4]:
        (logit,) = _scores(llm, [pair], pooling_params=PoolingParams(use_activation=False))
        assert abs(logit - judge.difference(*pair)) < ROUNDING * max(1, abs(logit))


def test_one_query_and_an_instruction_for_many_documents(llm: LLM, judge: Judge) -> None:
    drawn = pictures()
    answers = llm.score(
        _content((drawn[1], "what")),
        [_content((one,)) for one in drawn[2:5]],
        instruction="Find the same.",
        pooling_params=PoolingParams(use_activation=False),
        use_tqdm=False,
    )
    expected = np.array([judge.difference((drawn[1], "what"), (one,), "Find the same.") for one in drawn[2:5]])
    assert relative_error(np.array([answer.outputs.score for answer in answers]), expected) < ROUNDING


def test_vllms_overrides_name_the_same(checkpoint: Callable[[str], Path], judge: Judge) -> None:
    overrides = {
        "architectures": ["Qwen3VLForSequenceClassification"],
        "classifier_from_token": ["no", "yes"],
        "is_original_qwen3_reranker": True,
    }
    with LLM(str(checkpoint("qwen3-vl")), dtype="float32", hf_overrides=overrides) as llm:
        logits = _scores(llm, _pairs()[:3], pooling_params=PoolingParams(use_activation=False))
    assert relative_error(logits, np.array([judge.difference(*pair) for pair in _pairs()[:3]])) < ROUNDING


def test_a_placeholder_in_a_text_is_refused(llm: LLM) -> None:
    for document in (f"{PLACE} of a cat", Content((f"{PLACE}", Image.of(picture(9, 9, 1))))):
        with pytest.raises(InvalidRequest, match="images"):
            llm.score("a", document, use_tqdm=False)


def test_a_pair_too_long_with_its_images_is_refused(llm: LLM) -> None:
    many = Content(tuple(Image.of(image) for image in [picture(64, 64, seed) for seed in range(8)]))
    with pytest.raises(InputTooLong, match="maximum context length is 512 tokens"):
        llm.score(words(200), many, use_tqdm=False)
    with pytest.raises(InvalidRequest, match="only texts are cut"):
        llm.score("a", many, tokenization_kwargs={"truncate_prompt_tokens": 200}, use_tqdm=False)
