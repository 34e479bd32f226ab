"""Every status that the service is documented to answer with, each from the real Serve app."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from deployments.http.errors import STATUSES
from deployments.http.tei_errors import TEI_STATUSES
from tests.deployments.conftest import Service
from tests.deployments.models import POISON
from tests.texts import words

LONG = [[7] * 249 + [number] for number in range(1_000)]  # many seconds of work
HURRY = {"x-request-timeout-seconds": "0.5"}
TEXT = {"content-type": "text/plain"}

# what, method, path, what is sent, status, `type` or `error_type` of the body, part of its message
VLLM: list[tuple[str, str, str, dict[str, Any], int, str, str]] = [
    ("shape", "POST", "/v1/embeddings", {"json": {}}, 400, "Bad Request", "'missing'"),
    (
        "no JSON",
        "POST",
        "/pooling",
        {"content": b"{", "headers": {"content-type": "application/json"}},
        400,
        "Bad Request",
        "JSON decode error",
    ),
    (
        "content type",
        "POST",
        "/classify",
        {"content": b"{}", "headers": TEXT},
        400,
        "Bad Request",
        "Unsupported Media Type",
    ),
    ("content", "POST", "/score", {"json": {"text_1": [], "text_2": "a"}}, 400, "BadRequestError", "At least one text"),
    (
        "model",
        "POST",
        "/rerank",
        {"json": {"query": "a", "documents": ["b"], "model": "nope"}},
        404,
        "NotFoundError",
        "does not exist",
    ),
    (
        "NaN",
        "POST",
        "/v1/embeddings",
        {"json": {"input": ["a", POISON], "model": "poisoned"}},
        500,
        "InternalServerError",
        "the model answered NaN or infinity for input 1",
    ),
    (
        "NaN at Cohere's",
        "POST",
        "/v2/embed",
        {"json": {"texts": [POISON], "model": "poisoned"}},
        500,
        "InternalServerError",
        "NaN",
    ),
    (
        "no such API",
        "POST",
        "/classify",
        {"json": {"input": "a", "model": "minilm"}},
        501,
        "NotImplementedError",
        "does not support Classification API",
    ),
    (
        "deadline",
        "POST",
        "/v1/embeddings",
        {"json": {"input": LONG}, "headers": HURRY},
        504,
        "Gateway Timeout",
        "was not answered within",
    ),
]
TEI: list[tuple[str, str, str, dict[str, Any], int, str, str]] = [
    (
        "no JSON",
        "POST",
        "/embed",
        {"content": b"{", "headers": {"content-type": "application/json"}},
        400,
        "Validation",
        "JSON decode error",
    ),
    ("nothing", "POST", "/embed", {"json": {"inputs": ""}}, 400, "Empty", "cannot be empty"),
    ("model", "POST", "/predict", {"json": {"inputs": "a", "model": "nope"}}, 404, "Validation", "does not exist"),
    (
        "content type",
        "POST",
        "/embed",
        {"content": b"{}", "headers": TEXT},
        415,
        "Validation",
        "Unsupported Media Type",
    ),
    ("shape", "POST", "/similarity", {"json": {}}, 422, "Validation", "'missing'"),
    (
        "content",
        "POST",
        "/embed",
        {"json": {"inputs": words(400), "truncate": False}},
        422,
        "Validation",
        "maximum context",
    ),
    (
        "no such API",
        "POST",
        "/predict",
        {"json": {"inputs": "a", "model": "minilm"}},
        424,
        "Backend",
        "not a classifier",
    ),
    ("NaN", "POST", "/embed", {"json": {"inputs": POISON, "model": "poisoned"}}, 424, "Backend", "NaN"),
    (
        "deadline",
        "POST",
        "/embed",
        {"json": {"inputs": LONG}, "headers": HURRY},
        504,
        "Backend",
        "was not answered within",
    ),
]


@pytest.mark.parametrize("row", VLLM, ids=lambda row: row[0])
def test_vllms_refusals(client: httpx.Client, row: Any) -> None:
    _, method, path, sent, status, kind, said = row
    response = client.request(method, path, **sent)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["code"], error["type"]) == (status, kind)
    assert said in error["message"]
    assert "null" not in response.text.replace('"param":null', "")


@pytest.mark.parametrize("row", TEI, ids=lambda row: row[0])
def test_teis_refusals(client: httpx.Client, row: Any) -> None:
    _, method, path, sent, status, kind, said = row
    response = client.request(method, path, **sent)
    assert response.status_code == status, response.text
    assert response.json()["error_type"] == kind
    assert said in response.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/nope", 404, {"detail": "Not Found"}),
        ("POST", "/v1/completions", 404, {"detail": "Not Found"}),
        ("GET", "/v1/embeddings", 405, {"detail": "Method Not Allowed"}),
        ("DELETE", "/health", 405, {"detail": "Method Not Allowed"}),
    ],
)
def test_what_is_no_route(client: httpx.Client, method: str, path: str, status: int, body: Any) -> None:
    response = client.request(method, path)
    assert (response.status_code, response.json()) == (status, body)


def test_a_body_over_the_limit_and_no_key(service: Service, guarded: httpx.Client) -> None:
    def drops() -> Iterator[bytes]:
        for _ in range(30):
            yield b"x" * 1_000

    for path, kind in (("/rerank", "Payload Too Large"), ("/embed", "Validation")):
        response = guarded.post(path, content=drops(), headers={"content-type": "application/json"})
        assert response.status_code == 413
        assert kind in response.text
    with service.guarded(key=None) as stranger:
        response = stranger.post("/embed", json={"inputs": "a"})
    assert (response.status_code, response.json()) == (401, {"error": "Unauthorized"})


def test_no_documented_status_is_forgotten() -> None:
    """422, 429 and 503 have tests of their own, in test_images.py, test_guard.py and test_failure.py; 413 is above."""
    ours = {status for status, _ in STATUSES.values()} - {413, 422, 429, 503}
    assert ours == {row[4] for row in VLLM}
    theirs = {status for status, _ in TEI_STATUSES.values()} - {413, 429, 503, 500}  # 500 is what no error of ours has
    assert theirs == {row[4] for row in TEI}
