"""vLLM's general route: POST /pooling, for every task that a model does."""

import time
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from deployments.http.body import read_body
from deployments.http.encode import Listing, encode
from deployments.http.headers import response_id, timeout_s
from deployments.http.prompts import asked
from deployments.http.schemas.pooling import PoolBody, pool_kind
from pooling.errors import InvalidRequest
from pooling.request import PooledOutput
from pooling.tasks import parts_of

if TYPE_CHECKING:
    from deployments.router import Router


class PoolingRoutes:
    """Answers /pooling with the router's models."""

    def __init__(self, router: "Router") -> None:
        self._router = router

    async def pooling(self, request: Request) -> Response:
        """The pooled vectors of each input: one, or one for each token, as the task says."""
        body: PoolBody = await read_body(request, pool_kind, self._router.limits)
        return await self.answer(body, request)

    async def answer(self, body: PoolBody, request: Request) -> Response:
        model = self._router.pick(body.model, body.task)
        if body.dimensions is not None:  # as in vLLM; /v1/embeddings has them
            raise InvalidRequest("dimensions is currently not supported (parameter=dimensions)", "dimensions")
        wanted = await asked(body, model, body.task)
        answer = await self._router.answer(model, wanted, timeout_s(request))
        head = {
            "id": response_id("pooling", request, body.request_id),
            "object": "list",
            "created": int(time.time()),
            "model": model.name,
        }
        listing = Listing(head, "pooling", "data", answer.prompt_tokens)
        with self._router.metrics.encoding(model.name, body.task or model.card.tasks[0]):
            return await encode(listing, _in_a_line(answer.output, body.task), body.wire)


def _in_a_line(output: PooledOutput, task: str | None) -> PooledOutput:
    """The numbers of several tasks, which come one in a row, as one list for each input."""
    if len(parts_of(task or "")) == 1:
        return output
    return PooledOutput(output.data[:, 0], output.lengths, output.timing)
