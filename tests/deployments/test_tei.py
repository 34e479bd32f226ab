"""TEI's routes, in its shapes and with its statuses, and SageMaker's door."""

from typing import Any

import httpx
import numpy as np
import pytest

from tests.deployments.local import LocalRouter


async def post(app: httpx.AsyncClient, path: str, **body: Any) -> Any:
    response = await app.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("path", ["/embed", "/", "/invocations"])
async def test_embed_answers_lists_of_lists_whatever_comes(
    app: httpx.AsyncClient, local: LocalRouter, path: str
) -> None:
    ids = (await post(app, "/tokenize", prompt="hello"))["tokens"]
    one = await local.embed("hello")
    for inputs, count in (("hello", 1), (ids, 1), (["hello"], 1), ([ids], 1), (["hello", ids], 2)):
        found = await post(app, path, inputs=inputs)
        np.testing.assert_allclose(found, np.repeat(one, count, axis=0), atol=1e-5)
    raw = await post(app, path, inputs="hello", normalize=False)
    assert abs(np.linalg.norm(raw) - 1) > 0.1


async def test_embed_cuts_unless_told_not_to(app: httpx.AsyncClient, local: LocalRouter) -> None:
    long = "hello " * 300 + "world " * 300
    cut = await local.embed(long, truncate_prompt_tokens=-1)
    for truncate in ({}, {"truncate": None}, {"truncate": True}, {"truncate": True, "truncation_direction": "right"}):
        np.testing.assert_allclose(await post(app, "/embed", inputs=long, **truncate), cut, atol=1e-5)
    left = await post(app, "/embed", inputs=long, truncation_direction="Left")
    assert abs(left - cut).max() > 1e-3
    response = await app.post("/embed", json={"inputs": long, "truncate": False})
    assert (response.status_code, response.json()["error_type"]) == (422, "Validation")


async def test_embed_knows_prompts_and_dimensions(app: httpx.AsyncClient, local: LocalRouter) -> None:
    found = await post(app, "/embed", model="chatty", inputs="ba", prompt_name="query", dimensions=16)
    expected = await local.embed("query: ba", model="chatty", dimensions=16)
    np.testing.assert_allclose(found, expected, atol=1e-5)


async def test_embed_all_has_a_raw_vector_for_each_token(app: httpx.AsyncClient, local: LocalRouter) -> None:
    found = await post(app, "/embed_all", inputs=["ba", "ba be"], model="chatty")
    output = await local.pool(["ba", "ba be"], task="token_embed", model="chatty", normalize=False)
    assert [len(rows) for rows in found] == [3, 4]
    for rows, expected in zip(found, output.rows(), strict=True):
        np.testing.assert_allclose(rows, expected, atol=1e-4)
    assert abs(np.linalg.norm(found[0][0]) - 1) > 0.1


@pytest.mark.parametrize("path", ["/predict", "/", "/invocations"])
async def test_predict_ranks_labels_and_takes_a_flat_list_for_a_pair(
    app: httpx.AsyncClient, local: LocalRouter, path: str
) -> None:
    labels = ["joy", "fear", "anger"]
    single = await post(app, path, inputs="ba be bi", model="emotions")
    (row,) = await local.classify("ba be bi", model="emotions")
    order = np.argsort(-row)
    assert [item["label"] for item in single] == [labels[column] for column in order]
    np.testing.assert_allclose([item["score"] for item in single], row[order], atol=1e-5)
    pair = await post(app, path, inputs=["ba", "be"], model="emotions")
    batch = await post(app, path, inputs=[["ba be bi"], ["ba", "be"], ["ba be bi"]], model="emotions")
    for found, alone in zip(batch, [single, pair, single], strict=True):
        assert [item["label"] for item in found] == [item["label"] for item in alone]
        np.testing.assert_allclose([item["score"] for item in found], [item["score"] for item in alone], atol=1e-5)
    assert sum(item["score"] for item in pair) == pytest.approx(1, abs=1e-5)
    raw = await post(app, path, inputs="ba be bi", model="emotions", raw_scores=True)
    assert abs(sum(item["score"] for item in raw) - 1) > 0.01


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/", "/invocations"])
async def test_rerank_with_texts_answers_a_bare_list(app: httpx.AsyncClient, local: LocalRouter, path: str) -> None:
    texts = ["bi bo", "ba be", "du"]
    expected = await local.rerank("ba be", texts, model="reranker")
    found = await post(app, path, query="ba be", texts=texts, model="reranker")
    assert [item["index"] for item in found] == [index for index, _ in expected]
    np.testing.assert_allclose([item["score"] for item in found], [score for _, score in expected], atol=1e-5)
    assert [set(item) for item in found] == [{"index", "score"}] * 3
    full = await post(app, path, query="ba be", texts=texts, model="reranker", return_text=True, raw_scores=True)
    assert [item["text"] for item in full] == [texts[item["index"]] for item in full]
    logits = np.array([item["score"] for item in full])
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), [item["score"] for item in found], atol=1e-5)


@pytest.mark.parametrize("path", ["/similarity", "/", "/invocations"])
async def test_similarity_is_a_cosine_for_each_sentence(app: httpx.AsyncClient, local: LocalRouter, path: str) -> None:
    found = await post(app, path, inputs={"source_sentence": "hello", "sentences": ["world", "hello"]})
    np.testing.assert_allclose(found, await local.score("hello", ["world", "hello"]), atol=1e-5)
    assert found[1] == pytest.approx(1, abs=1e-5)
    cut = {"inputs": {"source_sentence": "a", "sentences": ["a " * 400]}, "parameters": {"truncate": True}}
    assert len(await post(app, "/similarity", **cut)) == 1


async def test_decode_leaves_special_tokens_out(app: httpx.AsyncClient) -> None:
    ids = (await post(app, "/tokenize", prompt="hello world"))["tokens"]
    assert await post(app, "/decode", ids=ids) == ["hello world"]
    assert await post(app, "/decode", ids=[ids, ids[:2]]) == ["hello world", "hello"]
    assert await post(app, "/decode", ids=ids, skip_special_tokens=False) == ["[CLS] hello world [SEP]"]


async def test_info_tells_of_the_default_model(app: httpx.AsyncClient) -> None:
    found = (await app.get("/info")).json()
    assert (found["model_id"], found["model_type"]) == ("minilm", {"embedding": {"pooling": "mean"}})
    assert (found["max_input_length"], found["max_client_batch_size"], found["model_dtype"]) == (256, 2048, "float32")


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "said"),
    [
        ("/embed", {}, 422, "Validation", "'missing'"),
        ("/embed", {"inputs": 3}, 422, "Validation", "'string_type'"),
        ("/embed", {"inputs": ""}, 400, "Empty", "`inputs` cannot be empty"),
        ("/embed", {"inputs": []}, 400, "Empty", "`inputs` cannot be empty"),
        ("/embed", {"inputs": ["a", ""]}, 400, "Empty", "`inputs` cannot be empty"),
        ("/embed", {"inputs": "a", "model": "emotions"}, 424, "Backend", "Model is not an embedding model"),
        ("/embed", {"inputs": "a", "model": "nope"}, 404, "Validation", "does not exist"),
        ("/embed", {"inputs": "a", "dimensions": 7}, 422, "Validation", "does not support Matryoshka"),
        ("/embed", {"inputs": "a", "prompt_name": "x"}, 422, "Validation", "Unknown prompt_name"),
        ("/embed", {"inputs": ["a"] * 2_049}, 422, "Validation", "at most 2048 are allowed"),
        ("/embed", {"inputs": "a", "truncation_direction": "Up"}, 422, "Validation", "'literal_error'"),
        ("/embed_all", {"inputs": "a", "model": "emotions"}, 424, "Backend", "Model is not an embedding model"),
        ("/predict", {"inputs": "a", "model": "minilm"}, 424, "Backend", "not a classifier"),
        ("/predict", {"inputs": ["a", "b", "c"]}, 422, "Validation", "one text or a pair of two, got 3"),
        ("/predict", {"inputs": []}, 422, "Validation", "got 0"),
        ("/predict", {"inputs": ["", ""]}, 400, "Empty", "cannot be empty"),
        ("/rerank", {"query": "a", "texts": []}, 400, "Empty", "`texts` cannot be empty"),
        ("/rerank", {"query": "a", "texts": ["b"], "model": "emotions"}, 424, "Backend", "not a re-ranker"),
        ("/rerank", {"texts": ["b"]}, 422, "Validation", "body.query"),
        (
            "/similarity",
            {"inputs": {"source_sentence": "a", "sentences": []}},
            400,
            "Empty",
            "`inputs.sentences` cannot",
        ),
        ("/similarity", {"inputs": "a"}, 422, "Validation", "'model_type'"),
        ("/decode", {"ids": []}, 400, "Empty", "`ids` cannot be empty"),
        ("/decode", {"ids": [-1]}, 422, "Validation", "'greater_than_equal'"),
        ("/", {"inputs": "a", "model": "nope"}, 404, "Validation", "does not exist"),
        ("/", [], 422, "Validation", "'model_type'"),
    ],
)
async def test_refusals(app: httpx.AsyncClient, path: str, body: Any, status: int, kind: str, said: str) -> None:
    response = await app.post(path, json=body)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error", "error_type"}
    assert response.json()["error_type"] == kind
    assert said in response.json()["error"]


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [(b"{", "application/json", 400), (b"{}", "text/plain", 415), (b"", "application/json", 400)],
)
async def test_what_is_no_json_has_teis_status(
    app: httpx.AsyncClient, content: bytes, content_type: str, status: int
) -> None:
    response = await app.post("/embed", content=content, headers={"content-type": content_type})
    assert (response.status_code, response.json()["error_type"]) == (status, "Validation")


@pytest.mark.parametrize(
    ("body", "answers"),
    [
        ({"input": "a"}, "embd"),
        ({"input": "a", "model": "emotions"}, "classify"),
        ({"messages": [{"role": "user", "content": "a"}], "model": "chatty"}, "embd"),
        ({"query": "a", "documents": ["b"]}, "score"),
        ({"text_1": "a", "text_2": "b"}, "score"),
        ({"input": "a", "task": "token_classify", "model": "emotions"}, "classify"),  # as in vLLM: `task` is ignored
    ],
)
async def test_an_invocation_finds_its_route(app: httpx.AsyncClient, body: Any, answers: str) -> None:
    assert (await post(app, "/invocations", **body))["id"].startswith(answers + "-")


async def test_an_invocation_for_nothing_is_refused(app: httpx.AsyncClient) -> None:
    response = await app.post("/invocations", json={"nonsense": 1})
    assert response.status_code == 400
    assert "Cannot find suitable handler for request. Expected one of: ['Emb" in response.json()["error"]["message"]
