"""Score and rerank, for clients of vLLM, Jina and Cohere: /score and /rerank with and without a version."""

import time
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from deployments.http.body import judge, read_body, read_json
from deployments.http.encode import usage
from deployments.http.errors import ApiNotServed
from deployments.http.headers import response_id, timeout_s
from deployments.http.schemas.scoring import ContentItem, RerankBody, ScoreBody, items_of, score_kind
from deployments.http.tei import TEIRoutes
from deployments.scorer import ranked, score
from deployments.served import ServedModel

if TYPE_CHECKING:
    from deployments.router import Router


class ScoringRoutes:
    """Answers the scoring routes with the router's models."""

    def __init__(self, router: "Router", tei: TEIRoutes) -> None:
        self._router = router
        self._tei = tei

    async def score(self, request: Request) -> Response:
        """How relevant each second text is to its first."""
        body = await read_body(request, score_kind, self._router.limits)
        return await self.answer_score(body, request)

    async def answer_score(self, body: ScoreBody, request: Request) -> Response:
        model = self._pick(body.model, "Score API")
        first, second = (items_of(side, model.card) for side in body.sides())
        scored = await score(self._router, model, first, second, body.asked(), timeout_s(request))
        return _json(
            {
                "id": response_id("score", request, body.request_id),
                "object": "list",
                "created": int(time.time()),
                "model": model.name,
                "data": [
                    {"index": index, "object": "score", "score": one}
                    for index, one in enumerate(scored.scores.tolist())
                ],
                "usage": usage(scored.prompt_tokens),
            }
        )

    async def rerank(self, request: Request) -> Response:
        """The documents by their relevance to the query, best first."""
        data = await read_json(request, self._router.limits)
        if isinstance(data, dict) and "texts" in data:
            return await self._tei.rerank(data, request)
        return await self.answer_rerank(judge(RerankBody, data), request)

    async def answer_rerank(self, body: RerankBody, request: Request) -> Response:
        model = self._pick(body.model, "Rerank (Score) API")
        query, documents = (items_of(side, model.card) for side in (body.query, body.documents))
        scored = await score(self._router, model, query, documents, body.asked(), timeout_s(request))
        scores: list[float] = scored.scores.tolist()
        return _json(
            {
                "id": response_id("score", request, body.request_id),
                "model": model.name,
                "usage": {"prompt_tokens": scored.prompt_tokens, "total_tokens": scored.prompt_tokens},
                "results": [
                    {"index": index, **_document(body, index), "relevance_score": scores[index]}
                    for index in ranked(scored.scores, body.top_n)
                ],
                # Cohere's: one unit is a query with up to 100 documents.
                "meta": {
                    "api_version": {"version": "2"},
                    "billed_units": {"search_units": -(-len(documents) // _DOCUMENTS_A_UNIT)},
                },
            }
        )

    def _pick(self, name: str | None, api: str) -> ServedModel:
        model = self._router.pick(name, "score")
        if model.card.scoring is None:
            raise ApiNotServed(f"The model does not support {api}")
        return model


# Source: docs.cohere.com/docs/rate-limits, search units.
_DOCUMENTS_A_UNIT = 100


def _document(body: RerankBody, index: int) -> dict[str, Any]:
    """As it was sent: a text, or the parts of a content; images, which are large, only if documents are asked for."""
    if body.return_documents is False:
        return {}
    item: Any = body.documents[index] if isinstance(body.documents, list) else body.documents
    if isinstance(item, ContentItem):
        shown = [part for part in item.content if body.return_documents or part.type == "text"]
        parts = [part.model_dump(exclude_none=True) for part in shown]
        return {"document": {"text": None, "multi_modal": parts}}
    return {"document": {"text": item if isinstance(item, str) else item.text, "multi_modal": None}}


def _json(body: Any) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
