"""The modules that Sentence Transformers puts behind a pooling, against sentence-transformers itself."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.base.modules.dense import Dense
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Normalize
from torch import nn

from pooling import LLM, PoolingParams
from pooling.errors import CheckpointError
from tests.checkpoints import HIDDEN
from tests.reference import Rows, relative_error
from tests.sentence_encoders import ROUNDING, alone, drawn, sentence_transformer
from tests.texts import stretching_texts


def _dense(width_in: int, width_out: int, **settings: Any) -> Any:
    return drawn(Dense(width_in, width_out, **settings), seed=width_out)


# What stands behind the pooling, in its order; the width of the answer.
BEHIND: dict[str, tuple[Callable[[], list[Any]], int]] = {
    "one dense": (lambda: [_dense(HIDDEN, 40)], 40),
    "as EmbeddingGemma": (
        lambda: [
            _dense(HIDDEN, 160, bias=False, activation_function=nn.Identity()),
            _dense(160, HIDDEN, bias=False, activation_function=nn.Identity()),
            Normalize(),
        ],
        HIDDEN,
    ),
    "normalised first": (lambda: [Normalize(), _dense(HIDDEN, 40, activation_function=nn.GELU())], 40),
    "normalised twice": (lambda: [Normalize(), _dense(HIDDEN, 40), Normalize()], 40),
    "added to itself": (lambda: [_dense(HIDDEN, HIDDEN, use_residual=True), Normalize()], HIDDEN),
    "added to a projection": (lambda: [_dense(HIDDEN, 40, use_residual=True)], 40),
    "layer norm and dropout": (lambda: [Dropout(0.5), drawn(LayerNorm(HIDDEN), seed=2), Normalize()], HIDDEN),
}


@pytest.fixture(scope="module", params=BEHIND)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, int]:
    directory = tmp_path_factory.mktemp("modules")
    build, width = BEHIND[request.param]
    return sentence_transformer(directory, *build()), directory / "model", width


def test_vectors_are_those_of_sentence_transformers(subject: tuple[Any, Path, int]) -> None:
    theirs, directory, width = subject
    texts = _texts(theirs)
    with LLM(str(directory), dtype="float32") as llm:
        assert llm.card.dim == width
        assert relative_error(_vectors(llm, texts), np.stack(alone(theirs.encode, texts))) < ROUNDING


def test_token_vectors_go_through_the_same_layers(subject: tuple[Any, Path, int]) -> None:
    """A text of one token is its own mean, so both tasks have one answer for it."""
    _, directory, width = subject
    with LLM(str(directory), dtype="float32") as llm:
        (pooled,) = llm.encode([[7]], pooling_task="embed", use_tqdm=False)
        (tokens,) = llm.encode([[7]], pooling_task="token_embed", use_tqdm=False)
        (several,) = llm.encode([[7, 8, 9]], pooling_task="token_embed", use_tqdm=False)
    assert relative_error(tokens.outputs.data[0].numpy(), pooled.outputs.data.numpy()) < ROUNDING
    assert several.outputs.data.shape == (3, width)


def test_matryoshka_cuts_what_the_last_layer_answers_and_then_normalises(tmp_path: Path) -> None:
    theirs = sentence_transformer(tmp_path, _dense(HIDDEN, 40), Normalize())
    _change(tmp_path / "model" / "config.json", matryoshka_dimensions=[16])
    texts = _texts(theirs)[:8]
    expected = np.stack(alone(theirs.encode, texts))[:, :16]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    with LLM(str(tmp_path / "model"), dtype="float32") as llm:
        answers = llm.embed(texts, pooling_params=PoolingParams(dimensions=16), use_tqdm=False)
    assert relative_error(np.array([answer.outputs.embedding for answer in answers], np.float32), expected) < ROUNDING


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_scores_are_the_similarity_that_the_files_name(tmp_path: Path, similarity: str) -> None:
    theirs = sentence_transformer(tmp_path, _dense(HIDDEN, 40), similarity_fn_name=similarity)
    query, *documents = _texts(theirs)[3:9]
    expected = theirs.similarity(theirs.encode([query]), theirs.encode(documents)).numpy()[0]
    with LLM(str(tmp_path / "model"), dtype="float32") as llm:
        scores = [answer.outputs.score for answer in llm.score(query, documents, use_tqdm=False)]
    assert relative_error(np.array(scores, np.float32), expected) < ROUNDING


@pytest.mark.parametrize("prefix", ["linear.", "dense.", ""])
def test_pickled_weights_under_other_names_are_read(tmp_path: Path, prefix: str) -> None:
    theirs = sentence_transformer(tmp_path, _dense(HIDDEN, 40))
    place = tmp_path / "model" / "2_Dense"
    tensors = load_file(place / "model.safetensors")
    torch.save({prefix + name.removeprefix("linear."): t for name, t in tensors.items()}, place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    texts = _texts(theirs)[:4]
    with LLM(str(tmp_path / "model"), dtype="float32") as llm:
        assert relative_error(_vectors(llm, texts), np.stack(alone(theirs.encode, texts))) < ROUNDING


def test_pylate_names_its_class_otherwise(tmp_path: Path) -> None:
    theirs = sentence_transformer(tmp_path, _dense(HIDDEN, 40))
    _rename(tmp_path / "model", "Dense", "pylate.models.Dense.Dense")
    texts = _texts(theirs)[:4]
    with LLM(str(tmp_path / "model"), dtype="float32") as llm:
        assert relative_error(_vectors(llm, texts), np.stack(alone(theirs.encode, texts))) < ROUNDING


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    sentence_transformer(directory, _dense(HIDDEN, 40), _dense(40, 24), Normalize())
    return directory / "model"


def _rewrite(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        file = directory / "2_Dense" / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a tensor missing": (_rewrite(lambda t: t.pop("linear.bias")), "2_Dense lacks tensor 'bias'"),
    "a tensor unknown": (_rewrite(lambda t: t.update(extra=torch.zeros(1))), "2_Dense has unknown tensor 'extra'"),
    "a tensor misshapen": (
        _rewrite(lambda t: t.update({"linear.bias": torch.zeros(41)})),
        "tensor 'bias' of 2_Dense has shape [41]; its config asks for [40]",
    ),
    "not a number": (_rewrite(lambda t: t["linear.bias"].fill_(float("nan"))), "holds NaN or infinity"),
    "no weights": (lambda d: (d / "2_Dense" / "model.safetensors").unlink(), "no 2_Dense/pytorch_model.bin"),
    "cut short": (lambda d: (d / "2_Dense" / "model.safetensors").write_bytes(b"1234567890"), "damaged or cut short"),
    "another width": (lambda d: _change(d / "2_Dense" / "config.json", in_features=63), "rows of 63, but it is given"),
    "no width": (lambda d: _change(d / "2_Dense" / "config.json", in_features=None), "in_features None; a positive"),
    "code for an activation": (
        lambda d: _change(d / "2_Dense" / "config.json", activation_function="os.system"),
        "activation 'os.system'; allowed are the classes of torch.nn",
    ),
    "another input": (
        lambda d: _change(d / "2_Dense" / "config.json", module_input_name="token_embeddings"),
        "module_input_name 'token_embeddings'; supported here is 'sentence_embedding'",
    ),
    "pooled after a layer": (lambda d: _swap(d, 1, 2), "a pooling module behind another one or behind a layer"),
    "static": (lambda d: _rename(d, "Transformer", "x.StaticEmbedding"), "lists a StaticEmbedding module"),
    "routed": (lambda d: _rename(d, "Dense", "x.Router"), "lists a Router module, which is not supported"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_applied_exactly_is_refused(whole: Path, tmp_path: Path, damage: str) -> None:
    break_it, named = DAMAGES[damage]
    shutil.copytree(whole, tmp_path / "broken")
    break_it(tmp_path / "broken")
    with pytest.raises(CheckpointError) as refused:
        LLM(str(tmp_path / "broken"), dtype="float32")
    assert named in refused.value.detail


def test_a_pickle_that_would_run_code_is_refused(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "broken")
    place = tmp_path / "broken" / "2_Dense"
    (place / "model.safetensors").unlink()
    torch.save({"linear.weight": _Harm()}, place / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no file of weights"):
        LLM(str(tmp_path / "broken"), dtype="float32")


class _Harm:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("the pickle was run",))


def _texts(model: Any) -> list[str]:
    return stretching_texts(lambda text: list(model.tokenizer(text)["input_ids"]), 320)


def _vectors(llm: LLM, texts: list[str]) -> Rows:
    return np.array([answer.outputs.embedding for answer in llm.embed(texts, use_tqdm=False)], np.float32)


def _change(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def _rename(directory: Path, kind: str, name: str) -> None:
    file = directory / "modules.json"
    modules = json.loads(file.read_text(encoding="utf-8"))
    for module in modules:
        if module["type"].endswith(f".{kind}"):
            module["type"] = name
    file.write_text(json.dumps(modules), encoding="utf-8")


def _swap(directory: Path, one: int, other: int) -> None:
    file = directory / "modules.json"
    modules = json.loads(file.read_text(encoding="utf-8"))
    modules[one], modules[other] = modules[other], modules[one]
    file.write_text(json.dumps(modules), encoding="utf-8")
