"""/classify and the handle's classify and reward, against the class that transformers has."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pooling.errors import UnsupportedTask
from tests.deployments.local import LocalRouter
from tests.headed import Headed, HeadReference

TEXTS = ["ba be bi", "hello", "x"]


@pytest.fixture(scope="module")
def logits(models: dict[str, str]) -> np.ndarray:
    reference = HeadReference(Path(models["emotions"]), Headed("bert", "sequence"))
    return np.stack([reference.logits(text) for text in TEXTS])


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


async def test_each_input_has_its_labels_probabilities(app: httpx.AsyncClient, logits: np.ndarray) -> None:
    response = await app.post("/classify", json={"input": TEXTS}, headers={"x-request-id": "7"})
    body = response.json()
    assert (body["id"], body["object"], body["model"]) == ("classify-7", "list", "emotions")
    np.testing.assert_allclose([item["probs"] for item in body["data"]], softmax(logits), atol=1e-4)
    labels = [["joy", "fear", "anger"][column] for column in logits.argmax(axis=1)]
    assert [item["label"] for item in body["data"]] == labels
    assert len(set(labels)) > 1
    assert [(item["index"], item["num_classes"]) for item in body["data"]] == [(0, 3), (1, 3), (2, 3)]
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] > 9


@pytest.mark.parametrize("name", ["use_activation", "softmax", "normalize"])
async def test_logits_are_had_under_each_name(app: httpx.AsyncClient, logits: np.ndarray, name: str) -> None:
    body = (await app.post("/classify", json={"input": TEXTS, name: False})).json()
    np.testing.assert_allclose([item["probs"] for item in body["data"]], logits, atol=1e-4)


async def test_fields_of_other_routes_are_passed_over(app: httpx.AsyncClient) -> None:
    body = {"input": "ba", "dimensions": 3, "encoding_format": "float", "task": "embed", "nonsense": {"a": 1}}
    assert (await app.post("/classify", json=body)).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"input": "a", "model": "minilm"}, 501, "The model does not support Classification API"),
        ({"input": "a", "model": "nope"}, 404, "The model `nope` does not exist."),
        ({"input": []}, 400, "You must pass at least one prompt"),
        ({}, 400, "'missing'"),
        ({"input": "a", "softmax": True, "use_activation": True}, 400, "give softmax or use_activation, not both"),
        ({"input": "a", "cache_salt": ""}, 400, "Parameter 'cache_salt' must be a non-empty string if provided."),
        ({"input": "a", "mm_processor_kwargs": {}}, 400, "Per-request mm_processor_kwargs are disabled by default"),
        ({"input": "a", "priority": 2**63}, 400, "'less_than'"),
    ],
)
async def test_refusals(app: httpx.AsyncClient, body: dict[str, Any], status: int, said: str) -> None:
    response = await app.post("/classify", json=body)
    assert response.status_code == status
    assert said in response.json()["error"]["message"]


async def test_what_vllms_clients_send_is_taken(app: httpx.AsyncClient) -> None:
    body = {"input": "a", "user": "me", "priority": -7, "cache_salt": "salt", "request_id": "r1", "extra": [1]}
    response = await app.post("/classify", json=body)
    assert (response.status_code, response.json()["id"]) == (200, "classify-r1")


async def test_the_handle_gives_arrays(local: LocalRouter, logits: np.ndarray) -> None:
    probabilities = await local.classify(TEXTS)
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (3, 3))
    np.testing.assert_allclose(probabilities, softmax(logits), atol=1e-4)
    np.testing.assert_allclose(await local.classify(TEXTS, use_activation=False), logits, atol=1e-4)
    with pytest.raises(UnsupportedTask):
        await local.classify("a", model="minilm")


async def test_rewards_are_an_array_for_each_input(local: LocalRouter) -> None:
    rewards = await local.reward(["ba be", "ba"], model="reranker")
    assert [rows.shape for rows in rewards] == [(4, 1), (3, 1)]
    assert (await local.reward("ba", model="reranker"))[0].dtype == np.float32
