"""Cohere's /v2/embed: types, prompts, cuts and refusals."""

import base64
from typing import Any

import httpx
import numpy as np
import pytest

from tests.deployments.local import LocalRouter

TEXTS = ["ba be", "bi"]


async def embed(app: httpx.AsyncClient, **body: Any) -> Any:
    response = await app.post("/v2/embed", json={"model": "chatty", **body})
    assert response.status_code == 200, response.text
    return response.json()


async def vectors(app: httpx.AsyncClient, **body: Any) -> np.ndarray:
    return np.array((await embed(app, **body))["embeddings"]["float"], np.float32)


async def test_every_type_is_made_of_the_same_vectors(app: httpx.AsyncClient, local: LocalRouter) -> None:
    types = ["float", "base64", "binary", "ubinary"]
    found = await embed(app, texts=TEXTS, embedding_types=types)
    assert list(found["embeddings"]) == types
    expected = await local.embed(TEXTS, model="chatty")
    np.testing.assert_allclose(found["embeddings"]["float"], expected, atol=1e-6)
    raw = [np.frombuffer(base64.b64decode(text), "<f4") for text in found["embeddings"]["base64"]]
    np.testing.assert_allclose(raw, expected, atol=1e-6)
    bits = np.packbits(expected >= 0, axis=1)
    assert 0 < bits.mean() < 255
    np.testing.assert_array_equal(found["embeddings"]["ubinary"], bits)
    np.testing.assert_array_equal(found["embeddings"]["binary"], bits.astype(int) - 128)


async def test_the_answer_has_coheres_shape(app: httpx.AsyncClient) -> None:
    response = await app.post("/v2/embed", json={"model": "chatty", "texts": TEXTS}, headers={"x-request-id": "7"})
    found = response.json()
    assert set(found) == {"id", "embeddings", "texts", "meta", "response_type"}
    assert (found["id"], found["texts"], found["response_type"]) == ("embd-7", TEXTS, "embeddings_by_type")
    assert list(found["embeddings"]) == ["float"]
    assert found["meta"] == {
        "api_version": {"version": "2"},
        "billed_units": {"input_tokens": 7, "image_tokens": 0},
    }


async def test_output_dimension_is_a_matryoshka_size(app: httpx.AsyncClient) -> None:
    cut = await vectors(app, texts=TEXTS, output_dimension=16)
    assert cut.shape == (2, 16)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-5)


async def test_an_input_type_is_a_prompt(app: httpx.AsyncClient, local: LocalRouter) -> None:
    """As a system message where the model has a template for chats, which chatty has."""
    ids = (
        await app.post(
            "/tokenize",
            json={"model": "chatty", "prompt": "system: query: \nuser: ba be\n", "add_special_tokens": False},
        )
    ).json()["tokens"]
    expected = await local.embed([ids], model="chatty")
    np.testing.assert_allclose(await vectors(app, texts=["ba be"], input_type="query"), expected, atol=1e-6)
    plain = await vectors(app, texts=["ba be"])
    np.testing.assert_allclose(await vectors(app, texts=["ba be"], input_type="empty"), plain, atol=1e-6)
    assert abs(expected - plain).max() > 1e-3


async def test_inputs_of_parts_go_through_the_template(app: httpx.AsyncClient) -> None:
    found = await embed(app, inputs=[{"content": [{"type": "text", "text": "ba be"}]}])
    assert "texts" not in found
    chat = await app.post(
        "/v1/embeddings", json={"model": "chatty", "messages": [{"role": "user", "content": "ba be"}]}
    )
    np.testing.assert_allclose(found["embeddings"]["float"][0], chat.json()["data"][0]["embedding"], atol=1e-6)


async def test_texts_are_cut_at_the_end_that_is_asked(app: httpx.AsyncClient, local: LocalRouter) -> None:
    long = "ba " * 200 + "be " * 200
    at_end = await local.embed(long, model="chatty", truncate_prompt_tokens=-1)
    np.testing.assert_allclose(await vectors(app, texts=[long]), at_end, atol=1e-6)  # END is the default
    at_start = await vectors(app, texts=[long], truncate="START")
    assert abs(at_start - at_end).max() > 1e-3
    assert (await embed(app, texts=["ba be bi bo"], max_tokens=4))["meta"]["billed_units"]["input_tokens"] == 4
    assert (await embed(app, texts=["ba"], max_tokens=4, truncate="NONE"))["meta"]["billed_units"]["input_tokens"] == 3


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 400, "Exactly one of texts, images, or inputs must be provided, and it must be non-empty"),
        ({"texts": []}, 400, "Exactly one of texts, images, or inputs must be provided"),
        ({"texts": ["a"], "images": ["b"]}, 400, "Exactly one of texts, images, or inputs must be provided"),
        ({"images": ["data:x"]}, 400, "At most 0 image(s)"),
        ({"inputs": [{"content": [{"type": "image_url"}]}]}, 400, "At most 0 image(s)"),
        ({"inputs": [{"content": [{"type": "text", "text": "a"}]}], "model": "minilm"}, 400, "default chat template"),
        ({"texts": ["a"], "embedding_types": ["int3"]}, 400, "'literal_error'"),
        (
            {"texts": ["a"], "embedding_types": ["binary"], "output_dimension": 12},
            400,
            "must be a multiple of 8 for binary embedding types, but got 12.",
        ),
        ({"texts": ["a"], "output_dimension": 17}, 400, "only supports Matryoshka dimensions [12, 16, 32], got 17."),
        (
            {"texts": ["a"], "input_type": "z"},
            400,
            "Unsupported input_type 'z'. Supported values: document, empty, query",
        ),
        ({"texts": ["a"], "input_type": "z", "model": "minilm"}, 400, "This model does not define any input_type task"),
        ({"texts": ["ba " * 400], "truncate": "NONE"}, 400, "maximum context length is 300 tokens"),
        (
            {"texts": ["ba be bi"], "truncate": "NONE", "max_tokens": 3},
            400,
            "Input of 5 tokens exceeds max_tokens=3 with truncate=NONE.",
        ),
        (
            {"texts": ["a"], "max_tokens": 9_999},
            400,
            "truncate_prompt_tokens=9999 cannot be greater than max_model_len = 300.",
        ),
        ({"texts": ["a"], "max_tokens": 0}, 400, "The decoder prompt cannot be empty"),
        ({"texts": ["a"], "truncate": "MIDDLE"}, 400, "'literal_error'"),
        ({"texts": ["a"], "model": "emotions"}, 501, "The model does not support Embeddings API"),
        ({"texts": ["a"], "model": "nope"}, 404, "The model `nope` does not exist."),
    ],
)
async def test_refusals(app: httpx.AsyncClient, body: dict[str, Any], status: int, said: str) -> None:
    response = await app.post("/v2/embed", json={"model": "chatty", **body})
    assert response.status_code == status, response.text
    assert said in response.json()["error"]["message"]
