"""What a service tells of itself: its models, its health, its version, its counts."""

import time
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from deployments import metrics
from deployments.config import ONGOING_REQUESTS
from deployments.http.errors import dumps
from pooling import __version__
from pooling.loading.card import ModelCard

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

    async def load(self, _: Request) -> Response:
        """How many requests are being answered now, by all routers together."""
        return _json({"server_load": await self._router.load()})

    async def info(self, _: Request) -> Response:
        """What TEI tells of its one model, here of the default one."""
        model, limits = self._router.models[0], self._router.limits
        card = model.card
        return _json(
            {
                "model_id": model.name,
                "model_sha": None,
                "model_dtype": model.dtype,
                "served_model_name": model.name,
                "model_type": _model_type(card),
                "max_concurrent_requests": ONGOING_REQUESTS,
                "max_input_length": card.max_model_len,
                "max_batch_tokens": model.admission.limit,
                "max_batch_requests": None,
                "max_client_batch_size": limits.max_inputs,
                "auto_truncate": True,
                "tokenization_workers": 1,
                "version": __version__,
                "sha": None,
                "docker_label": None,
            }
        )

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


# TEI's words for how a model pools.
_TEI_POOLING = {"CLS": "cls", "MEAN": "mean", "LAST": "last_token"}


def _model_type(card: ModelCard) -> dict[str, Any]:
    if not card.labels:
        kind = card.pooler.pooling_type
        return {"embedding": {"pooling": _TEI_POOLING.get(kind, kind.lower())}}
    labels = {
        "id2label": {str(column): label for column, label in enumerate(card.labels)},
        "label2id": {label: column for column, label in enumerate(card.labels)},
    }
    return {"reranker" if card.scoring == "cross_encoder" else "classifier": labels}


def _json(body: Any) -> Response:
    return Response(dumps(body), media_type="application/json")
