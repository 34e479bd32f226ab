"""TEI's routes (text-embeddings-inference), in its shapes and with its statuses."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence, Sized
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from deployments.http.body import judge, read_json
from deployments.http.errors import REFUSED_AT_THE_DOOR
from deployments.http.headers import timeout_s
from deployments.http.schemas.tei import (
    DecodeBody,
    EmbedAllBody,
    EmbedBody,
    EmbedSparseBody,
    PredictBody,
    SimilarityBody,
    TextsBody,
)
from deployments.http.tei_errors import EmptyInput, tei_error_response
from deployments.scorer import Asked, ranked, score
from deployments.served import ServedModel
from pooling.errors import InvalidRequest, PoolingError, UnsupportedTask
from pooling.request import PoolingParams, PoolingRequest, Prompt, Rows

if TYPE_CHECKING:
    from deployments.router import Router

_LARGE_VALUES = 100_000  # about a megabyte of JSON numbers

Handler = Callable[["TEIRoutes", Any, Request], Awaitable[Response]]


def _in_tei_words(handler: Handler) -> Handler:
    """Refusals become TEI's own."""

    @wraps(handler)
    async def refusing(self: "TEIRoutes", data: Any, request: Request) -> Response:
        try:
            return await handler(self, data, request)
        except PoolingError as error:
            return self.refused(error)

    return refusing


class TEIRoutes:
    """Answers TEI's routes with the router's models. Handlers take the parsed body."""

    def __init__(self, router: "Router") -> None:
        self._router = router

    def at(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint that reads a body for a handler."""

        async def endpoint(request: Request) -> Response:
            try:
                data = await read_json(request, self._router.limits)
            except PoolingError as error:
                return self.refused(error)
            return await handler(self, data, request)

        endpoint.__doc__ = handler.__doc__
        return endpoint

    def refused(self, error: PoolingError) -> Response:
        response = tei_error_response(error)
        if isinstance(error, REFUSED_AT_THE_DOOR):
            self._router.metrics.refused(response.status_code)
        return response

    @_in_tei_words
    async def embed(self, data: Any, request: Request) -> Response:
        """One vector for each input."""
        body = judge(EmbedBody, data)
        params = PoolingParams(body.normalize, body.dimensions)
        return await _json(await self._vectors(body, "embed", params, request))

    @_in_tei_words
    async def embed_all(self, data: Any, request: Request) -> Response:
        """One vector for each token of each input, as the model makes it."""
        body = judge(EmbedAllBody, data)
        return await _json(await self._vectors(body, "token_embed", PoolingParams(use_activation=False), request))

    @_in_tei_words
    async def embed_sparse(self, data: Any, request: Request) -> Response:
        """The words that weigh something in each input, by their token ids."""
        body = judge(EmbedSparseBody, data)
        model = self._router.pick(body.model, None)
        view = model.sparse()  # refuses what weighs no words
        # Read here once, and sent as ids: of bge-m3 the answer is by token, and its word is needed too.
        batch = await model.tokenize(self._asked(body, view.task, PoolingParams()))
        inputs = np.split(batch.ids, batch.offsets()[1:-1])
        asked = PoolingRequest(inputs, view.task, batch.params)
        rows = (await self._router.answer(model, asked, timeout_s(request))).output.rows()
        weights = [view.weights(row, ids, batch.params) for row, ids in zip(rows, inputs, strict=True)]
        return await _json([[{"index": id, "value": value} for id, value in one.items()] for one in weights])

    @_in_tei_words
    async def predict(self, data: Any, request: Request) -> Response:
        """The labels of each text or pair, the likeliest first."""
        body = judge(PredictBody, data)
        model = self._pick(body.model, "classify", "Model is not a classifier model")
        rows: list[Any] = list(body.inputs) if _is_batch(body.inputs) else [body.inputs]
        inputs = [_text_or_pair(row) for row in rows]
        answers = await self._classified(model, inputs, body, request)
        labelled = [_by_score(row, model.card.labels_of("classify")) for row in answers]
        return await _json(labelled if _is_batch(body.inputs) else labelled[0])

    @_in_tei_words
    async def rerank(self, data: Any, request: Request) -> Response:
        """The texts by their relevance to the query, best first."""
        body = judge(TextsBody, data)
        if not body.texts:
            raise EmptyInput("`texts` cannot be empty", "texts")
        model = self._pick(body.model, "score", "model is not a re-ranker model")
        asked = Asked(False if body.raw_scores else None, body.limit, body.side)
        scored = await score(self._router, model, [body.query], body.texts, asked, timeout_s(request))
        scores: NDArray[Any] = scored.scores
        if (
            not body.raw_scores
            and "score" in model.card.poolers
            and model.card.poolers["score"].activation == "identity"
        ):
            scores = 1 / (1 + np.exp(-scores))  # TEI's scores are of 0 to 1, whatever the model says
        return await _json(
            [
                {"index": index, **({"text": body.texts[index]} if body.return_text else {}), "score": scores[index]}
                for index in ranked(scores, None)
            ]
        )

    @_in_tei_words
    async def similarity(self, data: Any, request: Request) -> Response:
        """How similar each sentence is to the source sentence."""
        body = judge(SimilarityBody, data)
        if not body.inputs.sentences:
            raise EmptyInput("`inputs.sentences` cannot be empty", "inputs")
        model = self._pick(body.model, "embed", "Model is not an embedding model")
        how = body.parameters
        asked = Asked(None, how.limit, how.side, prompt_name=how.prompt_name) if how else Asked(None, -1)
        sentences = body.inputs
        scored = await score(
            self._router, model, [sentences.source_sentence], sentences.sentences, asked, timeout_s(request)
        )
        return await _json(scored.scores.tolist())

    @_in_tei_words
    async def decode(self, data: Any, request: Request) -> Response:
        """The text of each list of token ids."""
        body = judge(DecodeBody, data)
        given: Any = body.ids
        lists = [given] if given and isinstance(given[0], int) else given
        if not lists or not all(lists):
            raise EmptyInput("`ids` cannot be empty", "ids")
        model = self._router.pick(body.model, None)
        return await _json([await model.in_text(ids, body.skip_special_tokens) for ids in lists])

    @_in_tei_words
    async def by_default(self, data: Any, request: Request) -> Response:
        """What TEI does at its root: embeds, or predicts or reranks where the model does that instead."""
        if isinstance(data, dict) and "texts" in data:
            return await self.rerank(data, request)
        if isinstance(data, dict) and isinstance(data.get("inputs"), dict):
            return await self.similarity(data, request)
        name = data.get("model") if isinstance(data, dict) else None
        tasks = self._router.pick(name if isinstance(name, str) else None, None).card.tasks
        return await (self.embed if "embed" in tasks else self.predict)(data, request)

    async def _vectors(self, body: EmbedAllBody, task: str, params: PoolingParams, request: Request) -> list[Rows]:
        model = self._pick(body.model, task, "Model is not an embedding model")
        return (await self._router.answer(model, self._asked(body, task, params), timeout_s(request))).output.rows()

    def _asked(self, body: EmbedAllBody, task: str, params: PoolingParams) -> PoolingRequest:
        prompts = body.prompts()
        if not prompts or any(isinstance(prompt, Sized) and not len(prompt) for prompt in prompts):
            raise EmptyInput("Input validation error: `inputs` cannot be empty", "inputs")
        return PoolingRequest(prompts, task, params, body.limit, body.side, prompt_name=body.prompt_name)

    async def _classified(
        self, model: ServedModel, inputs: Sequence[Prompt], body: PredictBody, request: Request
    ) -> list[Rows]:
        """Texts and pairs may stand side by side here; the engine takes one kind at a time."""
        answers: dict[int, Rows] = {}
        for kind in (str, tuple):
            places = [place for place, item in enumerate(inputs) if isinstance(item, kind)]
            if places:
                asked = PoolingRequest(
                    [inputs[place] for place in places],
                    "classify",
                    PoolingParams(False if body.raw_scores else None),
                    body.limit,
                    body.side,
                )
                answer = await self._router.answer(model, asked, timeout_s(request))
                answers.update(zip(places, answer.output.rows(), strict=True))
        return [answers[place] for place in range(len(inputs))]

    def _pick(self, name: str | None, task: str, refusal: str) -> ServedModel:
        model = self._router.pick(name, task)
        if task not in model.card.tasks:
            raise UnsupportedTask(refusal)
        return model


def _is_batch(inputs: Any) -> bool:
    """Whether there are rows of texts: a flat list is one pair, or one text."""
    return isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], list)


def _text_or_pair(row: str | list[str]) -> Prompt:
    texts = [row] if isinstance(row, str) else row
    if not 1 <= len(texts) <= 2:
        raise InvalidRequest(f"`inputs` must be one text or a pair of two, got {len(texts)} texts", "inputs")
    if not any(texts):
        raise EmptyInput("Input validation error: `inputs` cannot be empty", "inputs")
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])


def _by_score(row: Rows, labels: Sequence[str]) -> list[dict[str, Any]]:
    return [{"score": row[column], "label": labels[column]} for column in np.argsort(-row, kind="stable").tolist()]


async def _json(answer: list[Any]) -> Response:
    values = sum(row.size for row in answer if isinstance(row, np.ndarray))
    content = await asyncio.to_thread(_written, answer) if values > _LARGE_VALUES else _written(answer)
    return Response(content, media_type="application/json")


def _written(answer: list[Any]) -> bytes:
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
