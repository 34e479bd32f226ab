"""Text to token ids and back, without an engine: /tokenize and /detokenize, in vLLM's shape and in TEI's."""

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from deployments.http.body import read_body
from deployments.http.prompts import prompts
from deployments.http.schemas.tokens import TokenizeChat, TokenizeInputs, TokenizeText, detokenize_kind, tokenize_kind
from deployments.served import ServedModel
from pooling.errors import InvalidRequest, UnknownModel
from pooling.request import PoolingRequest

if TYPE_CHECKING:
    from tokenizers import Encoding

    from deployments.router import Router


class TokenRoutes:
    """Answers the tokenizer's routes with the router's models."""

    def __init__(self, router: "Router") -> None:
        self._router = router

    async def tokenize(self, request: Request) -> Response:
        """The ids of a text or a conversation, however many; TEI's body asks for each token's place as well."""
        body = await read_body(request, tokenize_kind, self._router.limits)
        model = self._pick(body.model)
        if isinstance(body, TokenizeInputs):
            return _json(await self._in_detail(body, model))
        strings = None
        if isinstance(body, TokenizeText):
            (encoding,) = await model.in_tokens([body.prompt], body.add_special_tokens)
            ids = encoding.ids
        else:
            ids = await self._of_chat(body, model)
        if body.return_token_strs:
            strings = model.strings(ids)
        return _json(
            {"count": len(ids), "max_model_len": model.card.max_model_len, "tokens": ids, "token_strs": strings}
        )

    async def detokenize(self, request: Request) -> Response:
        """The text of token ids; those outside the vocabulary have none."""
        body = await read_body(request, detokenize_kind, self._router.limits)
        return _json({"prompt": await self._pick(body.model).in_text(body.tokens)})

    async def _of_chat(self, body: TokenizeChat, model: ServedModel) -> list[int]:
        if (count := len(body.batch())) != 1:
            raise InvalidRequest(f"messages holds {count} conversations; allowed is one", "messages")
        inputs = await prompts(body, model)
        if model.card.vision is not None:
            return list(map(int, (await model.tokenize(PoolingRequest(inputs))).ids))
        ids: Any = inputs[0]
        return [int(one) for one in ids]

    async def _in_detail(self, body: TokenizeInputs, model: ServedModel) -> list[list[dict[str, Any]]]:
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        if not texts:
            raise InvalidRequest("`inputs` cannot be empty", "inputs")
        prompt = model.prompt(body.prompt_name)
        texts = [prompt + text for text in texts]
        encodings = await model.in_tokens(texts, body.add_special_tokens)
        return await asyncio.to_thread(lambda: list(map(_detail, encodings, texts)))

    def _pick(self, name: str | None) -> ServedModel:
        """In the words that vLLM has for these two routes alone."""
        try:
            return self._router.pick(name, None)
        except UnknownModel as error:
            known = ", ".join(model.name for model in self._router.models)
            raise UnknownModel(f"{error.detail} Valid aliases: {known}.", "model") from None


def _detail(encoding: "Encoding", text: str) -> list[dict[str, Any]]:
    """Each token with its place in the bytes of the text; special tokens have none."""
    ends = [0]  # bytes before each character
    for char in text:
        ends.append(ends[-1] + len(char.encode()))
    return [
        {
            "id": token,
            "text": string,
            "special": bool(special),
            "start": None if special else ends[start],
            "stop": None if special else ends[stop],
        }
        for token, string, special, (start, stop) in zip(
            encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True
        )
    ]


def _json(body: Any) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
