"""Cohere's embedding types: what a float32 vector becomes under each name."""

import base64
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pooling.errors import InvalidRequest
from pooling.request import Rows

EmbeddingType = Literal["float", "base64", "binary", "ubinary"]


def _ubinary(rows: Rows) -> NDArray[np.uint8]:
    """One bit for each component, 1 where it is not negative, the first in the highest bit: [n, dim / 8]."""
    if rows.shape[1] % 8:
        raise InvalidRequest(
            f"Embedding dimension must be a multiple of 8 for binary embedding types, but got {rows.shape[1]}.",
            "embedding_types",
        )
    return np.packbits(rows >= 0, axis=1)


def _binary(rows: Rows) -> NDArray[np.int8]:
    """The same bits as a signed byte, shifted by 128 as Cohere does."""
    return (_ubinary(rows).astype(np.int16) - 128).astype(np.int8)


def _base64(rows: Rows) -> list[str]:
    return [base64.b64encode(row.astype("<f4").data).decode("ascii") for row in rows]


# What orjson can write, for rows [n, dim] float32.
PACKINGS: dict[EmbeddingType, Callable[[Rows], Any]] = {
    "float": list,
    "base64": _base64,
    "binary": lambda rows: list(_binary(rows)),
    "ubinary": lambda rows: list(_ubinary(rows)),
}
