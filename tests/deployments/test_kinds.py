"""Models of more than one vector, and of templates, over HTTP: what the offline API answers, in each client's shape."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from deployments.config import ServiceConfig
from deployments.http.app import build_http
from pooling import LLM
from tests.deployments.local import LocalRouter
from tests.scorers import write as write_scorer
from tests.sentence_encoders import backbone, bge_m3, multi_vector, splade

QUERY, DOCUMENTS = "ba be", ["bi bo, ba", "ba be", "du . di"]
COLBERT = {"prompts": {"query": "[unused0] ", "document": "the "}}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root: Path = tmp_path_factory.mktemp("kinds")
    for name in ("m3", "colbert", "splade", "judge"):
        (root / name).mkdir()
    bge_m3(root / "m3")
    expanded = backbone(root / "colbert" / "layers", query_expansion={"strategy": "fixed", "length": 32})
    multi_vector(root / "colbert", expanded, **COLBERT)
    splade(root / "splade")
    write_scorer("qwen3-reranker", root / "judge")
    return {
        name: str(root / name / ("model" if name in ("colbert", "splade") else ""))
        for name in ("m3", "colbert", "splade", "judge")
    }


@pytest.fixture(scope="module")
def router(sources: dict[str, str]) -> Iterator[LocalRouter]:
    tasks = {"judge": {"task": "score"}}
    models = [
        {"source": source, "name": name, "dtype": "float32", **tasks.get(name, {})} for name, source in sources.items()
    ]
    router = LocalRouter(ServiceConfig.model_validate({"models": models}))
    yield router
    router.close()


@pytest.fixture
async def kinds(router: LocalRouter) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(build_http(router), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://local") as client:
        yield client


async def post(kinds: httpx.AsyncClient, path: str, **body: Any) -> Any:
    response = await kinds.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("model", ["m3", "splade"])
async def test_sparse_weights_are_those_of_the_offline_api(
    kinds: httpx.AsyncClient, sources: dict[str, str], model: str
) -> None:
    found = await post(kinds, "/embed_sparse", model=model, inputs=DOCUMENTS)
    with LLM(sources[model], dtype="float32") as llm:
        assert sum(map(len, found)) > 2
        for words, output in zip(found, llm.embed_sparse(DOCUMENTS, use_tqdm=False), strict=True):
            weights = {word["index"]: word["value"] for word in words}
            assert weights == pytest.approx(output.outputs.weights, abs=1e-5)


async def test_a_model_that_weighs_no_words_has_no_sparse_answer(kinds: httpx.AsyncClient) -> None:
    response = await kinds.post("/embed_sparse", json={"model": "colbert", "inputs": "a"})
    assert response.status_code == 424
    assert "has no sparse embeddings" in response.json()["error"]


@pytest.mark.parametrize("path", ["/score", "/rerank"])
async def test_a_multi_vector_model_reads_each_side_in_its_way(
    kinds: httpx.AsyncClient, sources: dict[str, str], path: str
) -> None:
    with LLM(sources["colbert"], dtype="float32") as llm:
        expected = [one.outputs.score for one in llm.score(QUERY, DOCUMENTS, use_tqdm=False)]
    first = "queries" if path == "/score" else "query"
    answer = await post(kinds, path, model="colbert", **{first: QUERY, "documents": DOCUMENTS})
    if path == "/score":
        found = [one["score"] for one in answer["data"]]
    else:
        found = [one["relevance_score"] for one in sorted(answer["results"], key=lambda one: one["index"])]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert answer["usage"]["prompt_tokens"] > 32  # the query alone is filled up to so many


async def test_the_side_of_a_text_is_told_by_input_type(kinds: httpx.AsyncClient, sources: dict[str, str]) -> None:
    with LLM(sources["colbert"], dtype="float32") as llm:
        for told, side in (("query", "query"), ("passage", "document"), (None, None)):
            answer = await post(kinds, "/pooling", model="colbert", input=QUERY, input_type=told)
            (output,) = llm.encode(QUERY, input_type=side, use_tqdm=False)  # type: ignore[arg-type]  # a literal
            np.testing.assert_allclose(answer["data"][0]["data"], output.outputs.data, atol=1e-5)


async def test_several_tasks_are_answered_in_a_line(kinds: httpx.AsyncClient, sources: dict[str, str]) -> None:
    task = "embed&token_classify"
    answer = await post(kinds, "/pooling", model="m3", input=DOCUMENTS, task=task)
    with LLM(sources["m3"], dtype="float32") as llm:
        for item, output in zip(answer["data"], llm.encode(DOCUMENTS, pooling_task=task, use_tqdm=False), strict=True):
            np.testing.assert_allclose(item["data"], output.outputs.data, atol=1e-5)
    response = await kinds.post("/pooling", json={"model": "m3", "input": "a", "task": "embed&nothing"})
    assert response.status_code == 400
    assert "'literal_error'" in response.json()["error"]["message"]


async def test_a_judge_is_told_the_instruction(
    kinds: httpx.AsyncClient, router: LocalRouter, sources: dict[str, str]
) -> None:
    scores: dict[Any, list[float]] = {}
    with LLM(sources["judge"], task="score", dtype="float32") as llm:
        for told in (None, "Find the odd one"):
            scores[told] = [one.outputs.score for one in llm.score(QUERY, DOCUMENTS, instruction=told, use_tqdm=False)]
    assert np.abs(np.subtract(*scores.values())).max() > 1e-4  # it matters
    body = {"model": "judge", "queries": QUERY, "documents": DOCUMENTS}
    for told, change in (
        (None, {}),
        ("Find the odd one", {"instruction": "Find the odd one"}),
        ("Find the odd one", {"instruction": "x", "chat_template_kwargs": {"instruction": "Find the odd one"}}),
    ):
        found = [one["score"] for one in (await post(kinds, "/score", **body, **change))["data"]]
        np.testing.assert_allclose(found, scores[told], atol=1e-5)
    by_handle = await router.score(QUERY, DOCUMENTS, model="judge", instruction="Find the odd one")
    np.testing.assert_allclose(by_handle, scores["Find the odd one"], atol=1e-5)


@pytest.mark.parametrize("kind", ["int8", "uint8", "binary", "ubinary"])
async def test_integers_are_those_of_the_offline_api(
    kinds: httpx.AsyncClient, sources: dict[str, str], kind: Any
) -> None:
    with LLM(sources["m3"], dtype="float32") as llm:
        expected = [one.outputs.embedding for one in llm.embed(DOCUMENTS, precision=kind, use_tqdm=False)]
    answer = await post(kinds, "/v1/embeddings", model="m3", input=DOCUMENTS, embedding_types=[kind])
    found = [item["embedding"] for item in answer["data"]]
    assert all(isinstance(value, int) for value in found[0])
    np.testing.assert_allclose(found, expected, atol=1 if "int8" in kind else 0)  # a last bit may round the other way
    cohere = await post(kinds, "/v2/embed", model="m3", texts=DOCUMENTS, embedding_types=[kind, "float"])
    assert cohere["embeddings"][kind] == found


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"embedding_types": ["int8"], "encoding_format": "base64"}, "not both: each says how a vector is written"),
        ({"embedding_types": ["int8", "float"]}, "at most 1 item"),
        ({"embedding_types": ["int4"]}, "'literal_error'"),
        ({"embedding_types": ["int8"], "use_activation": False}, "need a range that is fixed"),
        ({"input_type": "sideways"}, "'literal_error'"),
    ],
)
async def test_what_no_vector_can_be_is_refused(kinds: httpx.AsyncClient, body: dict[str, Any], said: str) -> None:
    response = await kinds.post("/v1/embeddings", json={"model": "m3", "input": "a", **body})
    assert response.status_code == 400, response.text
    assert said in response.json()["error"]["message"]
