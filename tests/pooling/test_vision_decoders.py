"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL as embedders: texts and images in any order, as transformers reads each alone."""

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
from pooling.media import Content, Conversation, Image, ImageEmbeds, ImagePrompt
from tests.checkpoints.images import DECODERS
from tests.checkpoints.vision_decoders import PLACE
from tests.pictures import picture, pictures
from tests.reference import Rows, relative_error
from tests.texts import words

ROUNDING = 2e-5


class Reference:
    """transformers' own class, tokenizer and image processor; one input at a time, eager, in float32."""

    def __init__(self, directory: Path) -> None:
        self.model: Any = AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.processor: Any = AutoImageProcessor.from_pretrained(directory, backend="pil")

    def ids(self, text: str, images: list[Pillow.Image]) -> list[int]:
        """As transformers' processors write them: a placeholder for each token of each image."""
        for image in images:
            grid = self.processor(images=[image], return_tensors="pt")["image_grid_thw"]
            text = text.replace("<|image_pad|>", "<|placeholder|>" * (int(grid.prod()) // 4), 1)
        ids: list[int] = self.tokenizer(text.replace("<|placeholder|>", "<|image_pad|>"))["input_ids"]
        return ids

    def hidden(self, text: str, images: list[Pillow.Image]) -> Rows:
        ids = torch.tensor([self.ids(text, images)])
        given: dict[str, Any] = {}
        if images:
            made = self.processor(images=images, return_tensors="pt")
            types = (ids == self.model.config.image_token_id).int()
            given = {
                "pixel_values": made["pixel_values"],
                "image_grid_thw": made["image_grid_thw"],
                "mm_token_type_ids": types,
            }
        self.model.rope_deltas = None
        with torch.inference_mode():
            rows: Rows = self.model(input_ids=ids, **given)[0][0].numpy()
        return rows

    def embed(self, text: str, images: list[Pillow.Image]) -> Rows:
        last = self.hidden(text, images)[-1]
        unit: Rows = last / np.linalg.norm(last)
        return unit


class Subject:
    def __init__(self, name: str, directory: Path) -> None:
        self.name, self.directory = name, directory
        self.reference = Reference(directory)
        self.llm = LLM(str(directory), dtype="float32")


@pytest.fixture(scope="module", params=DECODERS)
def subject(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Iterator[Subject]:
    subject = Subject(request.param, checkpoint(request.param))
    yield subject
    subject.llm.close()


def _cases() -> list[tuple[str, list[Pillow.Image]]]:
    drawn = pictures()
    cases: list[tuple[str, list[Pillow.Image]]] = [
        (f"{PLACE}{words(3, start=n)}", [one]) for n, one in enumerate(drawn)
    ]
    cases += [(words(count), []) for count in (1, 5, 40)]
    cases.append((f"{words(2)}{PLACE} and {PLACE}{words(4)}", [drawn[1], drawn[2]]))
    cases.append((f"{PLACE}{PLACE}{PLACE}", [drawn[2], drawn[1], drawn[2]]))
    return cases


def _given(text: str, images: list[Pillow.Image]) -> Any:
    return {"prompt": text, "multi_modal_data": {"image": images}} if images else text


def test_texts_and_images_have_the_vectors_of_transformers(subject: Subject) -> None:
    cases = _cases()
    answers = subject.llm.embed([_given(*case) for case in cases], use_tqdm=False)
    assert [answer.prompt_token_ids for answer in answers] == [subject.reference.ids(*case) for case in cases]
    expected = np.stack([subject.reference.embed(*case) for case in cases])
    assert relative_error(_vectors(answers), expected) < ROUNDING
    assert subject.llm._offline._engine._runner.describe()["path"] == "packed"


def test_alone_is_as_together(subject: Subject) -> None:
    cases = _cases()
    for case in cases:
        (answer,) = subject.llm.embed(_given(*case), use_tqdm=False)
        assert relative_error(_vectors([answer])[0], subject.reference.embed(*case)) < ROUNDING


def test_token_vectors_are_those_of_transformers(subject: Subject) -> None:
    for case in _cases()[-3:]:
        (answer,) = subject.llm.encode(_given(*case), pooling_task="token_embed", use_tqdm=False)
        hidden = subject.reference.hidden(*case)
        unit = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
        assert relative_error(answer.outputs.data.numpy(), unit) < ROUNDING


def test_a_conversation_is_read_by_the_template(subject: Subject) -> None:
    drawn = pictures()
    said = Conversation(
        (Content(("Be brief.",), "system"), Content(("a ", Image.of(drawn[1]), " and ", Image.of(drawn[3])))),
        add_generation_prompt=True,
    )
    text = (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na {PLACE} and {PLACE}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    alone = f"<|im_start|>user\n{PLACE}<|im_end|>\n"
    answers = subject.llm.embed([said, Image.of(drawn[1]), Content(("hello",))], use_tqdm=False)
    expected = [
        subject.reference.embed(text, [drawn[1], drawn[3]]),
        subject.reference.embed(alone, [drawn[1]]),
        subject.reference.embed("<|im_start|>user\nhello<|im_end|>\n", []),
    ]
    assert relative_error(_vectors(answers), np.stack(expected)) < ROUNDING


def test_a_prompt_is_what_the_system_says(subject: Subject) -> None:
    drawn = picture(40, 30, 5)
    (answer,) = subject.llm.embed(Content((Image.of(drawn),)), prompt="Find it.", use_tqdm=False)
    text = f"<|im_start|>system\nFind it.<|im_end|>\n<|im_start|>user\n{PLACE}<|im_end|>\n"
    assert relative_error(_vectors([answer])[0], subject.reference.embed(text, [drawn])) < ROUNDING


def test_an_image_embedded_already_is_read_like_the_image(subject: Subject) -> None:
    drawn = picture(40, 30, 5)
    made = subject.reference.processor(images=[drawn], return_tensors="pt")
    with torch.inference_mode():
        answer = subject.reference.model.visual(made["pixel_values"], grid_thw=made["image_grid_thw"])
    rows = torch.cat([answer.pooler_output, *(getattr(answer, "deepstack_features", None) or ())], dim=1).numpy()
    embeds = ImageEmbeds(rows, tuple(made["image_grid_thw"][0].tolist()))
    text = f"{PLACE}{words(3)}{PLACE}"
    forms: list[Any] = [
        ImagePrompt(text, (embeds, Image.of(drawn))),
        ImagePrompt(text, (Image.of(drawn), embeds)),
        ImagePrompt(text, (embeds, embeds)),
    ]
    vectors = _vectors(subject.llm.embed(forms, use_tqdm=False))
    assert relative_error(vectors, np.tile(subject.reference.embed(text, [drawn, drawn]), (3, 1))) < ROUNDING


def test_steps_smaller_than_an_input_change_nothing(subject: Subject) -> None:
    cases = _cases()
    with LLM(str(subject.directory), dtype="float32", max_batch_tokens=16) as llm:
        vectors = _vectors(llm.embed([_given(*case) for case in cases], use_tqdm=False))
    assert relative_error(vectors, np.stack([subject.reference.embed(*case) for case in cases])) < ROUNDING


def test_without_packed_attention_the_answers_are_the_same(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooling.vision.choose.obstacle", lambda *_: "this device has none")
    cases = _cases()
    with LLM(str(subject.directory), dtype="float32") as llm:
        vectors = _vectors(llm.embed([_given(*case) for case in cases], use_tqdm=False))
    assert relative_error(vectors, np.stack([subject.reference.embed(*case) for case in cases])) < ROUNDING


def _vectors(answers: Any) -> Rows:
    return np.array([answer.outputs.embedding for answer in answers], np.float32)
