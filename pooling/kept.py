"""kept(): which tokens of an input have a row in the answer to a token task; known before the forward pass."""

import numpy as np
from numpy.typing import NDArray

from pooling.loading.card import ModelCard, ResolvedPooler, Side
from pooling.request import Ids, PoolingParams, Rows
from pooling.tasks import TASKS, parts_of


def kept(
    ids: Ids, lengths: Ids, pooler: ResolvedPooler, params: PoolingParams, side: Side | None
) -> NDArray[np.bool_] | None:
    """[tokens], of inputs laid end to end; None keeps all."""
    masks: list[NDArray[np.bool_]] = []
    tag = pooler.step_tag_id if params.step_tag_id is None else params.step_tag_id
    if tag is not None:
        masks.append(ids == tag)
    if side is not None and side.dropped_ids:
        masks.append(~np.isin(ids, side.dropped_ids))
    if side is not None and side.kept_ids:
        masks.append(np.isin(ids, side.kept_ids))
    first, last = pooler.edge_ids
    if first is not None or last is not None:
        masks.append(~_edges(ids, lengths, first, last))
    return np.logical_and.reduce(masks) if masks else None


def apart(
    line: Rows, ids: Ids, task: str, card: ModelCard, params: PoolingParams, side: Side | None
) -> dict[str, Rows]:
    """One input's answers to tasks joined by `&`, which came in a line: [width], or [rows, width] of a token task."""
    answers: dict[str, Rows] = {}
    start = 0
    for name in parts_of(task):
        pooler = card.poolers[name]
        columns = len(params.returned_token_ids) if params.returned_token_ids is not None else None
        width = params.dimensions or columns or pooler.dimensions or pooler.width
        shape: tuple[int, ...] = (width,)
        if TASKS[name].rows == "token":
            mask = kept(ids, np.array([len(ids)], np.int32), pooler, params, side)
            shape = (len(ids) if mask is None else int(mask.sum()), width)
        stop = start + int(np.prod(shape))
        answers[name] = line[start:stop].reshape(shape)
        start = stop
    return answers


def side_of(card: ModelCard, input_type: str | None) -> Side | None:
    """The side whose tokens are dropped; an input on neither is taken for a document."""
    return card.sides.get("query" if input_type == "query" else "document")


def _edges(ids: Ids, lengths: Ids, first: int | None, last: int | None) -> NDArray[np.bool_]:
    ends = np.cumsum(lengths, dtype=np.int64)
    edges = np.zeros(len(ids), bool)
    starts = ends - lengths
    edges[starts] |= ids[starts] == (-1 if first is None else first)
    edges[ends - 1] |= ids[ends - 1] == (-1 if last is None else last)
    return edges
