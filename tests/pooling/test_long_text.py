"""Long texts: in chunks as vLLM makes them or with an overlap, and late chunking, each against the sum by hand."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pooling import LLM, Intake, ModelSpec, PoolerConfig, PoolingParams, PoolingRequest
from pooling.config import parse_settings
from pooling.errors import ConfigError, InputTooLong, InvalidRequest, NonFiniteResult
from pooling.long_text import chunk, windows
from pooling.request import Chunks, PackedBatch
from tests.checkpoints import FAMILIES, HIDDEN
from tests.checkpoints.writing import write_json
from tests.echo import CARD, POISON, EchoRunner, batch, engine_of
from tests.reference import Reference, Rows, relative_error
from tests.texts import words

Checkpoints = Callable[[str], Path]
_ROUNDING = 2e-5
_MOST = 40  # tokens of a chunk
_CHUNKED = {"enable_chunked_processing": True}
_TEXTS = ["short", words(_MOST - 2), words(_MOST - 1, 3), words(95, 5), words(3 * _MOST, 7), "end"]


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoints) -> Reference:
    return Reference(checkpoint("bert"), "MEAN", normalize=True)


@pytest.fixture(scope="module")
def llm(checkpoint: Checkpoints) -> Iterator[LLM]:
    with LLM(str(checkpoint("bert")), **_settings()) as llm:
        yield llm


def test_a_long_text_is_the_mean_of_slices_weighted_by_their_tokens(llm: LLM, reference: Reference) -> None:
    expected = np.stack([_sliced(reference, reference.ids(text)) for text in _TEXTS])
    answers = llm.embed(_TEXTS, use_tqdm=False)
    assert relative_error(_vectors(answers), expected) < _ROUNDING
    assert [answer.prompt_token_ids for answer in answers] == [reference.ids(text) for text in _TEXTS]
    assert np.allclose(np.linalg.norm(_vectors(answers), axis=1), 1, atol=1e-6)


def test_without_normalising_the_mean_keeps_its_length(llm: LLM, checkpoint: Checkpoints) -> None:
    raw = Reference(checkpoint("bert"), "MEAN", normalize=False)
    answers = llm.embed(_TEXTS, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    expected = np.stack([_sliced(raw, raw.ids(text)) for text in _TEXTS])
    assert relative_error(_vectors(answers), expected) < _ROUNDING


def test_token_ids_are_cut_in_the_same_way(llm: LLM, reference: Reference) -> None:
    ids = reference.ids(_TEXTS[3])[1:-1]
    (answer,) = llm.embed([ids], use_tqdm=False)
    assert relative_error(_vectors([answer])[0], _sliced(reference, ids)) < _ROUNDING


@pytest.mark.parametrize("overlap", [0, 7])
@pytest.mark.parametrize("prompt", ["", "the "])
def test_chunks_that_overlap_have_special_tokens_and_the_prompt_of_their_own(
    checkpoint: Checkpoints, reference: Reference, overlap: int, prompt: str
) -> None:
    with LLM(str(checkpoint("bert")), **_settings(chunk_overlap=overlap)) as llm:
        answers = llm.embed(_TEXTS, prompt=prompt, use_tqdm=False)
    head = reference.ids(prompt)[:-1]
    for text, answer in zip(_TEXTS, answers, strict=True):
        ids = reference.ids(prompt + text)
        own = ids[len(head) : -1]
        room = _MOST - len(head) - 1
        starts = [0] if len(own) <= room else range(0, len(own) - overlap, room - overlap)
        chunks = [[*head, *own[start : start + room], ids[-1]] for start in starts]
        assert max(map(len, chunks)) <= _MOST
        assert relative_error(_vectors([answer])[0], _mean(reference, chunks)) < _ROUNDING


def test_each_way_to_cut_gives_another_vector(checkpoint: Checkpoints, llm: LLM) -> None:
    """Else the tests above could not tell one from another."""
    plain = _vectors(llm.embed(_TEXTS[4], use_tqdm=False))
    with LLM(str(checkpoint("bert")), **_settings(chunk_overlap=0)) as framed:
        assert relative_error(_vectors(framed.embed(_TEXTS[4], use_tqdm=False)), plain) > 1e-3
    with LLM(str(checkpoint("bert")), **_settings(chunk_overlap=7)) as overlapping:
        assert relative_error(_vectors(overlapping.embed(_TEXTS[4], use_tqdm=False)), plain) > 1e-3


def test_a_prompt_that_is_not_pooled_is_pooled_in_no_chunk(checkpoint: Checkpoints, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(checkpoint("bert"), directory)
    pooling = {"word_embedding_dimension": HIDDEN, "pooling_mode": "mean", "include_prompt": False}
    write_json(directory / "1_Pooling" / "config.json", pooling)
    raw = Reference(checkpoint("bert"), "MEAN", normalize=False)
    prompt, text = "the ", _TEXTS[3]
    head, ids = raw.ids(prompt)[:-1], raw.ids(prompt + text)
    for overlap in (None, 5):
        chunks = [ids[start : start + _MOST] for start in range(0, len(ids), _MOST)]
        left_out = [len(head), 0, 0]
        if overlap is not None:
            own, room = ids[len(head) : -1], _MOST - len(head) - 1
            starts = range(0, len(own) - overlap, room - overlap)
            chunks = [[*head, *own[start : start + room], ids[-1]] for start in starts]
            left_out = [len(head)] * len(chunks)
        states = [raw.hidden(one)[skip:] for one, skip in zip(chunks, left_out, strict=True)]
        means = [torch.nn.functional.normalize(one.mean(0), dim=0) for one in states]
        total = sum(mean * len(state) for mean, state in zip(means, states, strict=True))
        expected = torch.nn.functional.normalize(torch.as_tensor(total), dim=0).numpy()
        with LLM(str(directory), **_settings(chunk_overlap=overlap)) as llm:
            (answer,) = llm.embed(text, prompt=prompt, use_tqdm=False)
        assert relative_error(_vectors([answer])[0], expected) < _ROUNDING


def test_windows_cover_everything_and_share_what_they_should() -> None:
    for tokens, most, overlap in [(1, 5, 2), (5, 5, 2), (6, 5, 2), (100, 7, 3), (100, 7, 0), (9, 5, 4)]:
        bounds = windows(tokens, most, overlap)
        assert bounds[0][0] == 0
        assert bounds[-1][1] == tokens
        assert all(0 < stop - start <= most for start, stop in bounds)
        assert all(before[1] - after[0] == overlap for before, after in pairwise(bounds))


def test_what_is_short_enough_is_left_alone() -> None:
    assert chunk(PackedBatch(np.arange(8, dtype=np.int32), np.array([5, 3], np.int32)), 5, None) is None


def test_max_embed_len_is_the_limit_of_embed_and_of_nothing_else(checkpoint: Checkpoints) -> None:
    spec = ModelSpec(source=str(checkpoint("bert")), max_model_len=_MOST, override_pooler_config=_config(100))
    intake = Intake.load(spec)
    assert intake.tokenize(PoolingRequest([words(98)])).lengths.tolist() == [100]
    with pytest.raises(InputTooLong, match=r"maximum context length is 100 tokens.*at least 101"):
        intake.tokenize(PoolingRequest([words(99)]))
    with pytest.raises(InputTooLong, match="maximum context length is 40 tokens"):
        intake.tokenize(PoolingRequest([words(60)], "token_embed"))
    for asked, left in [(-1, 100), (60, 60), (100, 100)]:
        assert intake.tokenize(PoolingRequest([words(200)], truncate_prompt_tokens=asked)).lengths.tolist() == [left]
    with pytest.raises(InvalidRequest, match="greater than max_model_len"):
        intake.tokenize(PoolingRequest([words(200)], truncate_prompt_tokens=101))


def test_max_embed_len_alone_is_a_smaller_limit(checkpoint: Checkpoints) -> None:
    spec = ModelSpec(source=str(checkpoint("bert")), override_pooler_config=PoolerConfig(max_embed_len=10))
    with pytest.raises(InputTooLong, match="maximum context length is 10 tokens"):
        Intake.load(spec).tokenize(PoolingRequest([words(20)]))


async def test_a_result_that_is_no_number_names_the_callers_input() -> None:
    runner = EchoRunner()
    runner.card = replace(CARD, max_model_len=4, chunked=True)
    engine = engine_of(runner)
    with pytest.raises(NonFiniteResult, match="for input 2"):
        await engine.pool(batch([1] * 6, [2] * 9, [*[3] * 10, POISON], [4]))
    answer = await engine.pool(batch([1] * 6, [2, 2, 2, 2, 6], [4]))
    assert answer.data.ravel().tolist() == [1, 1, 4]  # one number, brought to length one where there are chunks
    engine.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk_overlap": 3}, "chunk_overlap is for chunks of long texts; set enable_chunked_processing too"),
        ({**_CHUNKED, "chunk_overlap": 21}, "chunk_overlap is 21; allowed is at most half of the 40 tokens"),
        (
            {"max_embed_len": 41},
            "max_embed_len is 41, but the model takes at most 40 tokens at once; set enable_chunked",
        ),
        ({**_CHUNKED, "pooling_type": "ALL"}, "sets enable_chunked_processing, which is for embed; .* token_embed"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_the_start(
    checkpoint: Checkpoints, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Intake.load(
            parse_settings(
                ModelSpec,
                {"source": str(checkpoint("bert")), "max_model_len": _MOST, "override_pooler_config": settings},
                "spec",
            )
        )


_DOCUMENTS = [[words(6), words(11, 3), "x"], [words(9, 4)], ["Größe, naïveté", "🙂 and 中文 end."]]


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("separator", [" ", "", "\n\n"])
def test_late_chunks_are_means_of_states_in_the_context_of_the_whole(
    checkpoint: Checkpoints, family: str, separator: str
) -> None:
    """WordPiece drops the spaces between words; byte-level BPE puts them at the beginning of a token."""
    normalize = FAMILIES[family].normalize
    reference = Reference(checkpoint(family), "MEAN", normalize)
    with LLM(str(checkpoint(family)), dtype="float32") as llm:
        answers = llm.embed_late(_DOCUMENTS, separator=separator, use_tqdm=False)
    for chunks, vectors in zip(_DOCUMENTS, answers, strict=True):
        expected = _late(reference, chunks, separator, normalize)
        assert relative_error(_vectors(vectors), expected) < _ROUNDING
        assert vectors[0].prompt_token_ids == reference.ids(separator.join(chunks))


def test_a_late_chunk_knows_its_context_and_a_prompt_is_in_none(llm: LLM, reference: Reference) -> None:
    chunks = _DOCUMENTS[0]
    (late,) = llm.embed_late([chunks], use_tqdm=False)
    assert relative_error(_vectors(late), np.stack([reference.embed(text) for text in chunks])) > 0.05
    (behind,) = llm.embed_late([chunks], prompt="the ", precision="int8", use_tqdm=False)
    expected = _late(reference, ["the", *chunks], " ", True)[1:]
    assert np.abs(_vectors(behind) / 127 - expected).max() <= 0.51 / 127  # 8 / sqrt(64) is 1


@pytest.mark.parametrize(
    ("inputs", "asked", "message"),
    [
        ([Chunks(("a", " ", "b"))], {}, "chunk 1 of input 0 has no tokens"),
        ([Chunks(("a",)), Chunks(())], {}, "input 1 is no list of texts"),
        ([Chunks(("a",)), "b"], {}, "input 1 is no list of texts"),
        ([Chunks((words(20), words(19)))], {}, "maximum context length is 40 tokens.*contains 41 input tokens"),
        ([Chunks(("a",))], {"truncate_prompt_tokens": 5}, r"reads the whole text; .*\(received 5\)"),
        (
            [Chunks(("a",))],
            {"task": "token_embed"},
            "task embed of a model that pools MEAN; .* pools ALL for token_embed",
        ),
    ],
)
def test_what_cannot_be_chunked_late_is_refused_by_name(
    checkpoint: Checkpoints, inputs: list[Any], asked: dict[str, Any], message: str
) -> None:
    intake = Intake.load(ModelSpec(source=str(checkpoint("bert")), max_model_len=_MOST))
    with pytest.raises(InvalidRequest, match=message):
        intake.tokenize(PoolingRequest(inputs, **asked))


def test_a_model_that_pools_otherwise_has_no_late_chunks(checkpoint: Checkpoints, llm: LLM) -> None:
    intake = Intake.load(ModelSpec(source=str(checkpoint("xlmr"))))
    with pytest.raises(InvalidRequest, match="pools CLS for embed"):
        intake.tokenize(PoolingRequest([Chunks(("a",))]))
    with pytest.raises(InvalidRequest, match="takes documents, each a list of its chunks"):
        llm.embed_late(["a", "b"])


def _settings(**more: Any) -> dict[str, Any]:
    return {"dtype": "float32", "max_model_len": _MOST, "override_pooler_config": {**_CHUNKED, **more}}


def _config(max_embed_len: int | None) -> PoolerConfig:
    return PoolerConfig(enable_chunked_processing=True, max_embed_len=max_embed_len)


def _sliced(reference: Reference, ids: list[int]) -> Rows:
    return _mean(reference, [ids[start : start + _MOST] for start in range(0, len(ids), _MOST)])


def _mean(reference: Reference, chunks: list[list[int]]) -> Rows:
    """The vectors of chunks as one, by hand: each weighted by its tokens."""
    total = sum(reference._finish(reference.hidden(ids).mean(0)) * len(ids) for ids in chunks)
    mean = np.asarray(total / sum(map(len, chunks)), np.float32)
    return mean / np.linalg.norm(mean) if reference.normalize else mean


def _late(reference: Reference, chunks: list[str], separator: str, normalize: bool) -> Rows:
    """Late chunking by hand: token by token, by the characters that transformers says it stands for."""
    text = separator.join(chunks)
    read = reference.tokenizer(text, return_offsets_mapping=True)
    states = reference.hidden(read["input_ids"])
    rows, begin = [], 0
    for one in chunks:
        end = begin + len(one)
        of_chunk = [
            index for index, (start, stop) in enumerate(read["offset_mapping"]) if start < stop and begin < stop <= end
        ]
        rows.append(states[of_chunk].mean(0))
        begin = end + len(separator)
    vectors = torch.stack(rows)
    return (torch.nn.functional.normalize(vectors, dim=-1) if normalize else vectors).numpy()


def _vectors(answers: list[Any]) -> Rows:
    return np.array([answer.outputs.embedding for answer in answers], np.float32)
