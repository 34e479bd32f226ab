"""OpenAI's API, as vLLM extends it: POST /v1/embeddings."""

import time
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from deployments.http.body import read_body
from deployments.http.encode import Listing, encode
from deployments.http.errors import ApiNotServed
from deployments.http.headers import response_id, timeout_s
from deployments.http.schemas import EmbeddingBody

if TYPE_CHECKING:
    from deployments.router import Router


class OpenAIRoutes:
    """Answers OpenAI's routes with the router's models."""

    def __init__(self, router: "Router") -> None:
        self._router = router

    async def embeddings(self, request: Request) -> Response:
        """One vector for each input."""
        body = await read_body(request, EmbeddingBody, self._router.limits)
        model = self._router.pick(body.model, "embed")
        if "embed" not in model.card.tasks:
            raise ApiNotServed("The model does not support Embeddings API")
        asked = body.request("embed", body.dimensions)
        answer = await self._router.answer(model, asked, timeout_s(request))
        head = {
            "id": response_id("embd", request, body.request_id),
            "object": "list",
            "created": int(time.time()),
            "model": model.name,
        }
        listing = Listing(head, "embedding", "embedding", answer.prompt_tokens)
        return await encode(listing, answer.output, body.encoding_format or "float")
