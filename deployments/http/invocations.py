"""SageMaker's door: POST /invocations, to whichever route the body is meant for."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from deployments.http.body import judge, read_json
from deployments.http.classify import ClassifyRoutes
from deployments.http.errors import MalformedBody
from deployments.http.openai import OpenAIRoutes
from deployments.http.pooling import PoolingRoutes
from deployments.http.schemas.pooling import classify_kind, embedding_kind, pool_kind
from deployments.http.schemas.scoring import rerank_kind, score_kind
from deployments.http.scoring import ScoringRoutes
from deployments.http.tei import TEIRoutes
from pooling.errors import InvalidRequest

if TYPE_CHECKING:
    from deployments.router import Router


class _Door(NamedTuple):
    """name: vLLM's for the body. task: what a model must do for it; None: anything."""

    name: str
    task: str | None
    choose: Callable[[Any], type[BaseModel]]
    answer: Callable[[Any, Request], Awaitable[Response]]


class InvocationRoutes:
    """Tries the bodies in vLLM's order, then TEI's."""

    def __init__(
        self,
        router: "Router",
        openai: OpenAIRoutes,
        classify: ClassifyRoutes,
        scoring: ScoringRoutes,
        pooling: PoolingRoutes,
        tei: TEIRoutes,
    ) -> None:
        self._router, self._tei = router, tei
        self._doors = (
            _Door("EmbeddingRequest", "embed", embedding_kind, openai.answer),
            _Door("ClassificationRequest", "classify", classify_kind, classify.answer),
            _Door("RerankRequest", "score", rerank_kind, scoring.answer_rerank),
            _Door("ScoreRequest", "score", score_kind, scoring.answer_score),
            _Door("PoolingRequest", None, pool_kind, pooling.answer),
        )

    async def invocations(self, request: Request) -> Response:
        """The answer of the first route that takes the body and that the model can serve."""
        data = await read_json(request, self._router.limits)
        if isinstance(data, dict) and ("inputs" in data or "texts" in data):
            return await self._tei.by_default(data, request)
        for door in self._doors:
            try:
                body = judge(door.choose(data), data)
            except MalformedBody:
                continue
            name: str | None = getattr(body, "model", None)
            if door.task is None or door.task in self._router.pick(name, door.task).card.tasks:
                return await door.answer(body, request)
        names = [door.name for door in self._doors]
        raise InvalidRequest(f"Cannot find suitable handler for request. Expected one of: {names}")
