"""The HTTP surface of a router: every route, in one table."""

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from deployments.http.access_log import AccessLog
from deployments.http.auth import BearerAuth
from deployments.http.classify import ClassifyRoutes
from deployments.http.cohere import CohereRoutes
from deployments.http.errors import REFUSED_AT_THE_DOOR, error_response, on_unknown_error
from deployments.http.invocations import InvocationRoutes
from deployments.http.openai import OpenAIRoutes
from deployments.http.openapi import Told, describe
from deployments.http.pooling import PoolingRoutes
from deployments.http.schemas import answers, pooling, scoring, tei, tokens
from deployments.http.schemas.cohere import CohereEmbedBody
from deployments.http.scoring import ScoringRoutes
from deployments.http.system import SystemRoutes
from deployments.http.tei import TEIRoutes
from deployments.http.tokens import TokenRoutes
from deployments.http.uploads import Uploads
from deployments.tracing import Tracing
from pooling import __version__
from pooling.errors import PoolingError

if TYPE_CHECKING:
    from deployments.router import Router

_BYTES = "application/octet-stream"
_SCORE = (scoring.TextPairs, scoring.QueriesAndDocuments, scoring.QueriesAndItems, scoring.Data)


def build_http(router: "Router") -> FastAPI:
    """The ASGI app that answers for a router."""
    app = FastAPI(title="Raypool", version=__version__, redoc_url=None)
    told = {}
    app.state.uploads = Uploads(router.limits.max_upload_bytes)
    for method, path, endpoint, one in _routes(router):
        # The endpoints read the body themselves; FastAPI only routes, and tells of it under /docs.
        app.add_api_route(path, endpoint, methods=[method], response_class=Response, operation_id=f"{method} {path}")
        told[method, path] = one
    describe(app, told)

    async def on_pooling_error(_: Request, error: Exception) -> Response:
        response = error_response(error)
        if isinstance(error, REFUSED_AT_THE_DOOR):
            router.metrics.refused(response.status_code)
        return response

    app.add_exception_handler(PoolingError, on_pooling_error)
    app.add_exception_handler(ClientDisconnect, on_client_left)
    app.add_exception_handler(Exception, on_unknown_error)
    if router.api_keys:
        app.add_middleware(BearerAuth, keys=router.api_keys, refused=router.metrics.refused)
    if router.access_log:
        app.add_middleware(AccessLog)
    if router.tracer is not None:
        app.add_middleware(Tracing, tracer=router.tracer)
    if router.cors_allow_origins:
        # Outermost: a browser asks for leave without a key, and reads refusals only where it is allowed to.
        app.add_middleware(
            CORSMiddleware, allow_origins=router.cors_allow_origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return app


def _routes(router: "Router") -> list[tuple[str, str, Any, Told]]:
    """Every route: method, path, what answers, and what is told of it."""
    openai, pool, classify = OpenAIRoutes(router), PoolingRoutes(router), ClassifyRoutes(router)
    cohere, token, system, text = CohereRoutes(router), TokenRoutes(router), SystemRoutes(router), TEIRoutes(router)
    score = ScoringRoutes(router, text)
    embedding = Told((pooling.EmbeddingInput, pooling.EmbeddingChat), answers.EmbeddingAnswer, [_BYTES])
    pooled = Told((pooling.PoolInput, pooling.PoolChat), answers.PoolingAnswer, [_BYTES])
    classified = Told((pooling.ClassifyInput, pooling.ClassifyChat), answers.ClassifyAnswer)
    scored = Told(_SCORE, answers.ScoreAnswer)
    ranked = Told((scoring.RerankBody,), answers.RerankAnswer)
    either = Told((scoring.RerankBody, tei.TextsBody), answers.RerankAnswer | list[answers.TEIRanked], tei=True)
    vectors = Told((tei.EmbedBody,), list[list[float]], tei=True, vllm=False)
    labels = Told((tei.PredictBody,), list[answers.Label] | list[list[answers.Label]], tei=True, vllm=False)
    probe = Told(statuses=(503,))
    default = Told((tei.EmbedBody, tei.PredictBody, tei.TextsBody, tei.SimilarityBody), list[Any], tei=True, vllm=False)
    every = Told(
        (
            *(body for one in (embedding, pooled, classified, scored, ranked) for body in one.bodies),
            *default.bodies,
        ),
        Any,
        [_BYTES],
        tei=True,
    )
    per_token = Told((tei.EmbedAllBody,), list[list[list[float]]], tei=True, vllm=False)
    sparse = Told((tei.EmbedSparseBody,), list[list[answers.TEIWeight]], tei=True, vllm=False)
    similar = Told((tei.SimilarityBody,), list[float], tei=True, vllm=False)
    decoded = Told((tei.DecodeBody,), list[str], tei=True, vllm=False)
    tokenized = Told(
        (tokens.TokenizeText, tokens.TokenizeChat, tokens.TokenizeInputs),
        answers.Tokenized | list[list[answers.TokenDetail]],
    )
    invocations = InvocationRoutes(router, openai, classify, score, pool, text)
    return [
        ("POST", "/v1/embeddings", openai.embeddings, embedding),
        ("POST", "/pooling", pool.pooling, pooled),
        ("POST", "/classify", classify.classify, classified),
        ("POST", "/score", score.score, scored),
        ("POST", "/v1/score", score.score, scored),
        ("POST", "/rerank", score.rerank, either),
        ("POST", "/v1/rerank", score.rerank, either),
        ("POST", "/v2/rerank", score.rerank, either),
        ("POST", "/v2/embed", cohere.embed, Told((CohereEmbedBody,), answers.CohereEmbedAnswer)),
        ("POST", "/tokenize", token.tokenize, tokenized),
        ("POST", "/detokenize", token.detokenize, Told((tokens.DetokenizeBody,), answers.Detokenized)),
        ("POST", "/invocations", invocations.invocations, every),
        ("POST", "/embed", text.at(TEIRoutes.embed), vectors),
        ("POST", "/embed_all", text.at(TEIRoutes.embed_all), per_token),
        ("POST", "/embed_sparse", text.at(TEIRoutes.embed_sparse), sparse),
        ("POST", "/predict", text.at(TEIRoutes.predict), labels),
        ("POST", "/similarity", text.at(TEIRoutes.similarity), similar),
        ("POST", "/decode", text.at(TEIRoutes.decode), decoded),
        ("POST", "/", text.at(TEIRoutes.by_default), default),
        ("GET", "/info", system.info, Told(answer=answers.Info)),
        ("GET", "/v1/models", system.models, Told(answer=answers.ModelList)),
        ("GET", "/", system.health, probe),
        ("GET", "/health", system.health, probe),
        ("GET", "/ping", system.health, probe),
        ("POST", "/ping", system.health, probe),
        ("GET", "/version", system.version, Told(answer=answers.Version)),
        ("GET", "/load", system.load, Told(answer=answers.Load)),
        ("GET", "/metrics", system.metrics, Told(raw=["text/plain"])),
    ]


async def on_client_left(_: Request, error: Exception) -> Response:
    """Nobody reads this; without it, a body that is cut off would count as a fault of ours."""
    return Response(status_code=499)
