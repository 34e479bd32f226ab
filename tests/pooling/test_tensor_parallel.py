"""Every family that is split over ranks answers, on two of them, what it answers on one."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pooling.choose import load_packed
from pooling.config import ModelSpec
from pooling.errors import CheckpointError, ConfigError
from pooling.intake import Intake
from pooling.loading.describe import describe
from pooling.media import Content, Image, ImageEmbeds
from pooling.parallel import plans
from pooling.parallel.group import StartRanks
from pooling.parallel.plans import obstacle_to
from pooling.parallel.shard import Shard
from pooling.request import PoolingParams, PoolingRequest, Rows
from pooling.runner import LocalRunner
from tests.checkpoints import EVERY
from tests.checkpoints.writing import copy_with
from tests.headed import Headed
from tests.pictures import pictures
from tests.ranks import LongRank
from tests.sentence_encoders import backbone, bge_m3, multi_vector, splade
from tests.texts import words

# Sums over ranks are rounded in another order: seen are 4e-7 to 3e-6.
SAME = 1e-4
TEXTS = ["a", words(9, 3), words(33, 5), words(33, 8), words(70, 2), "Größe, naïveté: 中文"]
LOGITS = PoolingParams(use_activation=False)
SPLIT = [
    name for name, family in EVERY.items() if obstacle_to(2, family.build()[0].config, family.path == "packed") is None
]
HEADS = [
    *(Headed(name, "sequence") for name in ("bert", "xlmr", "modernbert", "albert", "qwen3", "gpt2", "phi3")),
    *(Headed(name, "token") for name in ("electra", "t5", "llama", "qwen3-moe")),
]
Checkpoints = Callable[[str], Path]


@pytest.fixture(scope="module")
def rank() -> Iterator[LongRank]:
    rank = LongRank()
    yield rank
    rank.close()


def test_every_family_that_packs_is_split() -> None:
    assert [name for name, family in EVERY.items() if family.path == "packed"] == SPLIT


@pytest.mark.parametrize("name", SPLIT)
def test_two_ranks_answer_what_one_does(checkpoint: Checkpoints, rank: LongRank, name: str) -> None:
    spec = {"source": str(checkpoint(name))}
    expected, actual = on_one_and_two(spec, rank, "embed", "token_embed")
    assert_same(actual, expected)


@pytest.mark.parametrize("one", HEADS, ids=str)
def test_classifiers_do_too(tmp_path: Path, rank: LongRank, one: Headed) -> None:
    expected, actual = on_one_and_two({"source": str(one.write(tmp_path))}, rank, params=LOGITS)
    assert np.std(np.concatenate([rows.ravel() for rows in expected])) > 0.2  # else a wrong one would pass
    assert_same(actual, expected)


@pytest.mark.parametrize("name", ["qwen2-reward", "llama-reward", "qwen3-reranker", "gemma", "mxbai"])
def test_rewards_and_scores_do_too(scorer: Checkpoints, rank: LongRank, name: str) -> None:
    """A scorer reads a few rows of the output layer, which are rank 0's alone."""
    task = "reward" if name.endswith("reward") else "score"
    tokens = {"classifier_from_token": ["no", "yes"]} if name == "qwen3-reranker" else None
    spec = {"source": str(scorer(name)), "task": task, "hf_overrides": tokens}
    expected, actual = on_one_and_two(spec, rank, params=LOGITS)
    assert_same(actual, expected)


def test_multi_vectors_of_both_sides_do_too(tmp_path: Path, rank: LongRank) -> None:
    """Queries are filled up with tokens that nobody sees."""
    settings: dict[str, Any] = {"query_expansion": {"strategy": "fixed", "length": 32}, "document_length": 100}
    multi_vector(tmp_path, backbone(tmp_path / "layers", **settings))
    spec = {"source": str(tmp_path / "model")}
    for side, inputs in (("query", TEXTS[:2]), ("document", TEXTS)):
        assert_same(*on_one_and_two(spec, rank, "token_embed", inputs=inputs, input_type=side))


def test_splade_and_bge_m3_do_too(tmp_path: Path, rank: LongRank) -> None:
    """SPLADE's head is the whole table of words, of which the layers below it have a share."""
    splade(tmp_path / "splade")
    bge_m3(tmp_path)
    assert_same(*on_one_and_two({"source": str(tmp_path / "splade" / "model")}, rank, "embed"))
    assert_same(*on_one_and_two({"source": str(tmp_path)}, rank, "embed", "token_classify", "token_embed"))


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_what_inputs_begin_with_alike_is_computed_once_on_every_rank(
    checkpoint: Checkpoints, rank: LongRank, name: str
) -> None:
    beginning = words(40, 7)
    inputs = [f"{beginning} {words(count, count)}" for count in (3, 9, 9, 20)]
    spec = ModelSpec(source=str(checkpoint(name)))
    batch = Intake.load(spec).tokenize(PoolingRequest(inputs))
    assert LocalRunner(spec).prepare([batch]).step.spread is not None
    assert_same(*on_one_and_two({"source": str(checkpoint(name))}, rank, "embed", "token_embed", inputs=inputs))


def test_pairs_are_told_apart_on_every_rank(scorer: Checkpoints, rank: LongRank) -> None:
    spec = {"source": str(scorer("bert")), "task": "score"}
    pairs = [(words(3, 2), words(20, 5)), (words(9, 1), words(4, 4))]
    assert_same(*on_one_and_two(spec, rank, "score", params=LOGITS, inputs=pairs))


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "colqwen2"])
def test_images_are_read_on_every_rank(checkpoint: Checkpoints, rank: LongRank, name: str) -> None:
    """Rank 0 alone embeds them."""
    drawn = [Image.of(image) for image in pictures()]
    if name == "colqwen2":
        inputs: list[Any] = ["a", *drawn, words(9), drawn[0]]
    else:
        embedded = ImageEmbeds(
            np.random.default_rng(0).standard_normal((4, 64 * (3 if name == "qwen3-vl" else 1))), (1, 4, 4)
        )
        said = [Content((drawn[1], "and", drawn[2])), Content((drawn[2], embedded, drawn[1])), *drawn]
        inputs = [*TEXTS[:5], *said, Content((embedded,))]
    tasks = ("token_embed",) if name == "colqwen2" else ("embed", "token_embed")
    assert_same(*on_one_and_two({"source": str(checkpoint(name))}, rank, *tasks, inputs=inputs))


def test_pairs_with_images_do_too(checkpoint: Checkpoints, rank: LongRank) -> None:
    drawn = [Image.of(image) for image in pictures()]
    spec = {"source": str(checkpoint("qwen3-vl")), "task": "score"}
    pairs = [("a dog", Content((drawn[1],))), (Content((drawn[2], "what")), "a cat"), ("a", "b")]
    assert_same(*on_one_and_two(spec, rank, "score", params=LOGITS, inputs=pairs))


def test_bfloat16_stays_close(checkpoint: Checkpoints, rank: LongRank) -> None:
    expected, actual = on_one_and_two({"source": str(checkpoint("bert")), "dtype": "bfloat16"}, rank, "embed")
    for one, two in zip(expected, actual, strict=True):
        assert (one * two).sum() / np.linalg.norm(one) / np.linalg.norm(two) > 0.999


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("mpnet", 2, "family mpnet runs padded, and only families that run packed are split"),
        ("bert", 3, r"num_attention_heads 4 and intermediate_size 128 cannot be divided by it; allowed are 1, 2, 4"),
        ("clip", 2, "family clip has no tensor-parallel plan"),
        ("colpali", 2, "family colpali has no tensor-parallel plan"),
        ("qwen2-vl", 4, "num_key_value_heads 2 cannot be divided by it; allowed are 1, 2"),
        ("mistral", 4, "num_key_value_heads 2 cannot be divided by it; allowed are 1, 2"),
    ],
)
def test_what_cannot_be_split_is_refused_before_anything_starts(
    checkpoint: Checkpoints, name: str, size: int, said: str
) -> None:
    with pytest.raises(ConfigError, match=f"tensor_parallel_size is {size}, but .*{said}"):
        LocalRunner(ModelSpec(source=str(checkpoint(name)), tensor_parallel_size=size), never)


def test_a_family_without_a_plan_is_refused_by_name(checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(plans._FAMILIES, "bert")
    with pytest.raises(
        ConfigError, match="family bert has no tensor-parallel plan; those that have one are electra, ro"
    ):
        LocalRunner(ModelSpec(source=str(checkpoint("bert")), tensor_parallel_size=2), never)


def test_a_weight_without_a_rule_is_refused_by_name(checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether every rank should have it whole is not to be guessed."""
    plan = {name: rule for name, rule in plans._BERT.items() if name != "embeddings.token_type_embeddings"}
    monkeypatch.setitem(plans._FAMILIES, "bert", plan)
    shard = Shard(0, 2, lambda tensor: tensor)
    with pytest.raises(CheckpointError, match=r"tensor 'embeddings\.token_type_embeddings\.weight' has no rule in the"):
        load_packed(
            describe(ModelSpec(source=str(checkpoint("bert")))), torch.float32, torch.device("cpu"), 1024, shard
        )


def test_a_rank_that_cannot_load_is_quoted(checkpoint: Checkpoints, rank: LongRank, tmp_path: Path) -> None:
    """Rank 1 reads slices that rank 0 does not."""
    tensors = load_file(checkpoint("bert") / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layer.0.intermediate.dense.weight"))
    tensors[name][-1] = torch.nan
    broken = copy_with(checkpoint("bert"), tmp_path / "broken", tensors)
    with pytest.raises(CheckpointError, match=f"tensor '{re.escape(name)}' holds NaN or infinity"):
        LocalRunner(ModelSpec(source=str(broken), dtype="float32", tensor_parallel_size=2), rank.start)


def test_threads_are_shared_by_the_ranks_until_the_group_ends(checkpoint: Checkpoints, rank: LongRank) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with runner_of({"source": str(checkpoint("bert"))}, rank.start):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 4
        with pytest.raises(AssertionError, match="a rank was started"):
            LocalRunner(ModelSpec(source=str(checkpoint("bert")), tensor_parallel_size=2), never)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def never(meeting: Any) -> Any:
    raise AssertionError("a rank was started")


@contextmanager
def runner_of(spec: dict[str, Any], start: StartRanks | None = None) -> Iterator[LocalRunner]:
    size = {} if start is None else {"tensor_parallel_size": 2}
    runner = LocalRunner(ModelSpec(**{"dtype": "float32", **spec, **size}), start or never)
    try:
        assert runner.describe()["path"] == "packed"
        yield runner
    finally:
        runner.close()


def on_one_and_two(
    spec: dict[str, Any], rank: LongRank, *tasks: str, inputs: list[Any] = TEXTS, **asked: Any
) -> tuple[list[Rows], list[Rows]]:
    """The answers to all inputs in one step, of one process and of two ranks."""
    intake = Intake.load(ModelSpec(**spec))
    requests = [PoolingRequest(inputs, task, **asked) for task in tasks or (intake.card.tasks[0],)]
    parts = [intake.tokenize(request) for request in requests]
    answers: list[list[Rows]] = []
    for start in (None, rank.start):
        with runner_of(spec, start) as runner:
            outputs = runner.launch(runner.prepare(parts)).wait()
            answers.append([rows for output in outputs for rows in output.rows()])
    return answers[0], answers[1]


def assert_same(actual: list[Rows], expected: list[Rows]) -> None:
    scale = max(float(np.abs(rows).max()) for rows in expected)
    for one, two in zip(expected, actual, strict=True):
        assert one.shape == two.shape
        assert np.abs(one - two).max() < SAME * scale
