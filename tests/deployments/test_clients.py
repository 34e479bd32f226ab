"""Clients that were written for other servers, unchanged, against the real Serve app."""

import json
from collections.abc import Iterator
from typing import Any

import cohere
import httpx
import httpx2
import numpy as np
import openai
import pytest
import tiktoken
from huggingface_hub import InferenceClient, constants
from huggingface_hub.errors import HfHubHTTPError
from langchain_openai import OpenAIEmbeddings
from transformers import AutoTokenizer

from tests.deployments.conftest import Service

TEXTS = ["ba be", "bi", "a longer text of several words"]


@pytest.fixture
def cohere_client(service: Service) -> Iterator[Any]:
    with httpx.Client(trust_env=False, timeout=30) as connection:
        yield cohere.ClientV2(api_key="none", base_url=service.url, httpx_client=connection)


@pytest.fixture
def expected(handle: Any) -> np.ndarray:
    return np.asarray(handle.embed.remote(TEXTS, model="chatty").result())


def test_cohere_embeds(cohere_client: Any, expected: np.ndarray) -> None:
    answer = cohere_client.embed(
        model="chatty", texts=TEXTS, input_type="empty", embedding_types=["float", "binary", "ubinary", "base64"]
    )
    np.testing.assert_allclose(answer.embeddings.float_, expected, atol=2e-6)
    bits = np.packbits(expected >= 0, axis=1)
    np.testing.assert_array_equal(answer.embeddings.ubinary, bits)
    np.testing.assert_array_equal(answer.embeddings.binary, bits.astype(int) - 128)
    assert len(answer.embeddings.base64) == 3
    assert answer.texts == TEXTS
    assert answer.meta.billed_units.input_tokens > 10


def test_cohere_reranks(cohere_client: Any, handle: Any) -> None:
    answer = cohere_client.rerank(model="reranker", query="ba be", documents=TEXTS, top_n=2)
    best = handle.rerank.remote("ba be", TEXTS, model="reranker", top_n=2).result()
    assert [one.index for one in answer.results] == [index for index, _ in best]
    np.testing.assert_allclose([one.relevance_score for one in answer.results], [score for _, score in best], atol=1e-5)
    assert answer.meta.billed_units.search_units == 1


def test_cohere_raises_its_own_errors(cohere_client: Any) -> None:
    with pytest.raises(cohere.NotFoundError):
        cohere_client.embed(model="nope", texts=TEXTS, input_type="query", embedding_types=["float"])
    with pytest.raises(cohere.BadRequestError):
        cohere_client.rerank(model="reranker", query="a", documents=[])


class OwnTokens:
    """Stands for a vocabulary of tiktoken, which would have to be fetched: the model's own."""

    def __init__(self, directory: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(directory)

    def encode_ordinary(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids

    encode = encode_ordinary


@pytest.mark.parametrize("sends", ["token ids", "texts"])
def test_langchain_embeds(
    service: Service, models: dict[str, str], expected: np.ndarray, monkeypatch: pytest.MonkeyPatch, sends: str
) -> None:
    """By default it tokenises by itself, and sends ids."""
    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda _: OwnTokens(models["chatty"]))
    sent = []
    hooks = {"request": [lambda request: sent.append(json.loads(request.read()))]}
    with httpx2.Client(trust_env=False, timeout=30, event_hooks=hooks) as connection:
        embeddings = OpenAIEmbeddings(
            model="chatty",
            base_url=f"{service.url}/v1",
            api_key="none",  # type: ignore[arg-type]
            http_client=connection,
            check_embedding_ctx_length=sends == "token ids",
        )
        found = embeddings.embed_documents(TEXTS)
    first = sent[0]["input"][0]
    assert isinstance(first, list) is (sends == "token ids")
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_the_inference_client_of_the_hub_works_on_teis_routes(
    service: Service, handle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # it asks the service alone
    client = InferenceClient(token="none")
    found = client.feature_extraction(TEXTS[0], model=f"{service.url}/embed", normalize=True, truncate=True)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, handle.embed.remote(TEXTS[0]).result(), atol=2e-6)
    similar = client.sentence_similarity("ba be", TEXTS, model=f"{service.url}/similarity")
    np.testing.assert_allclose(similar, handle.score.remote("ba be", TEXTS).result(), atol=1e-5)
    # TEI answers a single text with a flat list, of which this client takes the first: the likeliest label.
    likeliest: Any = client.text_classification("ba be bi", model=f"{service.url}/predict")
    probabilities = handle.classify.remote("ba be bi").result()[0]
    assert likeliest.label == ["joy", "fear", "anger"][probabilities.argmax()]
    assert likeliest.score == pytest.approx(float(probabilities.max()), abs=1e-5)
    with pytest.raises(HfHubHTTPError, match="422"):
        client.feature_extraction("a", model=f"{service.url}/embed", prompt_name="none")


def test_the_openai_client_sees_every_format(service: Service, handle: Any) -> None:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        cut = client.embeddings.create(model="chatty", input=TEXTS, dimensions=16)
        raw = client.with_raw_response.embeddings.create(
            model="chatty", input=TEXTS, encoding_format="float", extra_body={"embed_dtype": "bfloat16", "priority": 3}
        )
    np.testing.assert_allclose(
        [item.embedding for item in cut.data],
        handle.embed.remote(TEXTS, model="chatty", dimensions=16).result(),
        atol=2e-6,
    )
    assert raw.http_response.status_code == 200
