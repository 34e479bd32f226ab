"""Quantise: float32 vectors -> int8, uint8 or packed bits, by a range that is the model's and never a request's."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pooling.errors import InvalidRequest
from pooling.loading.card import ModelCard
from pooling.request import PoolingParams, Rows

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
FloatType = Literal["float32", "float16", "bfloat16"]
Quantised = Rows | NDArray[np.int8] | NDArray[np.uint8]

# A normalised vector of d numbers is quantised over +-8 / sqrt(d). Measured on all-MiniLM-L6-v2 (d = 384) with the
# 1,000 texts of tests/pooling/test_parity.py: the largest number is 7.96 / sqrt(d), so nothing is cut; the cosine to
# the float vector is 0.99981 at worst and 0.99984 on average, and 99.2 % of the 10 nearest neighbours stay. A range
# of 5 keeps 99.7 % of them, but cuts the outliers: the worst cosine is 0.989.
_RANGE = 8.0
_STEPS = 127


@dataclass(frozen=True, slots=True)
class Quantiser:
    """One way to write vectors. limit: int8 and uint8 cover -limit..limit; numbers beyond are cut."""

    precision: Precision
    limit: float | None = None

    def __call__(self, rows: Rows) -> Quantised:
        """rows [..., dim] float32 -> [..., dim] int8 or uint8, [..., dim / 8] for bits, or as they are.

        int8 is the nearest multiple of limit / 127, uint8 the same + 128. A bit is
        1 where the number is >= 0, the first of eight the highest; `binary` is
        `ubinary` - 128. As Cohere and vLLM pack them; Sentence Transformers has 0
        for an exact zero.
        """
        if self.limit is not None:
            signed = np.clip(np.rint(rows * np.float32(_STEPS / self.limit)), -_STEPS, _STEPS).astype(np.int8)
            return signed if self.precision == "int8" else _shifted(signed)
        if self.precision == "float32":
            return rows
        bits = np.packbits(rows >= 0, axis=-1)
        return bits if self.precision == "ubinary" else _shifted(bits).view(np.int8)


def quantiser_for(precision: str, card: ModelCard, params: PoolingParams) -> Quantiser:
    """How the model's `embed` vectors, asked for with these params, are written.

    Raises InvalidRequest, saying what is allowed, for another precision, for
    bits of a size that does not fill bytes, and for vectors without a fixed range.
    """
    if precision not in get_args(Precision):
        allowed = ", ".join(get_args(Precision))
        raise InvalidRequest(f"precision is {precision!r}; allowed are {allowed}", "precision")
    known: Precision = precision  # type: ignore[assignment]  # one of get_args
    if known in ("int8", "uint8"):
        return Quantiser(known, int8_limit(card, params))
    if known != "float32" and (width := _width(card, params)) % 8:
        raise InvalidRequest(
            f"Embedding dimension must be a multiple of 8 for binary embedding types, but got {width}.", "precision"
        )
    return Quantiser(known)


def int8_limit(card: ModelCard, params: PoolingParams) -> float:
    """What int8 and uint8 of such vectors cover: -limit..limit. Raises InvalidRequest if nothing fixes it."""
    pooler, width = card.poolers["embed"], _width(card, params)
    normalised = card.normalises("embed", params.use_activation)
    if card.int8_range is not None and normalised == card.normalises("embed", None):
        # Normalised after being cut, the numbers that are left are larger.
        return card.int8_range * math.sqrt(pooler.width / width) if normalised else card.int8_range
    if not normalised:
        raise InvalidRequest(
            f"int8 and uint8 need a range that is fixed, and the vectors of {card.name!r} asked for are not "
            "normalised; ask for normalised ones, or set int8_range in override_pooler_config",
            "precision",
        )
    return min(_RANGE / math.sqrt(width), 1.0)


def to_float(rows: Rows, kind: FloatType) -> NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]:
    """rows float32 -> the nearest numbers of a float type; bfloat16, which numpy lacks, as its bits in uint16.

    Finite numbers beyond float16 become infinity, as in torch.
    """
    if kind == "float32":
        return rows
    if kind == "float16":
        with np.errstate(over="ignore"):
            return rows.astype(np.float16)
    bits = np.ascontiguousarray(rows).view(np.uint32)
    # Half of what is cut off, and one more if the number above is even: rounds to nearest, ties to even.
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def _width(card: ModelCard, params: PoolingParams) -> int:
    pooler = card.poolers["embed"]
    return params.dimensions or pooler.dimensions or pooler.width


def _shifted(values: NDArray[np.int8] | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """128 more, or less: in eight bits the same, the highest bit turned over."""
    return values.view(np.uint8) ^ np.uint8(0x80)
