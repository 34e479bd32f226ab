"""Every family's classifiers, of inputs and of tokens, answer as transformers' own classes do, alone and batched."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pooling import LLM, PoolingParams
from tests.checkpoints import EVERY
from tests.headed import Headed, HeadReference, Rows
from tests.reference import relative_error
from tests.texts import stretching_texts

ROUNDING = 2e-5
LOGITS = PoolingParams(use_activation=False)
VARIANTS = [
    Headed("bert", "sequence", labels=1),
    Headed("eurobert", "sequence", changes=(("classifier_pooling", "bos"),)),
    Headed("modernbert", "sequence", changes=(("classifier_pooling", "cls"),)),
    Headed("modernbert", "sequence", changes=(("classifier_pooling", "mean"),)),
]
HEADS = [*(Headed(name, head) for name in EVERY for head in ("sequence", "token")), *VARIANTS]


@pytest.fixture(scope="module")
def headed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Headed], Path]:
    @cache
    def write(one: Headed) -> Path:
        return one.write(tmp_path_factory.mktemp("headed"))

    return write


class Subject:
    """A model with a head in float32, its texts and their true logits."""

    def __init__(self, one: Headed, directory: Path) -> None:
        self.one, self.directory = one, directory
        self.task = "classify" if one.head == "sequence" else "token_classify"
        self.reference = HeadReference(directory, one)
        self.texts = stretching_texts(lambda text: list(self.reference.tokenizer(text)["input_ids"]), 120)
        self.logits = [self.reference.logits(text) for text in self.texts]
        self.llm = LLM(str(directory), dtype="float32")

    def ask(self, texts: list[str], params: PoolingParams | None = None) -> list[Rows]:
        answers = self.llm.encode(texts, params, pooling_task=self.task, use_tqdm=False)
        return [answer.outputs.data.numpy() for answer in answers]


@pytest.fixture(scope="module", params=[one for one in HEADS if one.exists()], ids=str)
def subject(request: pytest.FixtureRequest, headed: Callable[[Headed], Path]) -> Iterator[Subject]:
    subject = Subject(request.param, headed(request.param))
    yield subject
    subject.llm.close()


def test_logits_are_those_of_transformers(subject: Subject) -> None:
    assert np.std(np.concatenate([rows.ravel() for rows in subject.logits])) > 0.2  # else a wrong one would pass
    for actual, expected in zip(subject.ask(subject.texts, LOGITS), subject.logits, strict=True):
        assert relative_error(actual, expected) < ROUNDING


def test_batched_equals_alone(subject: Subject) -> None:
    alone = [subject.ask([text])[0] for text in subject.texts]
    together = subject.ask([*subject.texts, *reversed(subject.texts)])
    for one, first, again in zip(alone, together, reversed(together), strict=False):
        assert np.abs(first - one).max() < 1e-5
        assert np.abs(again - one).max() < 1e-5


def test_probabilities_are_softmax_or_for_one_label_sigmoid(subject: Subject) -> None:
    for actual, logits in zip(subject.ask(subject.texts), subject.logits, strict=True):
        if subject.one.labels == 1:
            expected = 1 / (1 + np.exp(-logits))
        else:
            shifted = np.exp(logits - logits.max(-1, keepdims=True))
            expected = shifted / shifted.sum(-1, keepdims=True)
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_what_it_does_is_what_its_head_allows(subject: Subject) -> None:
    sequence = ("classify", "score", "token_classify", "reward") if subject.one.labels == 1 else None
    sequence = sequence or ("classify", "token_classify")
    assert subject.llm.card.tasks == (sequence if subject.one.head == "sequence" else ("token_classify",))
    assert len(subject.llm.card.labels) == subject.one.labels
