"""Conversations as input: rendered by the tokenizer's own template, for every route that reads text."""

from typing import Any

import httpx
import numpy as np
import pytest

from deployments.http.schemas.chat import ChatMessage

EMBED, POOL, CLASSIFY = "/v1/embeddings", "/pooling", "/classify"
HI = [{"role": "user", "content": "ba be"}]
RENDERED = "user: ba be\n"


async def ids_of(app: httpx.AsyncClient, text: str, special: bool = False) -> list[int]:
    body = {"model": "chatty", "prompt": text, "add_special_tokens": special}
    ids: list[int] = (await app.post("/tokenize", json=body)).json()["tokens"]
    return ids


async def vectors(app: httpx.AsyncClient, **body: Any) -> tuple[np.ndarray, int]:
    response = await app.post(EMBED, json={"model": "chatty", **body})
    assert response.status_code == 200, response.text
    return np.array([item["embedding"] for item in response.json()["data"]]), response.json()["usage"]["prompt_tokens"]


async def test_a_conversation_is_read_as_the_template_writes_it(app: httpx.AsyncClient) -> None:
    expected = await ids_of(app, RENDERED)
    assert len(expected) > 4
    as_chat, tokens = await vectors(app, messages=HI)
    as_ids, _ = await vectors(app, input=expected)
    np.testing.assert_allclose(as_chat, as_ids, atol=1e-6)
    assert tokens == len(expected)  # special tokens are the template's business


@pytest.mark.parametrize(
    ("options", "text", "special"),
    [
        ({"add_generation_prompt": True}, RENDERED + "assistant: ", False),
        ({"add_special_tokens": True}, RENDERED, True),
        ({"chat_template_kwargs": {"tone": "di do"}}, RENDERED + "di do\n", False),
        ({"continue_final_message": True}, "user: ba be", False),
    ],
)
async def test_options_reach_the_template(
    app: httpx.AsyncClient, options: dict[str, Any], text: str, special: bool
) -> None:
    as_chat, tokens = await vectors(app, messages=HI, **options)
    expected = await ids_of(app, text, special)
    assert tokens == len(expected)
    np.testing.assert_allclose(as_chat, (await vectors(app, input=expected))[0], atol=1e-6)


async def test_input_may_hold_conversations_and_messages_several(app: httpx.AsyncClient) -> None:
    one, _ = await vectors(app, messages=HI)
    for body in ({"input": HI}, {"input": [HI]}, {"messages": [HI]}, {"messages": HI, "input": "something else"}):
        np.testing.assert_array_equal((await vectors(app, **body))[0], one)
    two, tokens = await vectors(app, messages=[HI, [*HI, {"role": "assistant", "content": "bi"}]])
    assert two.shape[0] == 2
    np.testing.assert_allclose(two[:1], one, atol=1e-6)
    assert abs(two[0] - two[1]).max() > 1e-3
    assert tokens > 2 * len(await ids_of(app, RENDERED))


async def test_the_text_parts_of_a_message_are_joined(app: httpx.AsyncClient) -> None:
    parts = [{"type": "text", "text": "ba"}, {"type": "text", "text": "be"}]
    as_parts, _ = await vectors(app, messages=[{"role": "user", "content": parts}])
    joined, _ = await vectors(app, messages=[{"role": "user", "content": "ba\nbe"}])
    np.testing.assert_array_equal(as_parts, joined)
    # By a line break, which this tokenizer takes for any other space.
    said = ChatMessage.model_validate({"role": "user", "content": parts})
    assert said.plain() == {"role": "user", "content": "ba\nbe"}


async def test_pooling_and_classify_read_conversations_too(app: httpx.AsyncClient) -> None:
    pooled = (await app.post(POOL, json={"model": "chatty", "messages": HI})).json()
    np.testing.assert_allclose(pooled["data"][0]["data"], (await vectors(app, messages=HI))[0][0], atol=1e-6)
    response = await app.post(CLASSIFY, json={"model": "emotions", "messages": HI})
    assert "default chat template is no longer allowed" in response.json()["error"]["message"]


async def test_a_cut_conversation_keeps_the_side_that_is_asked(app: httpx.AsyncClient) -> None:
    ids = await ids_of(app, RENDERED)
    for side, kept in (("left", ids[-3:]), ("right", ids[:3])):
        cut, tokens = await vectors(app, messages=HI, truncate_prompt_tokens=3, truncation_side=side)
        assert tokens == 3
        np.testing.assert_allclose(cut, (await vectors(app, input=kept))[0], atol=1e-6)


@pytest.mark.parametrize("path", [EMBED, POOL])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": []}, "Cannot apply chat template to an empty conversation. Provide at least one message."),
        ({"messages": [[]]}, "Cannot apply chat template to an empty conversation."),
        (
            {"messages": HI, "add_generation_prompt": True, "continue_final_message": True},
            "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
        ),
        ({"messages": HI, "chat_template": "x"}, "Chat template is passed with request, but --trust-request-chat-temp"),
        ({"messages": HI, "chat_template_kwargs": {"chat_template": "x"}}, "Refused request with untrusted chat templ"),
        ({"messages": HI, "chat_template_kwargs": {"tokenize": True}}, "has tokenize, which is no variable"),
        ({"messages": HI, "model": "minilm"}, "As of transformers v4.44, default chat template is no longer allowed"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "At most 0 image(s) may be provided in one prompt",
        ),
        ({"messages": [{"content": "no role"}]}, "'missing'"),
        ({"messages": "text"}, "'list_type'"),
        ({"messages": [{"role": "user", "content": "ba " * 400}]}, "maximum context length is 300 tokens"),
    ],
)
async def test_what_no_template_takes_is_refused(
    app: httpx.AsyncClient, path: str, body: dict[str, Any], said: str
) -> None:
    response = await app.post(path, json={"model": "chatty", **body})
    assert response.status_code == 400, response.text
    assert said in response.json()["error"]["message"]
