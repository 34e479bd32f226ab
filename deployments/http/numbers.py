"""float32 vectors as the bytes of the number format that a client asks for."""

import sys
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pooling.errors import InvalidRequest
from pooling.request import Rows

EmbedDtype = Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]
Endianness = Literal["native", "big", "little"]


def as_numbers(rows: Rows, dtype: EmbedDtype, endianness: Endianness) -> NDArray[Any]:
    """rows [n, dim] float32 as an array of the same shape whose bytes are the numbers asked for.

    Rounds to the nearest, ties to even, as torch does; float32 in the machine's
    own order is returned as it is. Raises InvalidRequest if a number is too
    large for the format: infinity would be no answer.
    """
    if dtype in _FLOAT8:
        return _float8(rows, dtype)
    if dtype == "bfloat16":
        numbers: NDArray[Any] = _bfloat16(rows)
    elif dtype == "float16":
        _refuse_too_large(rows, dtype, float(np.finfo(np.float16).max))
        numbers = rows.astype(np.float16)
    else:
        numbers = rows
    return numbers if endianness in ("native", sys.byteorder) else numbers.byteswap()


def _bfloat16(rows: Rows) -> NDArray[np.uint16]:
    """The upper half of each float32, rounded. Its range is that of float32, so finite numbers stay finite but for
    those within half a step of the largest, which are refused."""
    _refuse_too_large(rows, "bfloat16", float(np.array(0x7F7F0000, np.uint32).view(np.float32)))
    bits = np.ascontiguousarray(rows).view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return ((bits + half) >> np.uint32(16)).astype(np.uint16)


def _float8(rows: Rows, dtype: str) -> NDArray[np.uint8]:
    """Sign and the code of the nearest magnitude: codes ascend with what they stand for."""
    magnitudes, midpoints = _FLOAT8[dtype]
    size = np.abs(rows)
    _refuse_too_large(rows, dtype, float(magnitudes[-1]))
    below = np.searchsorted(midpoints, size, "left")
    # Where a number lies on a midpoint the even one of its two neighbours is meant.
    on_midpoint = np.searchsorted(midpoints, size, "right") != below
    codes: NDArray[Any] = below + (on_midpoint & (below % 2 == 1))
    signs: NDArray[np.uint8] = np.signbit(rows).astype(np.uint8) << np.uint8(7)
    return codes.astype(np.uint8) | signs


def _refuse_too_large(rows: Rows, dtype: str, most: float) -> None:
    largest = max(float(rows.max(initial=0.0)), -float(rows.min(initial=0.0)))
    if largest > most:
        raise InvalidRequest(
            f"embed_dtype {dtype} holds numbers up to {most:g}, but the answer has {largest:g}; "
            "allowed are dtypes of a larger range, e.g. float32",
            "embed_dtype",
        )


def _magnitudes(exponent_bits: int, codes: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the finite non-negative codes of an 8-bit float stand for, ascending, and the midpoints between them."""
    mantissa_bits = 7 - exponent_bits
    bias = 2 ** (exponent_bits - 1) - 1
    code = np.arange(codes)
    exponent, mantissa = code >> mantissa_bits, code & ((1 << mantissa_bits) - 1)
    fraction = mantissa / 2**mantissa_bits + (exponent > 0)
    values = (fraction * 2.0 ** (np.maximum(exponent, 1) - bias)).astype(np.float32)
    return values, (values[1:] + values[:-1]) / 2


# e4m3 spends only its last code on NaN, e5m2 its last four on infinity and NaN. Source: Micikevicius and others 2022,
# arXiv:2209.05433, table 1.
_FLOAT8 = {"fp8_e4m3": _magnitudes(4, 127), "fp8_e5m2": _magnitudes(5, 124)}
