"""Many messages and parts without a text: they are refused before they are judged, or read off the event loop."""

import threading
from typing import Any

import httpx
import pytest

from deployments.http import body as bodies
from pooling.media import Content, Conversation
from pooling.request import PoolingRequest
from tests.deployments.local import LocalRouter

EMPTY: dict[str, Any] = {"type": "text", "text": ""}
MOST = 16_384


@pytest.mark.parametrize(
    ("path", "field", "given"),
    [
        ("/v1/embeddings", "messages", [{"role": "user", "content": [EMPTY] * MOST}]),
        ("/v1/embeddings", "input", [{"role": "user", "content": ""}] * MOST),
        ("/pooling", "messages", [[]] * MOST),
        ("/tokenize", "messages", [{"role": "user"}] * MOST),
        ("/rerank", "documents", [{"content": []}] * (MOST // 2)),
        ("/score", "queries", [{"text": ""}] * MOST),
        ("/v2/embed", "inputs", [{"content": []}] * (MOST // 2)),
        ("/invocations", "messages", [{"role": "user", "content": [EMPTY] * MOST}]),
    ],
)
async def test_many_are_refused_before_they_are_judged(
    app: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str, field: str, given: Any
) -> None:
    judged: list[Any] = []
    monkeypatch.setattr(bodies, "judge", lambda *given: judged.append(given))
    response = await app.post(path, json={field: given})
    assert response.status_code == 400
    assert (
        f"more than {MOST} lists and objects, such as messages and their parts" in response.json()["error"]["message"]
    )
    assert not judged


async def test_tei_says_so_in_its_own_words(app: httpx.AsyncClient) -> None:
    response = await app.post("/predict", json={"inputs": [["a"]] * MOST})
    assert response.status_code == 422
    assert "lists and objects" in response.json()["error"]


async def test_braces_in_a_text_are_none(app: httpx.AsyncClient) -> None:
    response = await app.post("/v1/embeddings", json={"input": ["ba", "{" * 20_000], "truncate_prompt_tokens": -1})
    assert response.status_code == 200


@pytest.mark.parametrize("count", [1, 40])
async def test_many_empty_parts_are_read_off_the_event_loop(
    pictured: LocalRouter, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    model = pictured.pick("qwen", None)
    real, on_loop = model._intake.tokenize, []

    def seen(request: PoolingRequest) -> Any:
        on_loop.append(threading.current_thread() is threading.main_thread())
        return real(request)

    monkeypatch.setattr(model._intake, "tokenize", seen)
    await model.tokenize(PoolingRequest([Content(("ba", *[""] * count))]))
    await model.tokenize(PoolingRequest([Conversation((Content(("ba",)), *[Content(())] * count))]))
    await model.tokenize(PoolingRequest(["ba"]))
    assert on_loop == [count == 1, count == 1, True]


@pytest.mark.parametrize("count", [1, 40])
async def test_many_empty_messages_are_rendered_off_the_event_loop(
    local: LocalRouter, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    model = local.pick("chatty", None)
    real, on_loop = model._intake.tokenize_text, []

    def seen(*given: Any) -> Any:
        on_loop.append(threading.current_thread() is threading.main_thread())
        return real(*given)

    monkeypatch.setattr(model._intake, "tokenize_text", seen)
    await model.render([[{"role": "user", "content": ""}] * count])
    assert on_loop == [count == 1]
