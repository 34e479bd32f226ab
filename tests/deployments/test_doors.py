"""What guards the doors, without Ray: keys from a file, pages of other origins, limits on what comes in."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.config import Limits, ServiceConfig
from deployments.http.app import build_http
from pooling.errors import ConfigError
from tests.checkpoints import MINILM
from tests.deployments.local import LocalRouter

ORIGIN = "https://page.example"
MODELS = [{"source": MINILM, "name": "minilm"}]


@pytest.fixture
async def guarded(local: LocalRouter, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    monkeypatch.setattr(local, "api_keys", ["one", "two"])
    monkeypatch.setattr(local, "cors_allow_origins", [ORIGIN])
    transport = httpx.ASGITransport(build_http(local))
    async with httpx.AsyncClient(transport=transport, base_url="http://local") as client:
        yield client


def config(**settings: Any) -> ServiceConfig:
    return ServiceConfig.model_validate({"models": MODELS, **settings})


def test_keys_come_from_the_file_as_well(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("  two \n\nthree\n")
    assert config(api_keys=["one"], api_keys_file=str(file)).all_api_keys() == ["one", "two", "three"]
    assert config(api_keys=["one"]).all_api_keys() == ["one"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        (b"\n \n", "holds no key"),
        (b"\xff\xfe", "cannot be read: it is not text"),
    ],
)
def test_a_file_without_keys_opens_nothing(tmp_path: Path, content: bytes | None, said: str) -> None:
    """An empty list would mean that no key is asked for."""
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        config(api_keys_file=str(file)).all_api_keys()


async def test_every_route_but_the_probes_asks_for_a_key(guarded: httpx.AsyncClient) -> None:
    paths = (await guarded.get("/openapi.json", headers={"authorization": "Bearer two"})).json()["paths"]
    assert len(paths) > 20
    for path, operations in paths.items():
        for method in operations:
            response = await guarded.request(method, path)
            assert (response.status_code == 401) is (path not in ("/health", "/ping", "/version")), (method, path)
            if response.status_code == 401:
                assert response.json() == {"error": "Unauthorized"}


async def test_a_page_of_an_allowed_origin_may_call(guarded: httpx.AsyncClient) -> None:
    asks = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    leave = await guarded.options("/v1/embeddings", headers=asks)
    assert (leave.status_code, leave.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert "authorization" in leave.headers["access-control-allow-headers"]
    headers = {"origin": ORIGIN, "authorization": "Bearer one"}
    answer = await guarded.post("/v1/embeddings", json={"input": "a"}, headers=headers)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ORIGIN)
    refusal = await guarded.post("/v1/embeddings", json={"input": "a"}, headers={"origin": ORIGIN})
    assert (refusal.status_code, refusal.headers["access-control-allow-origin"]) == (401, ORIGIN)


async def test_a_page_of_another_origin_may_not(guarded: httpx.AsyncClient) -> None:
    asks = {"origin": "https://other.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in (await guarded.options("/v1/embeddings", headers=asks)).headers


async def test_without_the_setting_no_page_is_let_in(app: httpx.AsyncClient) -> None:
    plain = await app.post("/v1/embeddings", json={"input": "a"}, headers={"origin": ORIGIN})
    assert plain.status_code == 200
    assert "access-control-allow-origin" not in plain.headers


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ["a", "x" * 21]}),
        ("/v1/embeddings", {"input": "x" * 21, "truncate_prompt_tokens": -1}),
        ("/v1/embeddings", {"input": [7] * 21}),
        ("/v1/embeddings", {"model": "chatty", "messages": [{"role": "user", "content": "x" * 21}]}),
        ("/classify", {"input": "x" * 21}),
        ("/score", {"model": "reranker", "text_1": "x" * 11, "text_2": "y" * 11}),
        ("/v2/embed", {"texts": ["x" * 21]}),
        ("/tokenize", {"prompt": "x" * 21}),
    ],
)
async def test_a_text_of_too_many_characters_is_not_even_tokenised(
    local: LocalRouter, app: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    for model in local.models:
        monkeypatch.setattr(model, "_limits", Limits(max_input_chars=20))
    response = await app.post(path, json=body)
    assert response.status_code == 400
    assert "but at most 20 are allowed (max_input_chars)" in response.json()["error"]["message"]


async def test_load_counts_the_requests_that_are_being_answered(local: LocalRouter, app: httpx.AsyncClient) -> None:
    assert (await app.get("/load")).json() == {"server_load": 0}
    many = [
        asyncio.ensure_future(app.post("/v1/embeddings", json={"input": [f"a b {number}" for number in range(200)]}))
        for _ in range(3)
    ]
    while (await app.get("/load")).json() != {"server_load": 3}:
        assert not all(one.done() for one in many)
        await asyncio.sleep(0.001)
    await asyncio.gather(*many)
    assert (await app.get("/load")).json() == {"server_load": 0}
