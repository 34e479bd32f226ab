"""OpenAI's API, as vLLM extends it: POST /v1/embeddings."""

import time
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from deployments.http.body import read_body
from deployments.http.encode import Listing, encode
from deployments.http.errors import ApiNotServed
from deployments.http.headers import response_id, timeout_s
from deployments.http.packing import packing_of
from deployments.http.prompts import asked
from deployments.http.schemas.pooling import EmbeddingBody, embedding_kind

if TYPE_CHECKING:
    from deployments.router import Router


class OpenAIRoutes:
    """Answers OpenAI's routes with the router's models."""

    def __init__(self, router: "Router") -> None:
        self._router = router

    async def embeddings(self, request: Request) -> Response:
        """One vector for each input."""
        body: EmbeddingBody = await read_body(request, embedding_kind, self._router.limits)
        return await self.answer(body, request)

    async def answer(self, body: EmbeddingBody, request: Request) -> Response:
        model = self._router.pick(body.model, "embed")
        if "embed" not in model.card.tasks:
            raise ApiNotServed("The model does not support Embeddings API")
        wanted = await asked(body, model, "embed", body.dimensions)
        pack = None if body.embedding_type == "float" else packing_of(body.embedding_type, model.card, wanted.params)
        answer = await self._router.answer(model, wanted, timeout_s(request))
        head = {
            "id": response_id("embd", request, body.request_id),
            "object": "list",
            "created": int(time.time()),
            "model": model.name,
        }
        listing = Listing(head, "embedding", "embedding", answer.prompt_tokens)
        with self._router.metrics.encoding(model.name, "embed"):
            return await encode(listing, answer.output, body.wire, pack)
