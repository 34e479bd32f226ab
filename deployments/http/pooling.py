"""vLLM's general route: POST /pooling, for every task that a model does."""

import time
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from deployments.http.body import read_body
from deployments.http.encode import Listing, encode
from deployments.http.headers import response_id, timeout_s
from deployments.http.schemas import PoolBody
from pooling.errors import InvalidRequest

if TYPE_CHECKING:
    from deployments.router import Router


class PoolingRoutes:
    """Answers /pooling with the router's models."""

    def __init__(self, router: "Router") -> None:
        self._router = router

    async def pooling(self, request: Request) -> Response:
        """The pooled vectors of each input: one, or one for each token, as the task says."""
        body = await read_body(request, PoolBody, self._router.limits)
        model = self._router.pick(body.model, body.task)
        if body.dimensions is not None:  # as in vLLM; /v1/embeddings has them
            raise InvalidRequest("dimensions is currently not supported (parameter=dimensions)", "dimensions")
        answer = await self._router.answer(model, body.request(body.task), timeout_s(request))
        head = {
            "id": response_id("pooling", request, body.request_id),
            "object": "list",
            "created": int(time.time()),
            "model": model.name,
        }
        listing = Listing(head, "pooling", "data", answer.prompt_tokens)
        return await encode(listing, answer.output, body.encoding_format or "float")
