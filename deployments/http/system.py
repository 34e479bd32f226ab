"""What a service tells of itself: its models, its health, its version, its counts."""

import time
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from deployments import metrics
from deployments.http.errors import dumps
from pooling import __version__

if TYPE_CHECKING:
    from deployments.router import Router


class SystemRoutes:
    """Answers the routes that need no model's engine."""

    def __init__(self, router: "Router") -> None:
        self._router = router
        self._started = int(time.time())

    async def models(self, _: Request) -> Response:
        """Every model by the name that clients send; the first is the default."""
        cards = [self._card(model.name, model.card.max_model_len) for model in self._router.models]
        return _json({"object": "list", "data": cards})

    async def health(self, _: Request) -> Response:
        """200 if every model has a replica that can serve, else 503; within about two seconds."""
        return Response(status_code=200 if await self._router.healthy() else 503)

    async def version(self, _: Request) -> Response:
        return _json({"version": __version__})

    async def metrics(self, _: Request) -> Response:
        """The counts of all routers and engines, as Prometheus text."""
        return Response(await self._router.metrics_page(), headers={"content-type": metrics.CONTENT_TYPE})

    def _card(self, name: str, max_model_len: int) -> dict[str, Any]:
        permission = {
            "id": f"modelperm-{name}",
            "object": "model_permission",
            "created": self._started,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "raypool",
            "root": name,
            "parent": None,
            "max_model_len": max_model_len,
            "permission": [permission],
        }


def _json(body: Any) -> Response:
    return Response(dumps(body), media_type="application/json")
