"""Every refusal over real HTTP: its status, its body, and that nothing else is disturbed by it."""

import http.client
import re
from typing import Any

import httpx
import openai
import pytest

from pooling.errors import InvalidRequest, UnknownModel
from tests.deployments.conftest import Service
from tests.texts import words

EMBED, POOL = "/v1/embeddings", "/pooling"
BAD_BODY, BAD_REQUEST = (400, "Bad Request"), (400, "BadRequestError")

# (what it is, route, body, (status, type), param, what the message says)
REFUSALS: list[tuple[str, str, Any, tuple[int, str], str | None, str]] = [
    ("no input", EMBED, {}, BAD_BODY, "body.input", "1 validation error:\n  {'type': 'missing', 'loc': 'body.input'"),
    ("null input", EMBED, {"input": None}, BAD_BODY, "body.input", "'list_type'"),
    ("a number as input", EMBED, {"input": 3}, BAD_BODY, "body.input", "'string_type'"),
    ("an object as input", EMBED, {"input": {"a": 1}}, BAD_BODY, "body.input", "'list_type'"),
    ("text and number", EMBED, {"input": ["a", 1]}, BAD_BODY, "body.input.0", "'int_parsing'"),
    ("fractions as ids", EMBED, {"input": [1.5]}, BAD_BODY, "body.input.0", "'int_from_float'"),
    ("a list as body", EMBED, [1], BAD_BODY, "body", "'model_type'"),
    ("a number as model", EMBED, {"input": "a", "model": 3}, BAD_BODY, "body.model", "'string_type'"),
    ("an encoding of none", EMBED, {"input": "a", "encoding_format": "x"}, BAD_BODY, "body.encoding_format", "'x'"),
    ("a dtype we do not write", EMBED, {"input": "a", "embed_dtype": "int4"}, BAD_BODY, "body.embed_dtype", "'int4'"),
    ("padding", EMBED, {"input": "a", "padding": "max_length"}, BAD_BODY, "body.padding", "'literal_error'"),
    (
        "cut below -1",
        EMBED,
        {"input": "a", "truncate_prompt_tokens": -2},
        BAD_BODY,
        "body.truncate_prompt_tokens",
        "equal to -1",
    ),
    ("a task of none", POOL, {"input": "a", "task": "dance"}, BAD_BODY, "body.task", "'literal_error'"),
    ("an empty list", EMBED, {"input": []}, BAD_REQUEST, "input", "You must pass at least one prompt"),
    ("an empty list of ids", EMBED, {"input": [[]]}, BAD_REQUEST, "input", "The decoder prompt cannot be empty"),
    ("a text of no token", EMBED, {"input": "", "add_special_tokens": False}, BAD_REQUEST, "input", "cannot be empty"),
    ("an unknown id", EMBED, {"input": [30522]}, BAD_REQUEST, "input", "Token id 30522 is out of vocabulary"),
    ("a negative id", EMBED, {"input": [-1]}, BAD_REQUEST, "input", "Token id -1 is out of vocabulary"),
    ("an id of 40 bits", EMBED, {"input": [2**40]}, BAD_REQUEST, "input", "is out of vocabulary"),
    (
        "too many tokens",
        EMBED,
        {"input": words(400)},
        BAD_REQUEST,
        "input_tokens",
        "This model's maximum context length is 256 tokens. However, your prompt contains at least 257 input tokens",
    ),
    ("too many ids", EMBED, {"input": [7] * 300}, BAD_REQUEST, "input_tokens", "your prompt contains 300 input tokens"),
    ("too many characters", EMBED, {"input": "x" * 100_000}, BAD_REQUEST, "input_text", "contains 100000 characters"),
    ("one bad of many", EMBED, {"input": ["fine", words(400)]}, BAD_REQUEST, "input_tokens", "257 input tokens"),
    ("2,049 inputs", EMBED, {"input": ["a"] * 2_049}, BAD_REQUEST, "input", "at most 2048 are allowed (max_inputs)"),
    ("cut to too much", EMBED, {"input": "a", "truncate_prompt_tokens": 257}, BAD_REQUEST, None, "max_model_len"),
    ("cut to nothing", EMBED, {"input": "a", "truncate_prompt_tokens": 0}, BAD_REQUEST, None, "cannot be empty"),
    ("Matryoshka", EMBED, {"input": "a", "dimensions": 16}, BAD_REQUEST, "dimensions", "dimensions must be unset"),
    ("dimensions there", POOL, {"input": "a", "dimensions": 384}, BAD_REQUEST, "dimensions", "currently not supported"),
    ("an unknown prompt", EMBED, {"input": "a", "prompt_name": "q"}, BAD_REQUEST, "prompt_name", "Unknown prompt_name"),
    ("both names", EMBED, {"input": "a", "normalize": True, "use_activation": True}, BAD_REQUEST, "normalize", "both"),
    (
        "a task of others",
        POOL,
        {"input": "a", "task": "classify", "model": "bert"},
        BAD_REQUEST,
        "task",
        "Unsupported task: 'classify'",
    ),
    (
        "an unknown model",
        EMBED,
        {"input": "a", "model": "nope"},
        (404, "NotFoundError"),
        None,
        "The model `nope` does not exist.",
    ),
]


@pytest.mark.parametrize("row", REFUSALS, ids=[row[0] for row in REFUSALS])
def test_a_refusal_says_what_was_wrong(client: httpx.Client, row: Any) -> None:
    _, route, body, (status, kind), param, message = row
    response = client.post(route, json=body)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == (kind, status)
    assert param is None or error["param"] == param
    assert message in error["message"]
    assert len(error["message"]) < 4_000
    assert not any(mark in response.text for mark in ("Traceback", "site-packages", ".py", "0x7f"))


@pytest.mark.parametrize(
    ("content", "param", "said"),
    [
        (b"", "body", "'missing'"),
        (b"{nonsense", "body.1", "'json_invalid'"),
        (b'{"input": NaN}', "body.10", "JSON decode error"),
        (b'{"input": "\xff"}', None, "'json_invalid'"),
        (b'{"input": "\\ud800"}', None, "'json_invalid'"),
        (b"[" * 100_000, None, "'json_invalid'"),
    ],
    ids=["empty", "cut off", "NaN", "invalid UTF-8", "lone surrogate", "deep"],
)
def test_what_is_no_json_is_refused(client: httpx.Client, content: bytes, param: str | None, said: str) -> None:
    response = client.post(EMBED, content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["type"]) == BAD_BODY
    assert param is None or response.json()["error"]["param"] == param
    assert said in response.json()["error"]["message"]


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_another_content_type_is_refused(client: httpx.Client, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    response = client.post(EMBED, content=b'{"input": "a"}', headers=headers)
    assert (response.status_code, response.json()["error"]["type"]) == BAD_BODY
    assert "Unsupported Media Type: Only 'application/json' is allowed" in response.json()["error"]["message"]


def test_a_charset_beside_the_content_type_is_fine(client: httpx.Client) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert client.post(EMBED, content=b'{"input": "a"}', headers=headers).status_code == 200


def test_unknown_fields_are_ignored(client: httpx.Client) -> None:
    assert client.post(EMBED, json={"input": "a", "nonsense": {"a": 1}, "priority": 3}).status_code == 200


def test_an_unknown_route_and_a_wrong_method_have_their_own_bodies(client: httpx.Client) -> None:
    for response, status, detail in [
        (client.get("/nope"), 404, "Not Found"),
        (client.get(EMBED), 405, "Method Not Allowed"),
        (client.post("/v1/completions", json={}), 404, "Not Found"),
    ]:
        assert (response.status_code, response.json()) == (status, {"detail": detail})


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan"])
def test_a_timeout_that_is_none_is_refused(client: httpx.Client, given: str) -> None:
    response = client.post(EMBED, json={"input": "a"}, headers={"x-request-timeout-seconds": given})
    assert (response.status_code, response.json()["error"]["type"]) == BAD_REQUEST
    assert repr(given) in response.json()["error"]["message"]


def test_a_deadline_that_passes_is_504(client: httpx.Client) -> None:
    body = {"input": [[7] * 249 + [number] for number in range(1_000)]}  # many seconds of work
    response = client.post(EMBED, json=body, headers={"x-request-timeout-seconds": "1"})
    assert response.status_code == 504
    assert response.json()["error"]["type"] == "Gateway Timeout"
    assert re.search(r"was not answered within its (0\.\d+|1) s$", response.json()["error"]["message"])


def test_a_body_cut_off_half_way_disturbs_nobody(service: Service, client: httpx.Client) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port))
    connection.putrequest("POST", EMBED)
    connection.putheader("content-type", "application/json")
    connection.putheader("content-length", "1000")
    connection.endheaders(b'{"input": "')
    connection.close()
    assert client.post(EMBED, json={"input": "a"}).status_code == 200


def test_the_openai_client_raises_its_own_errors(service: Service) -> None:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.embeddings.create(model="nope", input="a")
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model="minilm", input=[])
    assert caught.value.param == "input"


def test_a_handle_raises_our_errors(handle: Any) -> None:
    with pytest.raises(UnknownModel, match="does not exist"):
        handle.embed.remote("a", model="nope").result()
    for given in ([], None, 3, [None], [1.5], ["a", None], [["a"]]):
        with pytest.raises(InvalidRequest) as caught:
            handle.embed.remote(given).result()
        assert caught.value.param == "input"


def test_refusals_are_counted_without_letting_clients_invent_labels(client: httpx.Client) -> None:
    client.post(EMBED, json={"input": "a", "model": "invented"})
    client.post(EMBED, json={"input": []})
    page = client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=")
    assert "invented" not in page.text
    samples = [line for line in page.text.splitlines() if line.startswith("raypool_requests_total{")]
    assert any('model="",' in line and 'status="404"' in line for line in samples)
    assert any('model="minilm",' in line and 'status="400"' in line and 'task="embed"' in line for line in samples)
