"""Each family of models, through our LLM, against transformers' own code run one text at a time."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pooling import LLM, Engine, Intake, ModelSpec, PoolingRequest
from pooling.loading import families
from pooling.runner import LocalRunner
from tests.checkpoints import EVERY, FAMILIES
from tests.reference import Reference, Rows, cosines, relative_error
from tests.texts import stretching_texts

# Rounding alone: transformers' own padded batches differ from one text at a time by up to 4e-6 on these models.
ROUNDING = 2e-5


class Subject:
    """A family's checkpoint in float32, its texts and their true answers."""

    def __init__(self, name: str, directory: Path) -> None:
        self.family = EVERY[name]
        self.directory = directory
        self.reference = self.family.reference(directory)
        self.llm = LLM(str(directory), dtype="float32")
        self.texts = stretching_texts(self.reference.ids, self.family.max_model_len)
        self.vectors = np.stack([self.reference.embed(text) for text in self.texts])


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Iterator[Subject]:
    subject = Subject(request.param, checkpoint(request.param))
    yield subject
    subject.llm.close()


every_family = pytest.mark.parametrize("subject", EVERY, indirect=True)
# What does not depend on the model is shown by a few.
first_families = pytest.mark.parametrize("subject", FAMILIES, indirect=True)


@every_family
def test_the_files_are_read_as_they_mean(subject: Subject) -> None:
    card, family = subject.llm.card, subject.family
    assert card.max_model_len == family.max_model_len
    assert card.dim == subject.vectors.shape[1]
    assert card.pooler.pooling_type == family.expected_pooling
    assert card.pooler.activate == family.normalize
    assert card.tasks == ("embed", "token_embed", "score")


@every_family
def test_a_family_that_packs_is_run_packed(subject: Subject) -> None:
    """A packed path that fails its self-check gives way to the padded one: right, but slow."""
    runner = LocalRunner(ModelSpec(source=str(subject.directory), dtype="float32"))
    assert runner.describe()["path"] == subject.family.path


@every_family
def test_vectors_are_those_of_transformers(subject: Subject) -> None:
    answers = subject.llm.embed(subject.texts, use_tqdm=False)
    assert [answer.prompt_token_ids for answer in answers] == [subject.reference.ids(text) for text in subject.texts]
    assert max(len(answer.prompt_token_ids) for answer in answers) == subject.family.max_model_len
    vectors = np.array([answer.outputs.embedding for answer in answers], np.float32)
    assert relative_error(vectors, subject.vectors) < ROUNDING


@every_family
def test_token_vectors_are_those_of_transformers(subject: Subject) -> None:
    answers = subject.llm.encode(subject.texts, pooling_task="token_embed", use_tqdm=False)
    for text, answer in zip(subject.texts, answers, strict=True):
        assert relative_error(answer.outputs.data.numpy(), subject.reference.token_embed(text)) < ROUNDING


@every_family
def test_batched_equals_alone(subject: Subject) -> None:
    alone = np.concatenate([_vectors(subject.llm, [text]) for text in subject.texts])
    mixed = _vectors(subject.llm, [*subject.texts, *reversed(subject.texts)])
    assert relative_error(mixed[: len(alone)], alone) < ROUNDING
    assert relative_error(mixed[: len(alone) - 1 : -1], alone) < ROUNDING


@first_families
def test_the_same_text_twice_in_a_batch_has_one_answer(subject: Subject) -> None:
    first, _, again = _vectors(subject.llm, [subject.texts[-2], subject.texts[-1], subject.texts[-2]])
    assert relative_error(first, again) < ROUNDING


@first_families
def test_callers_that_share_steps_get_each_their_own(subject: Subject) -> None:
    """Every text from a caller of its own, pooled and by token in turns, all at once."""
    spec = ModelSpec(source=str(subject.directory), dtype="float32")
    intake, engine = Intake.load(spec), Engine.load(spec)

    async def answers() -> list[Rows]:
        tasks = ["embed" if index % 2 else "token_embed" for index in range(len(subject.texts))]
        requests = [PoolingRequest([text], task) for text, task in zip(subject.texts, tasks, strict=True)]
        outputs = await asyncio.gather(*(engine.pool(intake.tokenize(request)) for request in requests))
        return [output.rows()[0] for output in outputs]

    rows = asyncio.run(answers())
    assert engine.stats()["steps"] < len(rows)  # they did share
    engine.close()
    for index, (text, row) in enumerate(zip(subject.texts, rows, strict=True)):
        expected = subject.vectors[index] if index % 2 else subject.reference.token_embed(text)
        assert relative_error(row, expected) < ROUNDING


@first_families
def test_steps_smaller_than_an_input_change_nothing(subject: Subject) -> None:
    with LLM(str(subject.directory), dtype="float32", max_batch_tokens=64) as llm:
        assert relative_error(_vectors(llm, subject.texts), subject.vectors) < ROUNDING


@every_family
def test_the_padded_path_gives_the_same(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a device has no packed attention for a model, this is its path."""
    kind = subject.llm.card.model_type
    monkeypatch.setitem(families.FAMILIES, kind, replace(families.FAMILIES[kind], packed=False))
    with LLM(str(subject.directory), dtype="float32") as llm:
        assert relative_error(_vectors(llm, subject.texts), subject.vectors) < ROUNDING


@every_family
def test_bfloat16_stays_close_and_on_its_path(subject: Subject) -> None:
    # Where a token chooses among experts, rounding alone can choose another one.
    least = 0.9 if subject.family.name == "qwen3-moe" else 0.995
    with LLM(str(subject.directory), dtype="bfloat16") as llm:
        assert cosines(_vectors(llm, subject.texts), subject.vectors).min() > least
    runner = LocalRunner(ModelSpec(source=str(subject.directory), dtype="bfloat16"))
    assert runner.describe()["path"] == subject.family.path


@pytest.mark.parametrize("pooling_type", ["CLS", "LAST", "MEAN", "MAX"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_pooler_asked_for_beats_the_files(
    checkpoint: Callable[[str], Path], pooling_type: str, normalize: bool
) -> None:
    reference = Reference(checkpoint("bert"), pooling_type, normalize)
    texts = stretching_texts(reference.ids, FAMILIES["bert"].max_model_len)
    expected = np.stack([reference.embed(text) for text in texts])
    override = {"pooling_type": pooling_type, "normalize": normalize}
    with LLM(str(checkpoint("bert")), dtype="float32", override_pooler_config=override) as llm:
        assert relative_error(_vectors(llm, texts), expected) < ROUNDING


def _vectors(llm: LLM, texts: list[str]) -> Rows:
    return np.array([answer.outputs.embedding for answer in llm.embed(texts, use_tqdm=False)], np.float32)
