"""Cohere's embeddings: POST /v2/embed. Its rerank is that of deployments/http/scoring.py."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from deployments.http.body import read_body
from deployments.http.errors import ApiNotServed
from deployments.http.headers import response_id, timeout_s
from deployments.http.packing import EmbeddingType, Packing, packing_of
from deployments.http.schemas.chat import ChatMessage, content_of
from deployments.http.schemas.cohere import CohereEmbedBody, cohere_embed_kind
from deployments.media import SentImage
from deployments.served import ServedModel
from pooling.errors import InvalidRequest
from pooling.loading.card import ModelCard
from pooling.request import PackedBatch, PooledOutput, PoolingParams, PoolingRequest, Prompt

if TYPE_CHECKING:
    from deployments.router import Router

_DEFAULT_TYPES: list[EmbeddingType] = ["float"]
_LARGE_VALUES = 100_000  # about a megabyte of JSON numbers


class CohereRoutes:
    """Answers Cohere's route with the router's models."""

    def __init__(self, router: "Router") -> None:
        self._router = router

    async def embed(self, request: Request) -> Response:
        """The vectors of the inputs in every type that is asked for."""
        body = await read_body(request, cohere_embed_kind, self._router.limits)
        model = self._router.pick(body.model, "embed")
        if "embed" not in model.card.tasks:
            raise ApiNotServed("The model does not support Embeddings API")
        if body.images and model.card.vision is None:
            raise InvalidRequest(
                f"At most 0 image(s) may be provided in one prompt: `{model.name}` reads text alone", "images"
            )
        inputs, prompt_name = await _inputs(body, model)
        asked = PoolingRequest(
            inputs,
            "embed",
            PoolingParams(dimensions=body.output_dimension),
            _limit(body, model.card),
            "left" if body.truncate == "START" else None,
            prompt_name=prompt_name,
        )
        packings = {kind: packing_of(kind, model.card, asked.params) for kind in body.embedding_types or _DEFAULT_TYPES}
        answer = await self._router.answer(model, asked, timeout_s(request), _most_uncut(body))
        found = {
            "id": response_id("embd", request, None),
            "embeddings": await _embeddings(packings, answer.output),
            **({"texts": body.texts} if body.texts else {}),
            "meta": {
                "api_version": {"version": "2"},
                "billed_units": {
                    "input_tokens": answer.prompt_tokens - answer.image_tokens,
                    "image_tokens": answer.image_tokens,
                },
            },
            "response_type": "embeddings_by_type",
        }
        content = orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(content, media_type="application/json")


async def _embeddings(packings: dict[EmbeddingType, Packing], output: PooledOutput) -> dict[str, Any]:
    """Every type as JSON that is written already, so that a large answer is written in a thread."""

    def written() -> dict[str, Any]:
        return {
            kind: orjson.Fragment(orjson.dumps(pack(output.data), option=orjson.OPT_SERIALIZE_NUMPY))
            for kind, pack in packings.items()
        }

    return await asyncio.to_thread(written) if output.data.size > _LARGE_VALUES else written()


async def _inputs(body: CohereEmbedBody, model: ServedModel) -> tuple[Sequence[Prompt], str | None]:
    """What the model is to read, and the name of the prompt before it."""
    name = body.input_type
    _check_input_type(name, model.card)
    if body.texts and (name is None or not model.has_chat_template):
        return body.texts, name
    if model.card.vision is not None:
        sent: list[Any] = [SentImage(url) for url in body.images or ()]
        return body.texts or sent or [content_of(item.content) for item in body.inputs or ()], name
    # A model with a template for chats gets the prompt as its system message, as vLLM does it.
    before = model.card.prompts[name] if name is not None else ""
    system = [ChatMessage(role="system", content=before)] if before else []
    if body.texts and not system:
        return body.texts, name
    said: list[Any] = [item.content for item in body.inputs or ()] or list(body.texts or ())
    conversations = [[*system, ChatMessage(role="user", content=content)] for content in said]
    plain = [[message.plain() for message in conversation] for conversation in conversations]
    return await model.render(plain), None


def _check_input_type(name: str | None, card: ModelCard) -> None:
    if name is None or name in card.prompts:
        return
    if not card.prompts:
        raise InvalidRequest(
            f"Unsupported input_type {name!r}. This model does not define any input_type task instructions.",
            "input_type",
        )
    raise InvalidRequest(
        f"Unsupported input_type {name!r}. Supported values: {', '.join(sorted(card.prompts))}", "input_type"
    )


def _limit(body: CohereEmbedBody, card: ModelCard) -> int | None:
    """To how many tokens inputs are cut."""
    if body.truncate == "NONE":
        return None
    if body.max_tokens is not None and body.max_tokens > card.max_model_len:
        raise InvalidRequest(
            f"truncate_prompt_tokens={body.max_tokens} cannot be greater than max_model_len = {card.max_model_len}. "
            f"Please request a smaller truncation size. (parameter=truncate_prompt_tokens, value={body.max_tokens})",
            "max_tokens",
        )
    return -1 if body.max_tokens is None else body.max_tokens


def _most_uncut(body: CohereEmbedBody) -> Callable[[PackedBatch], None] | None:
    """What refuses inputs of more tokens than are allowed where nothing is to be cut."""
    most = body.max_tokens
    if body.truncate != "NONE" or most is None:
        return None

    def refuse_longer(batch: PackedBatch) -> None:
        longest = int(batch.lengths.max())
        if longest > most:
            raise InvalidRequest(
                f"Input of {longest} tokens exceeds max_tokens={most} with truncate=NONE. Set truncate to END or START "
                "to allow truncation.",
                "max_tokens",
            )

    return refuse_longer
