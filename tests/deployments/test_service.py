"""The whole path, for real: HTTP or a handle, HAProxy, router, engine replicas, and back."""

import base64
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from ray import serve

from pooling.llm import LLM
from pooling.media import Image
from pooling.request import PackedBatch
from tests.checkpoints import MINILM
from tests.deployments.conftest import STEP_TOKENS, Service
from tests.encoded import data_uri, drawn, encoded
from tests.texts import words

TEXTS = ["hello world", "", "Größe und 中文", "a much longer text " * 20, "hello world"]
ROUNDING = 2e-6  # batches of other inputs are summed in another order


@pytest.fixture(scope="module")
def llm() -> Any:
    with LLM(MINILM, dtype="float32") as llm:
        yield llm


@pytest.fixture(scope="module")
def expected(llm: LLM) -> np.ndarray:
    return np.array([output.outputs.embedding for output in llm.embed(TEXTS, use_tqdm=False)], np.float32)


def embeddings(client: httpx.Client, **body: Any) -> np.ndarray:
    response = client.post("/v1/embeddings", json=body)
    assert response.status_code == 200, response.text
    items = response.json()["data"]
    assert [item["index"] for item in items] == list(range(len(items)))
    return np.array([item["embedding"] for item in items], np.float32)


def test_http_and_handle_and_engine_give_the_same_vectors(client: httpx.Client, handle: Any, expected: Any) -> None:
    over_http = embeddings(client, input=TEXTS)
    by_handle = handle.embed.remote(TEXTS).result()
    assert by_handle.dtype == np.float32
    assert by_handle.shape == (len(TEXTS), 384)
    np.testing.assert_allclose(over_http, expected, atol=ROUNDING)
    np.testing.assert_allclose(by_handle, expected, atol=ROUNDING)


def test_the_openai_client_works_unchanged(service: Service, expected: Any) -> None:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model="minilm", input=TEXTS)  # asks for base64 on its own
        as_floats = client.embeddings.create(model="minilm", input=TEXTS, encoding_format="float")
        models = client.models.list()
    np.testing.assert_allclose([item.embedding for item in answer.data], expected, atol=ROUNDING)
    np.testing.assert_allclose([item.embedding for item in as_floats.data], expected, atol=ROUNDING)
    assert (answer.object, answer.model, answer.data[4].index) == ("list", "minilm", 4)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 80
    assert [model.id for model in models.data] == [
        "minilm",
        "bert",
        "chatty",
        "emotions",
        "reranker",
        "poisoned",
        "clip",
    ]


def test_base64_is_the_bytes_of_the_float32_vector(client: httpx.Client) -> None:
    response = client.post("/v1/embeddings", json={"input": "hello world", "encoding_format": "base64"})
    raw = base64.b64decode(response.json()["data"][0]["embedding"])
    np.testing.assert_array_equal(np.frombuffer(raw, "<f4"), embeddings(client, input="hello world")[0])


def test_the_answer_has_the_shape_that_clients_know(client: httpx.Client) -> None:
    response = client.post("/v1/embeddings", json={"input": "hello world", "user": "me"}, headers={"x-request-id": "7"})
    body = response.json()
    assert response.headers["content-type"] == "application/json"
    assert set(body) == {"id", "object", "created", "model", "data", "usage"}
    assert body["id"] == "embd-7"
    assert body["model"] == "minilm"
    assert set(body["data"][0]) == {"index", "object", "embedding"}
    assert body["data"][0]["object"] == "embedding"
    assert body["usage"] == {
        "prompt_tokens": 4,
        "total_tokens": 4,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }


def test_token_ids_stand_for_the_text_they_were_made_from(client: httpx.Client, handle: Any) -> None:
    batch: PackedBatch = handle.tokenize.remote(["hello world", "another text"]).result()
    first = batch.slice(0, 1).ids.tolist()
    second = batch.slice(1, 2).ids.tolist()
    texts = embeddings(client, input=["hello world", "another text"])
    np.testing.assert_allclose(embeddings(client, input=[first, second]), texts, atol=ROUNDING)
    np.testing.assert_allclose(embeddings(client, input=first), texts[:1], atol=ROUNDING)
    np.testing.assert_allclose(handle.embed.remote(batch.slice(0, 1).ids).result(), texts[:1], atol=ROUNDING)


def test_options_reach_the_engine(client: httpx.Client, handle: Any, expected: Any) -> None:
    raw = embeddings(client, input="hello world", use_activation=False)
    alias = embeddings(client, input="hello world", normalize=False)
    assert abs(np.linalg.norm(raw) - 1) > 0.1
    np.testing.assert_array_equal(raw, alias)
    np.testing.assert_allclose(raw / np.linalg.norm(raw), expected[:1], atol=ROUNDING)
    np.testing.assert_array_equal(handle.embed.remote("hello world", normalize=False).result(), raw)
    full = embeddings(client, input="hello world", dimensions=384)
    np.testing.assert_allclose(full, expected[:1], atol=ROUNDING)
    cut = client.post("/v1/embeddings", json={"input": "one two three four five", "truncate_prompt_tokens": 4})
    assert cut.json()["usage"]["prompt_tokens"] == 4
    bare = client.post("/v1/embeddings", json={"input": "hello world", "add_special_tokens": False})
    assert bare.json()["usage"]["prompt_tokens"] == 2
    long = words(1_000)
    assert handle.embed.remote(long, truncate_prompt_tokens=-1).result().shape == (1, 384)


def test_pooling_serves_every_task_of_a_model(client: httpx.Client, handle: Any, llm: LLM) -> None:
    body = {"input": ["hello world", "three more tokens"], "task": "token_embed"}
    response = client.post("/pooling", json=body, headers={"x-request-id": "7"}).json()
    assert (response["id"], response["model"], response["object"]) == ("pooling-7", "minilm", "list")
    assert [item["object"] for item in response["data"]] == ["pooling", "pooling"]
    expected = llm.encode(body["input"], pooling_task="token_embed", use_tqdm=False)
    by_handle = handle.pool.remote(body["input"], task="token_embed").result()
    for item, output, rows in zip(response["data"], expected, by_handle.rows(), strict=True):
        assert np.shape(item["data"]) == (len(output.prompt_token_ids), 384)
        np.testing.assert_allclose(item["data"], output.outputs.data, atol=ROUNDING)
        np.testing.assert_allclose(rows, output.outputs.data, atol=ROUNDING)
    by_default = client.post("/pooling", json={"input": "hello world"}).json()["data"][0]["data"]
    np.testing.assert_allclose([by_default], embeddings(client, input="hello world"), atol=ROUNDING)


def test_each_model_of_the_config_answers_by_its_name(client: httpx.Client, handle: Any) -> None:
    assert embeddings(client, input="x", model="minilm").shape == (1, 384)
    assert embeddings(client, input="x", model="bert").shape == (1, 64)
    for default in (None, ""):
        response = client.post("/v1/embeddings", json={"input": "x", "model": default})
        assert response.json()["model"] == "minilm"
    assert handle.embed.remote("x", model="bert").result().shape == (1, 64)


def test_a_request_cut_into_slices_is_answered_as_in_one_piece(client: httpx.Client, handle: Any) -> None:
    texts = [words(1 + 7 * index % 60, start=index) for index in range(96)]
    batch = handle.tokenize.remote(texts, model="bert").result()
    assert batch.tokens > 8 * STEP_TOKENS  # worth four slices, two for each replica
    before = _inputs_by_replica(client)
    whole = embeddings(client, input=texts, model="bert")
    by_handle = handle.pool.remote(texts, model="bert", task="token_embed").result()
    one_by_one = np.concatenate([handle.embed.remote(text, model="bert").result() for text in texts])
    np.testing.assert_allclose(whole, one_by_one, atol=2e-5)
    assert by_handle.data.shape == (batch.tokens, 64)
    np.testing.assert_array_equal(by_handle.lengths, batch.lengths)
    after = _inputs_by_replica(client)
    assert all(after[replica] > before.get(replica, 0) for replica in after)
    assert len(after) == 2


def test_many_clients_at_once_each_get_their_own_answer(client: httpx.Client, handle: Any) -> None:
    texts = [words(1 + index % 40, start=index) for index in range(200)]
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda text: embeddings(client, input=text)[0], texts))
    np.testing.assert_allclose(answers, handle.embed.remote(texts).result(), atol=ROUNDING)


def test_a_large_answer_passes_every_message_limit(handle: Any) -> None:
    """2,000 vectors for tokens of 384 numbers: 3 MB a slice of rows, more than gRPC takes by default in all."""
    texts = [words(100, start=index) for index in range(60)]
    output = handle.pool.remote(texts, task="token_embed").result()
    assert output.data.nbytes > 4 * 2**20
    assert len(output.rows()) == 60


async def test_a_job_may_await_the_handle_too(handle: Any) -> None:
    assert (await handle.embed.remote("hello world")).shape == (1, 384)


def test_images_travel_to_the_engines_and_count(client: httpx.Client, handle: Any, checkpoint: Any) -> None:
    """So many that a slice of them is more than Serve's messages take, if it goes whole."""
    pictures = [drawn(seed) for seed in range(200)]
    uris = [data_uri(encoded(picture)) for picture in pictures]
    answer = client.post("/v2/embed", json={"model": "clip", "images": uris, "embedding_types": ["float"]})
    assert answer.status_code == 200, answer.text
    by_handle = handle.embed.remote(["ba be", *pictures], model="clip").result()
    with LLM(str(checkpoint("clip")), dtype="float32") as llm:
        outputs = llm.embed(["ba be", *map(Image.of, pictures)], use_tqdm=False)
    expected = np.array([output.outputs.embedding for output in outputs], np.float32)
    np.testing.assert_allclose(answer.json()["embeddings"]["float"], expected[1:], atol=ROUNDING)
    np.testing.assert_allclose(by_handle, expected, atol=ROUNDING)
    assert answer.json()["meta"]["billed_units"] == {"input_tokens": 0, "image_tokens": 200 * 17}


def test_the_system_routes_tell_what_runs(client: httpx.Client) -> None:
    for method, path in [("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")]:
        response = client.request(method, path)
        assert (response.status_code, response.content) == (200, b"")
    assert client.get("/version").json() == {"version": "0.1.0"}
    cards = client.get("/v1/models").json()["data"]
    assert [(card["id"], card["max_model_len"]) for card in cards[:2]] == [("minilm", 256), ("bert", 300)]
    assert client.get("/openapi.json").json()["paths"]["/v1/embeddings"]["post"]["requestBody"]


def test_the_apps_handle_is_found_by_name(service: Service) -> None:
    assert serve.get_app_handle("raypool").embed.remote("x").result().shape == (1, 384)


def _inputs_by_replica(client: httpx.Client) -> dict[str, float]:
    """How many inputs each engine replica of the model bert has answered, as /metrics says."""
    time.sleep(1.1)  # what the page says is up to a second old
    lines = client.get("/metrics").text.splitlines()
    prefix = 'raypool_engine_inputs{model="bert",replica="'
    pairs = [line.removeprefix(prefix).split('"} ') for line in lines if line.startswith(prefix)]
    return {replica: float(count) for replica, count in pairs}
