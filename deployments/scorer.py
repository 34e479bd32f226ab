"""How relevant documents are to queries: a cross-encoder reads the pairs, an embedding model's vectors are compared."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from deployments.served import ServedModel
from pooling.media import Content
from pooling.request import ContentPair, Ids, PooledOutput, PoolingParams, PoolingRequest
from pooling.scoring import MAX_SIM, Scores, check_scoring, compare_all, pair_up

if TYPE_CHECKING:
    from deployments.python_api import PythonApi

# What is compared: texts, or texts and images for a model that takes them.
Sides = Sequence[str | Content]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller asks of every text; None keeps the model's choice, or cuts nothing."""

    use_activation: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool = True
    prompt_name: str | None = None
    max_tokens_per_query: int | None = None
    max_tokens_per_doc: int | None = None
    instruction: str | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """scores [pairs] float32 in the order of the pairs, and how many tokens were read for them."""

    scores: Scores
    prompt_tokens: int


async def score(
    router: "PythonApi",
    model: ServedModel,
    queries: Sides,
    documents: Sides,
    asked: Asked,
    timeout_s: float | None = None,
) -> Scored:
    """1:1, 1:N (the query for each document) or N:N, one by one.

    Raises UnsupportedTask if the model compares no texts, and what Router.answer raises.
    """
    kind = check_scoring(model.card)
    pairs = pair_up(queries, documents)
    if kind == "cross_encoder":
        answer = await router.answer(model, _request(pairs, "score", asked), timeout_s)
        return Scored(answer.output.data[:, 0], answer.prompt_tokens)
    task = "token_embed" if kind in MAX_SIM else "embed"
    if model.card.sides:
        return await _by_sides(router, model, queries, documents, task, asked, timeout_s)
    first = await _side(model, queries, task, asked, "query")
    second = await _side(model, documents, task, asked, "doc")
    answer = await router.answer(model, replace(_request(queries, task, asked), inputs=[*first, *second]), timeout_s)
    return Scored(compare_all(kind, *_parted(answer.output, len(first))), answer.prompt_tokens)


async def _by_sides(
    router: "PythonApi",
    model: ServedModel,
    queries: Sides,
    documents: Sides,
    task: str,
    asked: Asked,
    timeout_s: float | None,
) -> Scored:
    """Of a model that reads queries and documents in two ways: two requests, side by side."""
    sides: tuple[tuple[Literal["query", "document"], Sides, int | None], ...] = (
        ("query", queries, model.most_tokens(asked.max_tokens_per_query, "query")),
        ("document", documents, model.most_tokens(asked.max_tokens_per_doc, "doc")),
    )
    requests = [
        replace(
            _request(texts, task, asked),
            input_type=side,
            truncate_prompt_tokens=_least(asked.truncate_prompt_tokens, most),
        )
        for side, texts, most in sides
    ]
    first, second = await asyncio.gather(*(router.answer(model, request, timeout_s) for request in requests))
    kind = check_scoring(model.card)
    return Scored(compare_all(kind, first.output, second.output), first.prompt_tokens + second.prompt_tokens)


def _least(asked: int | None, most: int | None) -> int | None:
    """The smaller of two limits, of which -1 and None are none."""
    if most is None or asked is None or asked < 0:
        return asked if most is None else most
    return min(asked, most)


def ranked(scores: Scores, top_n: int | None) -> list[int]:
    """The places of the best scores, best first, equal ones in their own order; top_n None or 0: all of them."""
    order: list[int] = np.argsort(-scores, kind="stable").tolist()
    return order[:top_n] if top_n else order


async def _side(
    model: ServedModel, items: Sides, task: str, asked: Asked, which: Literal["query", "doc"]
) -> Sequence[str | Content | Ids]:
    """One side: as it is, or its texts as ids where each may have only so many tokens. Images are never cut."""
    most = model.most_tokens(asked.max_tokens_per_query if which == "query" else asked.max_tokens_per_doc, which)
    texts = [item for item in items if isinstance(item, str)]
    if most is None or not texts:
        return items
    whole = asked.truncate_prompt_tokens
    limit = _least(whole, most)
    batch = await model.tokenize(replace(_request(texts, task, asked), truncate_prompt_tokens=limit))
    cut = iter(np.split(batch.ids, batch.offsets()[1:-1]))
    return [next(cut) if isinstance(item, str) else item for item in items]


def _parted(output: PooledOutput, first: int) -> tuple[PooledOutput, PooledOutput]:
    """The answers of the first inputs, and those of the rest."""
    if output.lengths is None:
        return PooledOutput(output.data[:first]), PooledOutput(output.data[first:])
    rows = int(output.lengths[:first].sum())
    return (
        PooledOutput(output.data[:rows], output.lengths[:first]),
        PooledOutput(output.data[rows:], output.lengths[first:]),
    )


def _request(inputs: Sides | Sequence[ContentPair], task: str, asked: Asked) -> PoolingRequest:
    pairs = task == "score"
    return PoolingRequest(
        inputs,
        task,
        PoolingParams(asked.use_activation),
        asked.truncate_prompt_tokens,
        asked.truncation_side,
        asked.add_special_tokens,
        asked.prompt_name,
        asked.max_tokens_per_query if pairs else None,
        asked.max_tokens_per_doc if pairs else None,
        instruction=asked.instruction,
    )
