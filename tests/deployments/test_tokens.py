"""/tokenize and /detokenize, in vLLM's shape and in TEI's."""

from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

HI = [{"role": "user", "content": "ba be"}]


async def post(app: httpx.AsyncClient, path: str, **body: Any) -> Any:
    response = await app.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_text_becomes_the_tokenizers_ids(app: httpx.AsyncClient, models: dict[str, str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models["chatty"])
    found = await post(app, "/tokenize", model="chatty", prompt="ba Größe x", return_token_strs=True)
    ids = tokenizer("ba Größe x")["input_ids"]
    assert found == {
        "count": len(ids),
        "max_model_len": 300,
        "tokens": ids,
        "token_strs": tokenizer.convert_ids_to_tokens(ids),
    }
    bare = await post(app, "/tokenize", model="chatty", prompt="ba", add_special_tokens=False)
    assert (bare["tokens"], bare["token_strs"]) == (tokenizer("ba", add_special_tokens=False)["input_ids"], None)


async def test_there_is_no_limit_on_tokens(app: httpx.AsyncClient) -> None:
    assert (await post(app, "/tokenize", prompt="hello " * 400))["count"] == 402


async def test_a_conversation_is_rendered_with_the_prompt_for_an_answer(app: httpx.AsyncClient) -> None:
    text = "user: ba be\nassistant: "
    expected = await post(app, "/tokenize", model="chatty", prompt=text, add_special_tokens=False)
    assert await post(app, "/tokenize", model="chatty", messages=HI) == expected
    without = await post(app, "/tokenize", model="chatty", messages=HI, add_generation_prompt=False)
    assert without["count"] < expected["count"]


async def test_ids_become_text_again(app: httpx.AsyncClient) -> None:
    ids = (await post(app, "/tokenize", prompt="hello world"))["tokens"]
    assert await post(app, "/detokenize", tokens=ids) == {"prompt": "[CLS] hello world [SEP]"}
    assert await post(app, "/detokenize", tokens=[]) == {"prompt": ""}
    assert await post(app, "/detokenize", tokens=[999_999]) == {"prompt": ""}


async def test_teis_body_asks_for_the_place_of_each_token_in_bytes(app: httpx.AsyncClient) -> None:
    (tokens,) = await post(app, "/tokenize", inputs="hello wörld ok")
    assert [set(token) for token in tokens] == [{"id", "text", "special", "start", "stop"}] * 5
    assert [(token["start"], token["stop"]) for token in tokens] == [
        (None, None),
        (0, 5),
        (6, 12),
        (13, 15),
        (None, None),
    ]
    assert [token["special"] for token in tokens] == [True, False, False, False, True]
    assert "hello wörld ok".encode()[6:12].decode() == "wörld"
    both = await post(app, "/tokenize", inputs=["hello", "a b"], add_special_tokens=False)
    assert [len(one) for one in both] == [1, 2]
    (prompted,) = await post(app, "/tokenize", model="chatty", inputs="ba", prompt_name="query")
    (plain,) = await post(app, "/tokenize", model="chatty", inputs="query: ba")
    assert prompted == plain


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/tokenize", {"prompt": ["a"]}, 400, "'string_type'"),
        ("/tokenize", {}, 400, "body.prompt"),
        (
            "/tokenize",
            {"prompt": "a", "model": "nope"},
            404,
            "does not exist. Valid aliases: minilm, chatty, emotions, reranker, poisoned.",
        ),
        ("/tokenize", {"messages": HI}, 400, "default chat template is no longer allowed"),
        ("/tokenize", {"messages": [HI, HI], "model": "chatty"}, 400, "messages holds 2 conversations; allowed is one"),
        ("/tokenize", {"inputs": []}, 400, "`inputs` cannot be empty"),
        ("/tokenize", {"inputs": "a", "prompt_name": "x"}, 400, "Unknown prompt_name 'x'"),
        ("/tokenize", {"prompt": "a" * 1_000_001}, 400, "at most 1000000 are allowed (max_input_chars)"),
        ("/detokenize", {"tokens": [-1]}, 400, "'greater_than_equal'"),
        ("/detokenize", {"tokens": [2**40]}, 400, "'less_than'"),
        ("/detokenize", {"tokens": "a"}, 400, "'list_type'"),
        ("/detokenize", {"tokens": [1], "model": "nope"}, 404, "Valid aliases"),
    ],
)
async def test_refusals(app: httpx.AsyncClient, path: str, body: Any, status: int, said: str) -> None:
    response = await app.post(path, json=body)
    assert response.status_code == status
    assert said in response.json()["error"]["message"]
    assert status != 404 or response.json()["error"]["param"] == "model"
