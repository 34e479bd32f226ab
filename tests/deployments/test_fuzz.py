"""A thousand malformed bodies, over real HTTP: none gives a 500, a hang or a traceback, and others are served on."""

import http.client
import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.deployments.conftest import Service

BODIES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": ["ba", "be"], "encoding_format": "float", "dimensions": None, "user": "me"},
    "/pooling": {"input": [[1, 2], [3]], "task": "token_embed", "truncate_prompt_tokens": 5, "priority": 1},
    "/classify": {"input": "ba", "use_activation": True, "add_special_tokens": True},
    "/score": {"text_1": "ba", "text_2": ["be", "bi"], "max_tokens_per_doc": 3},
    "/rerank": {"query": "ba", "documents": ["be", {"text": "bi"}], "top_n": 1, "return_documents": True},
    "/v2/rerank": {"query": "ba", "texts": ["be"], "raw_scores": True},
    "/v2/embed": {"texts": ["ba"], "embedding_types": ["binary"], "truncate": "END", "max_tokens": 4},
    "/tokenize": {"prompt": "ba", "return_token_strs": True},
    "/detokenize": {"tokens": [1, 2, 3]},
    "/invocations": {"input": "ba", "model": "emotions"},
    "/embed": {"inputs": "ba", "truncate": True, "normalize": True, "dimensions": None},
    "/embed_all": {"inputs": ["ba"], "truncation_direction": "Left"},
    "/predict": {"inputs": [["ba"], ["ba", "be"]], "raw_scores": True},
    "/similarity": {"inputs": {"source_sentence": "ba", "sentences": ["be"]}, "parameters": {"truncate": True}},
    "/decode": {"ids": [[1, 2]], "skip_special_tokens": True},
    "/": {"inputs": "ba"},
}
CHAT = {"model": "chatty", "messages": [{"role": "user", "content": [{"type": "text", "text": "ba"}]}]}
ODD: list[Any] = [
    None, True, 0, -1, 1.5, 2**31, 2**63, -(2**63) - 1, 2**70, 1e308, "", "\x00", "\ud800", "ba" * 5_000, [], [[]],
    {}, {"a": {"b": [1]}}, [None], ["a", 1], [1, "a"], [[1], "a"], [{}], "NaN", "../../etc/passwd", "{{ 7 * 7 }}",
]  # fmt: skip


def malformed(draw: random.Random) -> tuple[str, bytes]:
    """A valid body with some of it replaced, renamed or dropped, then perhaps broken as bytes."""
    path = draw.choice(list(BODIES))
    body: Any = dict(draw.choice([BODIES[path], BODIES[path], CHAT]))
    for _ in range(draw.randint(1, 3)):
        name = draw.choice([*body, "model", "messages", "input", "truncate_prompt_tokens", "chat_template_kwargs"])
        change = draw.random()
        if change < 0.7:
            body[name] = draw.choice(ODD)
        elif change < 0.85:
            body.pop(name, None)
        else:
            body[name] = [body.get(name)] * draw.randint(0, 3)
    if draw.random() < 0.05:
        body = draw.choice(ODD)
    raw = json.dumps(body).encode("utf-8", "surrogatepass")
    if draw.random() < 0.3 and raw:
        place = draw.randrange(len(raw))
        raw = draw.choice(
            [
                raw[:place],
                raw[:place] + bytes(draw.randrange(256) for _ in range(4)) + raw[place:],
                raw.replace(b'"', b"", 1),
                raw.replace(b":", b": NaN, ", 1),
                b"[" * draw.choice([10, 2_000]) + raw,
            ]
        )
    return path, raw


def test_no_malformed_body_is_a_fault_of_ours(service: Service) -> None:
    draw = random.Random(20_26)
    requests = [malformed(draw) for _ in range(1_000)]
    with service.client() as client:

        def send(request: tuple[str, bytes]) -> httpx.Response:
            headers = {"content-type": "application/json", "x-request-timeout-seconds": "30"}
            return client.post(request[0], content=request[1], headers=headers)

        with ThreadPoolExecutor(8) as threads:
            responses = list(threads.map(send, requests))
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200
    statuses = [response.status_code for response in responses]
    assert statuses.count(400) > 300  # they are malformed,
    assert statuses.count(200) > 50  # and close enough to what is not to get deep
    for (path, raw), response in zip(requests, responses, strict=True):
        assert response.status_code in (200, 400, 404, 422, 424, 501), (path, raw[:500], response.text[:500])
        assert not any(mark in response.text for mark in ("Traceback", "site-packages", ".py", "0x7f"))
        assert len(response.text) < 100_000 or response.status_code == 200


@pytest.mark.parametrize("path", sorted(BODIES))
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 50_000,
        b'{"a":' * 50_000,
        b'{"input": "' + b"x" * 10_000_000 + b'"}',
        b"\xff\xfe{}",
        b'{"input": NaN}',
        b"null",
    ],
    ids=["deep list", "deep object", "10 MB", "UTF-16", "NaN", "null"],
)
def test_what_is_hard_to_read_is_refused_soon(client: httpx.Client, path: str, body: bytes) -> None:
    response = client.post(path, content=body, headers={"content-type": "application/json"}, timeout=20)
    assert response.status_code in (400, 422), response.text[:500]
    assert len(response.text) < 5_000


def test_a_hundred_thousand_inputs_are_refused_and_a_neighbour_is_served(service: Service) -> None:
    many = json.dumps({"input": ["a"] * 100_000}).encode()
    with service.client() as client, ThreadPoolExecutor(2) as threads:
        headers = {"content-type": "application/json"}
        refused = [threads.submit(client.post, "/v1/embeddings", content=many, headers=headers) for _ in range(4)]
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200
        for one in refused:
            assert one.result().status_code == 400
            assert "at most 2048 are allowed (max_inputs)" in one.result().json()["error"]["message"]


@pytest.mark.parametrize("path", sorted(BODIES))
def test_a_body_that_is_cut_off_disturbs_nobody(service: Service, client: httpx.Client, path: str) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port))
    connection.putrequest("POST", path)
    connection.putheader("content-type", "application/json")
    connection.putheader("content-length", "1000")
    connection.endheaders(b'{"input": "')
    connection.close()
    assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200
