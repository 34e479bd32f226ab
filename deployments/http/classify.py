"""vLLM's classification: POST /classify."""

import time
from typing import TYPE_CHECKING

import orjson
from starlette.requests import Request
from starlette.responses import Response

from deployments.http.body import read_body
from deployments.http.encode import usage
from deployments.http.errors import ApiNotServed
from deployments.http.headers import response_id, timeout_s
from deployments.http.prompts import asked
from deployments.http.schemas.pooling import ClassifyBody, classify_kind

if TYPE_CHECKING:
    from deployments.router import Router


class ClassifyRoutes:
    """Answers /classify with the router's models."""

    def __init__(self, router: "Router") -> None:
        self._router = router

    async def classify(self, request: Request) -> Response:
        """The probability of each label for each input."""
        body: ClassifyBody = await read_body(request, classify_kind, self._router.limits)
        return await self.answer(body, request)

    async def answer(self, body: ClassifyBody, request: Request) -> Response:
        model = self._router.pick(body.model, "classify")
        if "classify" not in model.card.tasks:
            raise ApiNotServed("The model does not support Classification API")
        wanted = await asked(body, model, "classify")
        answer = await self._router.answer(model, wanted, timeout_s(request))
        names, labels = model.card.labels_of("classify"), answer.output.data.argmax(axis=1).tolist()
        found = {
            "id": response_id("classify", request, body.request_id),
            "object": "list",
            "created": int(time.time()),
            "model": model.name,
            "data": [
                {
                    "index": index,
                    "label": names[label],
                    "probs": row,
                    "num_classes": len(row),
                }
                for index, (row, label) in enumerate(zip(answer.output.data, labels, strict=True))
            ],
            "usage": usage(answer.prompt_tokens),
        }
        return Response(orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")
