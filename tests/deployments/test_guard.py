"""Keys and limits, on an app that has small ones; two routers share its load."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from ray import serve

from deployments.http.auth import OPEN_PATHS
from pooling.errors import Overloaded
from tests.deployments.conftest import KEYS, Service, wait_until
from tests.texts import words

EMBED = "/v1/embeddings"


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/docs", "/openapi.json", "/nope"])
def test_every_other_route_asks_for_a_key(service: Service, path: str) -> None:
    with service.guarded(key=None) as client:
        response = client.get(path)
    assert (response.status_code, response.json()) == (401, {"error": "Unauthorized"})
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_the_probes_ask_for_none(service: Service, path: str) -> None:
    with service.guarded(key=None) as client:
        assert client.get(path).status_code == 200


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens(service: Service, key: str) -> None:
    with service.guarded(key) as client:
        assert client.post(EMBED, json={"input": "a"}).status_code == 200
        assert client.get("/v1/models").status_code == 200


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer first-ke", "Bearer first-keys", "first-key", "Basic first-key"]
)
def test_what_is_almost_a_key_does_not_open(service: Service, header: str) -> None:
    with service.guarded(key=None) as client:
        assert client.post(EMBED, json={"input": "a"}, headers={"authorization": header}).status_code == 401


def test_an_answer_over_the_limit_is_refused_before_it_is_computed(guarded: httpx.Client) -> None:
    texts = {"input": [words(50), words(50)]}
    assert guarded.post("/pooling", json=texts | {"task": "embed"}).status_code == 200
    response = guarded.post("/pooling", json=texts | {"task": "token_embed"})
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message.startswith("the answer to these 2 inputs has 26624 bytes, but at most 20000 are allowed")
    # One input alone is never too much: there would be no way to get it.
    assert guarded.post("/pooling", json={"input": words(100), "task": "token_embed"}).status_code == 200


def test_the_openai_client_sends_its_key(service: Service) -> None:
    with openai.OpenAI(base_url=f"{service.guarded_url}/v1", api_key=KEYS[1], max_retries=0) as client:
        assert len(client.embeddings.create(model="bert", input="a").data[0].embedding) == 64
    with (
        openai.OpenAI(base_url=f"{service.guarded_url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.embeddings.create(model="bert", input="a")


@pytest.mark.parametrize("declared", [True, False], ids=["content-length", "chunked"])
def test_a_body_over_the_limit_is_413(guarded: httpx.Client, declared: bool) -> None:
    body = b'{"input": "%s"}' % (b"x" * 30_000)

    def chunks() -> Iterator[bytes]:
        yield from (body[start : start + 1_000] for start in range(0, len(body), 1_000))

    response = guarded.post(EMBED, content=body if declared else chunks(), headers={"content-type": "application/json"})
    assert response.status_code == 413
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("Payload Too Large", 413)
    assert "more than 20000 bytes" in error["message"]


def test_too_many_inputs_are_400(guarded: httpx.Client) -> None:
    assert guarded.post(EMBED, json={"input": ["a"] * 4}).status_code == 200
    response = guarded.post(EMBED, json={"input": ["a"] * 5})
    assert response.status_code == 400
    assert "5 inputs in one request, but at most 4 are allowed (max_inputs)" in response.json()["error"]["message"]


def test_a_full_queue_is_429_and_what_was_let_in_is_answered(guarded: httpx.Client) -> None:
    body = {"input": words(190)}  # of 200 tokens a router: one may wait, not two

    def post(_: int) -> httpx.Response:
        return guarded.post(EMBED, json=body)

    with ThreadPoolExecutor(16) as threads:
        responses = list(threads.map(post, range(160)))
    statuses = {response.status_code for response in responses}
    assert statuses == {200, 429}
    refused = next(response for response in responses if response.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "Too Many Requests"
    assert "The engine is currently busy and cannot accept new requests." in refused.json()["error"]["message"]
    assert guarded.post(EMBED, json=body).status_code == 200  # and it is over when it is over


def test_a_request_over_the_whole_limit_passes_when_nothing_else_waits(guarded: httpx.Client) -> None:
    wait_until(lambda: guarded.post(EMBED, json={"input": [words(100)] * 4}).status_code == 200)


def test_a_handle_meets_the_same_limits(service: Service) -> None:
    handle: Any = serve.get_app_handle("guarded")
    answers = [handle.embed.remote(words(190)) for _ in range(60)]
    outcomes = []
    for answer in answers:
        try:
            outcomes.append(answer.result().shape)
        except Overloaded:
            outcomes.append("refused")
    assert set(outcomes) == {(1, 64), "refused"}


def test_the_page_of_one_router_has_the_counts_of_both(guarded: httpx.Client) -> None:
    for _ in range(20):
        guarded.post(EMBED, json={"input": "a"})
    lines = [line for line in guarded.get("/metrics").text.splitlines() if line.startswith("raypool_queued_tokens{")]
    assert len(lines) == 2
    assert lines[0] != lines[1]
