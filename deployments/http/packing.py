"""Embedding types of Cohere's API, and of ours: what a float32 vector becomes under each name."""

import base64
from collections.abc import Callable
from typing import Any, Literal

from pooling.errors import InvalidRequest
from pooling.loading.card import ModelCard
from pooling.quantise import quantiser_for
from pooling.request import PoolingParams, Rows

EmbeddingType = Literal["float", "base64", "int8", "uint8", "binary", "ubinary"]
Packing = Callable[[Rows], Any]


def packing_of(kind: EmbeddingType, card: ModelCard, params: PoolingParams) -> Packing:
    """What makes of rows [n, dim] float32 something that orjson can write.

    Raises InvalidRequest for a type that such vectors of the model have not:
    bits of a size that fills no bytes, integers without a range.
    """
    if kind == "float":
        return list
    if kind == "base64":
        return lambda rows: [base64.b64encode(row.astype("<f4").data).decode("ascii") for row in rows]
    try:
        quantise = quantiser_for(kind, card, params)
    except InvalidRequest as error:
        raise InvalidRequest(error.detail, "embedding_types") from None
    return lambda rows: list(quantise(rows))
