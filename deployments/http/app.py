"""The HTTP surface of a router: every route, in one table."""

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from deployments.http.auth import BearerAuth
from deployments.http.errors import (
    ApiNotServed,
    BodyTooLarge,
    MalformedBody,
    error_response,
    on_unknown_error,
)
from deployments.http.openai import OpenAIRoutes
from deployments.http.pooling import PoolingRoutes
from deployments.http.schemas import EmbeddingBody, PoolBody
from deployments.http.system import SystemRoutes
from pooling import __version__
from pooling.errors import PoolingError, UnknownModel

if TYPE_CHECKING:
    from deployments.router import Router

# What the routes refuse before the router hears of it, which therefore must be counted here.
_REFUSED_AT_THE_DOOR = (MalformedBody, BodyTooLarge, UnknownModel, ApiNotServed)


def build_http(router: "Router") -> FastAPI:
    """The ASGI app that answers for a router."""
    app = FastAPI(title="Raypool", version=__version__, redoc_url=None)
    openai, pooling, system = OpenAIRoutes(router), PoolingRoutes(router), SystemRoutes(router)
    routes: list[tuple[str, str, Any, type[BaseModel] | None]] = [
        ("POST", "/v1/embeddings", openai.embeddings, EmbeddingBody),
        ("POST", "/pooling", pooling.pooling, PoolBody),
        ("GET", "/v1/models", system.models, None),
        ("GET", "/health", system.health, None),
        ("GET", "/ping", system.health, None),
        ("POST", "/ping", system.health, None),
        ("GET", "/version", system.version, None),
        ("GET", "/metrics", system.metrics, None),
    ]
    for method, path, endpoint, body in routes:
        # The endpoints read the body themselves; FastAPI only routes, and tells of it under /docs.
        app.add_api_route(
            path, endpoint, methods=[method], response_class=Response, openapi_extra=_documented(body) if body else None
        )

    async def on_pooling_error(_: Request, error: Exception) -> Response:
        response = error_response(error)
        if isinstance(error, _REFUSED_AT_THE_DOOR):
            router.metrics.refused(response.status_code)
        return response

    app.add_exception_handler(PoolingError, on_pooling_error)
    app.add_exception_handler(ClientDisconnect, on_client_left)
    app.add_exception_handler(Exception, on_unknown_error)
    if router.api_keys:
        app.add_middleware(BearerAuth, keys=router.api_keys, refused=router.metrics.refused)
    return app


async def on_client_left(_: Request, error: Exception) -> Response:
    """Nobody reads this; without it, a body that is cut off would count as a fault of ours."""
    return Response(status_code=499)


def _documented(body: type[BaseModel]) -> dict[str, Any]:
    schema = body.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
