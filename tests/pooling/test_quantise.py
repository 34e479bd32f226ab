"""Quantised vectors: packed as others pack them, over a range that no request can change, and close to the floats."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers.util import quantize_embeddings

from pooling import LLM, Intake, ModelSpec, PoolerConfig, PoolingParams
from pooling.errors import ConfigError, InvalidRequest
from pooling.loading.card import ModelCard
from pooling.quantise import Quantiser, int8_limit, quantiser_for, to_float
from tests.checkpoints import MINILM
from tests.pooling.test_parity import mixed_texts
from tests.reference import Rows, cosines

_CUT = {"truncate_prompt_tokens": -1}
_PLAIN = PoolingParams()


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(MINILM, dtype="float32", served_model_name="minilm") as llm:
        yield llm


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return mixed_texts(200)


@pytest.fixture(scope="module")
def floats(llm: LLM, texts: list[str]) -> Rows:
    return _vectors(llm, texts, "float32").astype(np.float32)


@pytest.fixture
def card(llm: LLM) -> ModelCard:
    return llm.card


def test_bits_are_those_of_sentence_transformers(floats: Rows) -> None:
    for precision in ("binary", "ubinary"):
        expected = quantize_embeddings(floats, precision=precision)
        ours = Quantiser(precision)(floats)
        assert ours.dtype == expected.dtype
        assert (ours == expected).all()


def test_the_first_of_eight_is_the_highest_bit_and_zero_counts_as_positive() -> None:
    rows = np.array([[0.5, -1, -1, -1, -1, -1, -1, 0.0], [-1] * 8, [-0.0] * 8], np.float32)
    assert Quantiser("ubinary")(rows).ravel().tolist() == [0b1000_0001, 0, 255]
    assert Quantiser("binary")(rows).ravel().tolist() == [1, -128, 127]


def test_int8_is_the_nearest_step_and_uint8_the_same_plus_128() -> None:
    rows = np.array([[0.0, 0.1, -0.1, 0.0049, 0.0051, 1.27, -1.27, 9.0, -9.0]], np.float32)
    assert Quantiser("int8", 1.27)(rows).tolist() == [[0, 10, -10, 0, 1, 127, -127, 127, -127]]
    assert Quantiser("uint8", 1.27)(rows).tolist() == [[128, 138, 118, 128, 129, 255, 1, 255, 1]]


def test_int8_of_the_real_model_points_the_same_way(llm: LLM, texts: list[str], floats: Rows) -> None:
    for precision, middle in (("int8", 0), ("uint8", 128)):
        assert cosines(_vectors(llm, texts, precision) - middle, floats).min() > 0.9998


def test_nothing_of_the_real_model_is_cut(card: ModelCard, floats: Rows) -> None:
    assert np.abs(floats).max() <= int8_limit(card, _PLAIN)


def test_a_vector_does_not_depend_on_what_else_is_asked(llm: LLM, texts: list[str], floats: Rows) -> None:
    quantise = quantiser_for("int8", llm.card, _PLAIN)
    assert all((whole == quantise(row)).all() for whole, row in zip(quantise(floats), floats, strict=True))
    few = texts[12:24]
    together = _vectors(llm, few, "int8")
    alone = np.concatenate([_vectors(llm, [text], "int8") for text in few])
    # Batches round the floats by 1e-7, which may carry a number over the edge of a step, never further.
    assert np.abs(together - alone).max() <= 1
    assert (together != alone).mean() < 1e-3


def test_every_precision_is_of_its_type_and_size(llm: LLM) -> None:
    sizes = {"float32": 384, "int8": 384, "uint8": 384, "binary": 48, "ubinary": 48}
    for precision, size in sizes.items():
        (answer,) = llm.embed("hello", precision=precision, use_tqdm=False)  # type: ignore[arg-type]
        assert answer.outputs.hidden_size == size
        assert {type(value) for value in answer.outputs.embedding} == {float if precision == "float32" else int}


@pytest.mark.parametrize(
    ("precision", "params", "message"),
    [
        ("int4", _PLAIN, "precision is 'int4'; allowed are float32, int8, uint8, binary, ubinary"),
        ("int8", PoolingParams(use_activation=False), "of 'minilm' asked for are not normalised; .* int8_range"),
        ("uint8", PoolingParams(use_activation=False), "int8 and uint8 need a range that is fixed"),
    ],
)
def test_what_has_no_sound_answer_is_refused_by_name(
    llm: LLM, precision: str, params: PoolingParams, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        llm.embed("hello", precision=precision, pooling_params=params)  # type: ignore[arg-type]
    assert caught.value.param == "precision"


def test_bits_fill_bytes(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    card = _card(checkpoint, tmp_path, matryoshka_dimensions=[12, 16])
    assert quantiser_for("binary", card, PoolingParams(dimensions=16)) == Quantiser("binary")
    with pytest.raises(InvalidRequest, match="must be a multiple of 8 for binary embedding types, but got 12"):
        quantiser_for("binary", card, PoolingParams(dimensions=12))


def test_a_range_of_the_configuration_is_for_the_vectors_as_the_model_gives_them(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    settings = PoolerConfig(normalize=False, int8_range=3.0)
    card = _card(checkpoint, tmp_path, settings, matryoshka_dimensions=[16])
    assert int8_limit(card, _PLAIN) == 3.0
    assert int8_limit(card, PoolingParams(dimensions=16)) == 3.0
    assert int8_limit(card, PoolingParams(use_activation=True)) == 1.0  # 8 / sqrt(64)
    assert int8_limit(_card(checkpoint, tmp_path, PoolerConfig(int8_range=0.5)), PoolingParams(dimensions=16)) == 1.0


def test_a_classifier_has_no_range(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sets int8_range, which is for embed; the model's tasks are classify"):
        _card(checkpoint, tmp_path, PoolerConfig(int8_range=1.0), architectures=["BertForSequenceClassification"])


def test_float16_and_bfloat16_are_those_of_torch() -> None:
    draw = np.random.default_rng(0)
    rows = (draw.standard_normal((50, 64)) * 10.0 ** draw.integers(-6, 4, (50, 64))).astype(np.float32)
    ties = np.array([[1.00390625, 1.01171875, -1.00390625, 0.0, -0.0, 7e4, -7e4, 1e-8]], np.float32)
    for some in (rows, ties):
        assert (to_float(some, "float16") == torch.from_numpy(some).half().numpy()).all()
        bits = torch.from_numpy(some).bfloat16().view(torch.uint16).numpy()
        assert (to_float(some, "bfloat16") == bits).all()


def test_the_bytes_on_the_wire_are_vllms() -> None:
    """What a running vLLM 0.32 sent for one number as float32, bfloat16 and float16."""
    first = np.frombuffer(bytes.fromhex("8a5e0dbd"), "<f4")
    assert to_float(first, "bfloat16").astype("<u2").tobytes().hex() == "0dbd"
    assert to_float(first, "float16").astype("<f2").tobytes().hex() == "6ba8"


def _vectors(llm: LLM, texts: list[str], precision: str) -> Rows:
    answers = llm.embed(texts, precision=precision, use_tqdm=False, tokenization_kwargs=_CUT)  # type: ignore[arg-type]
    return np.array([answer.outputs.embedding for answer in answers], np.float64)


def _card(
    checkpoint: Callable[[str], Path], tmp_path: Path, settings: PoolerConfig | None = None, **config: object
) -> ModelCard:
    """Of the small BERT, 64 numbers wide, with other settings."""
    for file in checkpoint("bert").iterdir():
        if file.is_file() and file.suffix == ".json" and file.name != "modules.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    stated = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stated | config))
    return Intake.load(ModelSpec(source=str(tmp_path), override_pooler_config=settings)).card
