"""Multi-vector models: markers, expansion, skiplist and MaxSim, against MultiVectorEncoder."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder

from pooling import LLM, Intake, ModelSpec, PoolingRequest
from pooling.errors import CheckpointError, ConfigError, InputTooLong, InvalidRequest
from pooling.loading.card import InputType
from pooling.runner import LocalRunner
from pooling.scoring import compare
from tests.checkpoints import FAMILIES, HIDDEN
from tests.checkpoints.writing import sharpen
from tests.reference import Rows, relative_error
from tests.sentence_encoders import ROUNDING, alone, backbone, multi_vector
from tests.texts import words

QUERIES = ["a", words(3, 2), words(9, 5), "who, and when.", words(16, 1)]
DOCUMENTS = [words(40, 3), "one, two. three", ". , .", words(90, 7), "Größe, naïveté: 中文", "a"]

_PROMPTS = {"query": "[unused0] ", "document": "the "}
EXPANSIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "unseen": {"query_expansion": {"strategy": "fixed", "length": 32}, "document_length": 100},
    "seen": {"query_expansion": {"strategy": "fixed", "length": 32, "attend": True}},
    "at least": {"query_expansion": {"strategy": "min", "length": 16, "token": "[SEP]"}, "query_length": 64},
}


@pytest.fixture(scope="module", params=[("bert", name) for name in EXPANSIONS] + [("mpnet", "unseen")], ids=" ".join)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, LLM]]:
    family, expansion = request.param
    directory = tmp_path_factory.mktemp("multi")
    settings = EXPANSIONS[expansion]
    if family == "mpnet":
        settings = settings | {"query_expansion": {"strategy": "fixed", "length": 32, "token": "<mask>"}}
    theirs = multi_vector(directory, backbone(directory / "layers", family, **settings), prompts=_PROMPTS)
    with LLM(str(directory / "model"), dtype="float32") as llm:
        yield theirs, llm


def test_it_is_run_as_its_family_is(subject: tuple[Any, LLM]) -> None:
    _, llm = subject
    runner = LocalRunner(ModelSpec(source=llm.card.source, dtype="float32"))
    assert runner.describe()["path"] == FAMILIES[llm.card.model_type].path


def test_queries_and_documents_are_read_as_by_multi_vector_encoder(subject: tuple[Any, LLM]) -> None:
    theirs, llm = subject
    assert llm.card.tasks == ("token_embed", "score")
    assert llm.card.dim == 24
    for encode, texts, side in _sides(theirs):
        _equal(_encode(llm, texts, side), alone(encode, texts))


def test_a_text_on_neither_side_has_no_marker_of_a_side(subject: tuple[Any, LLM]) -> None:
    theirs, llm = subject
    _equal(_encode(llm, DOCUMENTS, None), alone(theirs.encode, DOCUMENTS))


def test_both_sides_share_steps_without_a_trace(subject: tuple[Any, LLM]) -> None:
    """Queries among documents of their own length, whose tokens are all seen."""
    theirs, llm = subject
    spec = ModelSpec(source=llm.card.source, dtype="float32")
    intake, runner = Intake.load(spec), LocalRunner(spec)
    requests = [
        (encode, text, PoolingRequest([text], input_type=side))
        for encode, _, side in _sides(theirs)
        for text in [*QUERIES[:4], words(30, 4)][: None if side == "document" else 4]
    ]
    outputs = runner.launch(runner.prepare([intake.tokenize(request) for _, _, request in requests])).wait()
    for (encode, text, _), output in zip(requests, outputs, strict=True):
        _equal(output.rows(), alone(encode, [text]))


def test_scores_are_those_of_multi_vector_encoder(subject: tuple[Any, LLM]) -> None:
    theirs, llm = subject
    expected = theirs.similarity(alone(theirs.encode_query, QUERIES), alone(theirs.encode_document, DOCUMENTS)).numpy()
    for query, row in zip(QUERIES, expected, strict=True):
        scores = [answer.outputs.score for answer in llm.score(query, DOCUMENTS, use_tqdm=False)]
        assert relative_error(np.array(scores, np.float32), row) < ROUNDING


def test_mean_max_sim_divides_by_the_tokens_of_the_query(tmp_path: Path) -> None:
    theirs = multi_vector(tmp_path, backbone(tmp_path / "layers"), similarity_fn_name="meanmaxsim")
    expected = theirs.similarity(theirs.encode_query(QUERIES[1:2]), theirs.encode_document(DOCUMENTS)).numpy()[0]
    with LLM(str(tmp_path / "model"), dtype="float32") as llm:
        scores = [answer.outputs.score for answer in llm.score(QUERIES[1], DOCUMENTS, use_tqdm=False)]
    assert relative_error(np.array(scores, np.float32), expected) < ROUNDING


def test_nothing_is_as_near_as_zero() -> None:
    nothing, something = np.zeros((0, 4), np.float32), np.ones((2, 4), np.float32)
    assert compare("max_sim", something, nothing) == compare("max_sim", nothing, something) == 0.0
    assert compare("mean_max_sim", nothing, something) == 0.0


@pytest.fixture(scope="module")
def expanding(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    directory = tmp_path_factory.mktemp("expanding")
    first = backbone(directory / "layers", **EXPANSIONS["unseen"])
    return multi_vector(directory, first, prompts=_PROMPTS), directory / "model"


def test_unseen_tokens_must_see_the_query_in_local_layers_too(tmp_path: Path) -> None:
    """Beyond the window they would see nothing, of which each kernel makes something else."""
    expansion = {"strategy": "fixed", "length": 16}
    theirs = multi_vector(tmp_path, backbone(tmp_path / "layers", "modernbert", query_expansion=expansion))
    with LLM(str(tmp_path / "model"), dtype="float32") as llm:
        _equal(_encode(llm, QUERIES[:3], "query"), alone(theirs.encode_query, QUERIES[:3]))
    file = tmp_path / "model" / "sentence_bert_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"query_expansion": expansion | {"length": 17}}))
    with pytest.raises(CheckpointError, match="filled up to 17 tokens that see the query only, but some layers see 16"):
        LLM(str(tmp_path / "model"), dtype="float32")


@pytest.mark.parametrize(("side", "most"), [("query", 32), ("document", 100)])
def test_each_side_has_its_own_limit(expanding: tuple[Any, Path], side: InputType, most: int) -> None:
    """An over-long text is an error unless it may be cut, and then it is cut as MultiVectorEncoder does."""
    theirs, directory = expanding
    long = words(150, 3)
    encode = theirs.encode_query if side == "query" else theirs.encode_document
    with LLM(str(directory), dtype="float32") as llm:
        with pytest.raises(InputTooLong, match=f"maximum context length is {most} tokens"):
            _encode(llm, [long], side)
        answers = llm.encode(
            [long], input_type=side, tokenization_kwargs={"truncate_prompt_tokens": -1}, use_tqdm=False
        )
    _equal([answer.outputs.data.numpy() for answer in answers], alone(encode, [long]))


def test_token_ids_have_no_side(expanding: tuple[Any, Path]) -> None:
    refused = pytest.raises(InvalidRequest, match="input_type needs text inputs")
    with LLM(str(expanding[1]), dtype="float32") as llm, refused:
        llm.encode([[5, 6]], input_type="query", use_tqdm=False)


def test_an_unknown_side_is_refused(expanding: tuple[Any, Path]) -> None:
    intake = Intake.load(ModelSpec(source=str(expanding[1])))
    with pytest.raises(InvalidRequest, match="input_type is 'passage'; allowed is query or document"):
        intake.tokenize(PoolingRequest(["a"], input_type="passage"))  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling_type", ["CLS", "MEAN"])
def test_it_is_never_pooled_into_one_vector(expanding: tuple[Any, Path], pooling_type: str) -> None:
    with pytest.raises(ConfigError, match=f"pooling_type is {pooling_type}, but BertModel is a multi-vector model"):
        LLM(str(expanding[1]), dtype="float32", override_pooler_config={"pooling_type": pooling_type})


def test_only_the_tokens_to_keep_are_kept_of_documents(tmp_path: Path) -> None:
    theirs = multi_vector(tmp_path, backbone(tmp_path / "layers"))
    theirs[2].keep_only_token_ids = list(range(0, len(theirs.tokenizer), 2))
    theirs[2].skiplist_tasks = ["query", "document"]
    theirs.save(str(tmp_path / "model"))
    with LLM(str(tmp_path / "model"), dtype="float32") as llm:
        for encode, texts, side in _sides(theirs):
            _equal(_encode(llm, texts, side), alone(encode, texts))


@pytest.mark.parametrize("attend", [False, True])
@pytest.mark.parametrize("marker", ["[unused0] ", "[Q] "])
def test_pylate_kept_all_of_it_in_one_file(tmp_path: Path, marker: str, attend: bool) -> None:
    """Two modules, and markers, lengths, skiplist and expansion as top-level settings; normalised without a module."""
    source = _with_words(tmp_path / "source", "[unused0]", "[D]", "[Q] ")
    multi_vector(tmp_path, _transformer(source))
    model = tmp_path / "model"
    modules = json.loads((model / "modules.json").read_text())[:2]
    modules[1]["type"] = "pylate.models.Dense.Dense"
    (model / "modules.json").write_text(json.dumps(modules))
    dense = json.loads((model / "1_Dense" / "config.json").read_text())
    del dense["module_input_name"], dense["module_output_name"]
    (model / "1_Dense" / "config.json").write_text(json.dumps(dense))
    settings = {
        "model_type": "ColBERT",
        "similarity_fn_name": "MaxSim",
        "prompts": {},
        "query_prefix": marker,
        "document_prefix": "[D] ",
        "query_length": 24,
        "document_length": 120,
        "attend_to_expansion_tokens": attend,
    }
    (model / "config_sentence_transformers.json").write_text(json.dumps(settings))
    theirs = _read(model)
    with LLM(str(model), dtype="float32") as llm:
        (answer,) = llm.encode("a", input_type="query", use_tqdm=False)
        assert len(answer.prompt_token_ids) == 24
        for encode, texts, side in _sides(theirs):
            texts = texts[:4] if side == "query" else texts
            _equal(_encode(llm, texts, side), alone(encode, texts))


@pytest.mark.parametrize("metadata", [None, {"query_maxlen": 20, "doc_maxlen": 110, "mask_punctuation": False}])
def test_stanford_keeps_the_projection_beside_the_layers(tmp_path: Path, metadata: dict[str, Any] | None) -> None:
    source = _with_words(tmp_path / "stanford", "[unused0]", "[unused1]")
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(source / "model.safetensors").items()}
    tensors["linear.weight"] = torch.randn(16, HIDDEN, generator=torch.Generator().manual_seed(1))
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["HF_ColBERT"]}))
    if metadata is not None:
        (source / "artifact.metadata").write_text(json.dumps(metadata))
    theirs = _read(source)
    queries, documents = QUERIES[:3], DOCUMENTS
    expected = theirs.similarity(alone(theirs.encode_query, queries), alone(theirs.encode_document, documents)).numpy()
    with LLM(str(source), dtype="float32") as llm:
        assert (llm.card.architecture, llm.card.dim) == ("HF_ColBERT", 16)
        for encode, texts, side in (
            (theirs.encode_query, queries, "query"),
            (theirs.encode_document, documents, "document"),
        ):
            _equal(_encode(llm, texts, side), alone(encode, texts))  # type: ignore[arg-type]
        scores = [answer.outputs.score for answer in llm.score(queries[0], documents, use_tqdm=False)]
        with pytest.raises(InputTooLong, match=f"is {110 if metadata else 320} tokens"):
            _encode(llm, [words(400)], "document")
    assert relative_error(np.array(scores, np.float32), expected[0]) < ROUNDING


REFUSALS: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown expansion": (
        "sentence_bert_config.json",
        {"query_expansion": {"strategy": "some", "length": 32}},
        "supported are strategy fixed or min",
    ),
    "expansion past the model": (
        "sentence_bert_config.json",
        {"query_expansion": {"strategy": "fixed", "length": 4_000}},
        "filled up to 4000 tokens; the model takes at most 320",
    ),
    "no token to expand with": (
        "sentence_bert_config.json",
        {"query_expansion": {"strategy": "fixed", "length": 32, "token": "[NONE]"}},
        "filled up with [NONE], which the tokenizer lacks",
    ),
    "filled up in front": ("tokenizer_config.json", {"padding_side": "left"}, "the tokenizer's padding_side is left"),
    "the layer of one vector": (
        "1_Dense/config.json",
        {"module_input_name": "sentence_embedding"},
        "supported here is 'token_embeddings'",
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_cannot_be_applied_exactly_is_refused(expanding: tuple[Any, Path], tmp_path: Path, refusal: str) -> None:
    name, changes, named = REFUSALS[refusal]
    shutil.copytree(expanding[1], tmp_path / "broken")
    file = tmp_path / "broken" / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CheckpointError) as refused:
        LLM(str(tmp_path / "broken"), dtype="float32")
    assert named in refused.value.detail


def test_a_module_that_merges_tokens_is_refused_by_name(expanding: tuple[Any, Path], tmp_path: Path) -> None:
    shutil.copytree(expanding[1], tmp_path / "broken")
    file = tmp_path / "broken" / "modules.json"
    modules = json.loads(file.read_text())
    modules.append({"idx": 4, "name": "4", "path": "", "type": "sentence_transformers.x.HierarchicalTokenPooling"})
    file.write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="lists a HierarchicalTokenPooling module"):
        LLM(str(tmp_path / "broken"), dtype="float32")


def _sides(model: Any) -> list[tuple[Any, list[str], InputType]]:
    return [(model.encode_query, QUERIES, "query"), (model.encode_document, DOCUMENTS, "document")]


def _encode(llm: LLM, texts: list[str], side: InputType | None) -> list[Rows]:
    return [answer.outputs.data.numpy() for answer in llm.encode(texts, input_type=side, use_tqdm=False)]


def _equal(actual: list[Rows], expected: list[Rows]) -> None:
    assert [len(rows) for rows in actual] == [len(rows) for rows in expected]
    for ours, theirs in zip(actual, expected, strict=True):
        assert relative_error(ours, theirs) < ROUNDING


def _with_words(directory: Path, *more: str) -> Path:
    """A BERT that knows some more words, which its tokenizer would take apart or lower-case."""
    model, tokenizer = FAMILIES["bert"].build()
    model.config.vocab_size += len(more)
    model = type(model)(model.config)
    sharpen(model, seed=4)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["vocab"] |= {word: len(tokenizer) + index for index, word in enumerate(more)}
    file.write_text(json.dumps(content), encoding="utf-8")
    return directory


def _transformer(directory: Path) -> Any:
    from sentence_transformers.base.modules.transformer import Transformer

    return Transformer(str(directory), model_kwargs={"attn_implementation": "eager"})


def _read(directory: Path) -> Any:
    return MultiVectorEncoder(
        str(directory), device="cpu", local_files_only=True, model_kwargs={"attn_implementation": "eager"}
    ).eval()
