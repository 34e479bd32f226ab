"""Score and rerank: by a cross-encoder and by an embedding model, in every client's shape."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np
import pytest

from deployments.scorer import ranked
from pooling.errors import InvalidRequest, UnsupportedTask
from pooling.loading.card import Scoring
from pooling.request import PooledOutput
from pooling.scoring import compare, compare_all
from tests.deployments.local import LocalRouter
from tests.headed import Headed, HeadReference

QUERY, DOCUMENTS = "ba be", ["bi bo", "ba be", "du", "ba di be bo"]
MODELS = ["minilm", "reranker"]


@pytest.fixture(scope="module")
def reference(models: dict[str, str]) -> np.ndarray:
    """The cross-encoder's own scores of the documents."""
    head = HeadReference(Path(models["reranker"]), Headed("bert", "sequence"))
    return np.array([1 / (1 + np.exp(-head.logits(QUERY, document)[0])) for document in DOCUMENTS])


async def cosines(local: LocalRouter, first: list[str], second: list[str]) -> np.ndarray:
    a, b = await local.embed(first, model="minilm"), await local.embed(second, model="minilm")
    return np.asarray((a * b).sum(axis=1))


async def scores(app: httpx.AsyncClient, path: str = "/score", **body: Any) -> list[float]:
    response = await app.post(path, json=body)
    assert response.status_code == 200, response.text
    return [item["score"] for item in response.json()["data"]]


async def test_a_cross_encoder_reads_the_pairs(app: httpx.AsyncClient, reference: np.ndarray) -> None:
    assert np.ptp(reference) > 1e-3
    found = await scores(app, model="reranker", text_1=QUERY, text_2=DOCUMENTS)
    np.testing.assert_allclose(found, reference, atol=1e-4)
    turned = await scores(app, model="reranker", text_1=DOCUMENTS[3], text_2=QUERY)
    assert abs(turned[0] - found[3]) > 1e-5  # which text is which matters


async def test_an_embedding_models_vectors_are_compared(app: httpx.AsyncClient, local: LocalRouter) -> None:
    found = await scores(app, model="minilm", text_1=QUERY, text_2=DOCUMENTS)
    np.testing.assert_allclose(found, await cosines(local, [QUERY] * 4, DOCUMENTS), atol=1e-5)
    assert found[1] == pytest.approx(1.0, abs=1e-6)
    raw = await scores(app, model="minilm", text_1=QUERY, text_2=DOCUMENTS, use_activation=False)
    np.testing.assert_allclose(raw, found, atol=1e-5)  # a cosine does not depend on lengths


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items")]
)
async def test_every_pair_of_names_means_the_same(app: httpx.AsyncClient, model: str, names: tuple[str, str]) -> None:
    body = {names[0]: QUERY, names[1]: DOCUMENTS}
    expected = await scores(app, model=model, text_1=QUERY, text_2=DOCUMENTS)
    np.testing.assert_allclose(await scores(app, path="/v1/score", model=model, **body), expected, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
async def test_many_queries_meet_their_documents_one_by_one(app: httpx.AsyncClient, model: str) -> None:
    queries = [QUERY, "du", "bi", "ba"]
    together = await scores(app, model=model, text_1=queries, text_2=DOCUMENTS)
    alone = [(await scores(app, model=model, text_1=q, text_2=d))[0] for q, d in zip(queries, DOCUMENTS, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-5)


async def test_a_score_has_the_shape_that_clients_know(app: httpx.AsyncClient) -> None:
    body = {"model": "minilm", "text_1": "hello", "text_2": ["a", "b"]}
    found = (await app.post("/score", json=body, headers={"x-request-id": "7"})).json()
    assert (found["id"], found["object"], found["model"]) == ("score-7", "list", "minilm")
    assert [(item["index"], item["object"]) for item in found["data"]] == [(0, "score"), (1, "score")]
    assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] == 9  # the query is read once
    pairs = (await app.post("/score", json={**body, "model": "reranker", "text_1": "a"})).json()
    assert pairs["usage"]["prompt_tokens"] == 10  # and here in each pair


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize("model", MODELS)
async def test_the_best_documents_come_first(app: httpx.AsyncClient, path: str, model: str) -> None:
    body = {"model": model, "query": QUERY, "documents": DOCUMENTS}
    plain = await scores(app, model=model, text_1=QUERY, text_2=DOCUMENTS)
    found = (await app.post(path, json=body, headers={"x-request-id": "7"})).json()
    assert (found["id"], found["model"]) == ("score-7", model)
    assert set(found["usage"]) == {"prompt_tokens", "total_tokens"}
    order = sorted(range(4), key=lambda index: -plain[index])
    assert [item["index"] for item in found["results"]] == order
    assert order != [0, 1, 2, 3]
    np.testing.assert_allclose(
        [item["relevance_score"] for item in found["results"]], [plain[i] for i in order], atol=1e-6
    )
    assert [item["document"] for item in found["results"]] == [
        {"text": DOCUMENTS[i], "multi_modal": None} for i in order
    ]
    assert found["meta"]["billed_units"] == {"search_units": 1}


async def test_rerank_takes_what_cohere_and_jina_send(app: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {"model": "reranker", "query": QUERY, "documents": DOCUMENTS}
    whole = (await app.post("/rerank", json=body)).json()["results"]
    as_objects = {**body, "documents": [{"text": text} for text in DOCUMENTS]}
    assert (await app.post("/rerank", json=as_objects)).json()["results"] == whole
    for top_n in (None, 0, 9):
        assert (await app.post("/rerank", json={**body, "top_n": top_n})).json()["results"] == whole
    assert (await app.post("/rerank", json={**body, "top_n": 2})).json()["results"] == whole[:2]
    bare = (await app.post("/rerank", json={**body, "return_documents": False})).json()["results"]
    assert [set(item) for item in bare] == [{"index", "relevance_score"}] * 4
    assert (await app.post("/rerank", json={**body, "documents": "ba"})).json()["results"][0]["index"] == 0


async def test_equal_scores_keep_the_order_of_the_documents(app: httpx.AsyncClient) -> None:
    body = {"model": "minilm", "query": "b", "documents": ["a", "b", "a", "b", "a"]}
    found = (await app.post("/rerank", json=body)).json()["results"]
    assert [item["index"] for item in found] == [1, 3, 0, 2, 4]
    assert ranked(np.array([1.0, 2.0, 1.0], np.float32), 2) == [1, 0]
    many = np.tile(np.array([1.0, 2.0], np.float32), 500)
    assert ranked(many, None) == [*range(1, 1_000, 2), *range(0, 1_000, 2)]


@pytest.mark.parametrize("model", MODELS)
async def test_each_side_may_be_cut_by_itself(app: httpx.AsyncClient, model: str) -> None:
    long = "ba di be bo"
    for name, sides, cut in (
        ("max_tokens_per_doc", ("ba", long), ("ba", "ba di")),
        ("max_tokens_per_query", (long, "ba"), ("ba di", "ba")),
    ):
        limit = 2 if model == "reranker" else _tokens(cut[1] if name.endswith("doc") else cut[0])
        found = await scores(app, model=model, text_1=sides[0], text_2=sides[1], **{name: limit})
        short = await scores(app, model=model, text_1=cut[0], text_2=cut[1])
        np.testing.assert_allclose(found, short, atol=1e-5)
        whole = await scores(app, model=model, text_1=sides[0], text_2=sides[1])
        assert abs(whole[0] - found[0]) > 1e-5


def _tokens(text: str) -> int:
    return len(text.split())


async def test_a_whole_pair_is_cut_where_that_is_asked(app: httpx.AsyncClient) -> None:
    body = {"model": "reranker", "text_1": "ba", "text_2": "ba " * 400, "truncate_prompt_tokens": -1}
    response = await app.post("/score", json=body)
    assert response.json()["usage"]["prompt_tokens"] == 320


@pytest.mark.parametrize("path", ["/score", "/rerank"])
@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"model": "emotions"}, 501, "The model does not support"),
        ({"model": "nope"}, 404, "The model `nope` does not exist."),
        ({"documents": []}, 400, "At least one text_pair element must be given"),
        ({"documents": None}, 400, "'string_type'"),
        ({"documents": [3]}, 400, "'string_type'"),
        (
            {"documents": ["a", {"content": [{"type": "text", "text": "a"}]}]},
            400,
            "MultiModalParam is not supported for Bert",
        ),
        ({"max_tokens_per_doc": -1}, 400, "max_tokens_per_doc must be a non-negative integer"),
        ({"max_tokens_per_query": 9999}, 400, "max_tokens_per_query (9999) must be less than max_model_len"),
        ({"instruction": "find"}, 400, "instruction"),
        ({"chat_template_kwargs": {"instruction": "find"}}, 400, "instruction"),
        ({"chat_template_kwargs": {"tone": "x"}}, 400, "chat_template_kwargs has tone; allowed is a text as `instruc"),
        ({"chat_template": "x"}, 400, "Refused request with untrusted chat template."),
        ({"documents": ["a", "ba " * 400]}, 400, "maximum context length is"),
        ({"documents": ["a"] * 2_049}, 400, "at most 2048 are allowed (max_inputs)"),
    ],
)
@pytest.mark.parametrize("model", MODELS)
async def test_refusals(
    app: httpx.AsyncClient, path: str, change: dict[str, Any], status: int, said: str, model: str
) -> None:
    first = "queries" if path == "/score" else "query"
    response = await app.post(path, json={"model": model, first: "a", "documents": ["a"], **change})
    assert response.status_code == status, response.text
    assert said in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/score", {"text_1": ["a", "b"], "text_2": "a"}, "Input lengths must be either 1:1, 1:N or N:N"),
        ("/score", {"text_1": [], "text_2": "a"}, "At least one text element must be given"),
        ("/score", {"text_1": "a", "documents": "a"}, "'loc': 'body.text_2'"),
        ("/score", {"queries": "a", "text_2": "a"}, "'loc': 'body.documents'"),
        ("/score", {}, "'missing'"),
        ("/rerank", {"query": ["a"], "documents": ["a"]}, "body.query"),
        ("/rerank", {"query": "a", "documents": ["a"], "top_n": -1}, "'greater_than_equal'"),
    ],
)
async def test_what_makes_no_pairs_is_refused(app: httpx.AsyncClient, path: str, body: Any, said: str) -> None:
    response = await app.post(path, json=body)
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]


async def test_the_handle_gives_scores_and_ranks(local: LocalRouter, reference: np.ndarray) -> None:
    found = await local.score(QUERY, DOCUMENTS, model="reranker")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference, atol=1e-4)
    best = await local.rerank(QUERY, DOCUMENTS, model="reranker", top_n=2)
    assert [index for index, _ in best] == np.argsort(-reference)[:2].tolist()
    assert [score for _, score in best] == [float(found[index]) for index, _ in best]
    with pytest.raises(UnsupportedTask, match="it has 3 labels, and a score needs one"):
        await local.score("a", "b", model="emotions")
    with pytest.raises(InvalidRequest, match="At least one text_pair"):
        await local.score("a", [])


@pytest.mark.parametrize("kind", sorted(set(get_args(Scoring)) - {"cross_encoder"}))
@pytest.mark.parametrize("queries", [1, 6])
def test_all_pairs_at_once_are_compared_as_each_alone(kind: Any, queries: int) -> None:
    draw = np.random.default_rng(0)

    def answers(count: int) -> PooledOutput:
        if kind not in ("max_sim", "mean_max_sim"):
            return PooledOutput(draw.standard_normal((count, 8)).astype(np.float32))
        lengths = draw.integers(1, 5, count).astype(np.int32)
        return PooledOutput(draw.standard_normal((lengths.sum(), 8)).astype(np.float32), lengths)

    first, second = answers(queries), answers(6)
    partners = first.rows() * 6 if queries == 1 else first.rows()
    alone = [compare(kind, a, b) for a, b in zip(partners, second.rows(), strict=True)]
    np.testing.assert_allclose(compare_all(kind, first, second), alone, rtol=1e-6)


async def test_late_interaction_sums_over_tokens(local: LocalRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    served = local.pick("chatty", None)
    monkeypatch.setattr(served._intake, "card", replace(served.card, scoring="max_sim"))
    found = await local.score("ba be", ["ba be", "du"], model="chatty")
    assert found[0] == pytest.approx(4.0, abs=1e-4)  # as many tokens as there are, each its own best
    assert found[1] < 4.0
