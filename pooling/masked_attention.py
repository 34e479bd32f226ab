"""Attention on a CPU by a rule that hides keys, a stretch of queries at a time, compiled as in native.py."""

import torch
from torch import Tensor

from pooling.full_attention import CACHE_BYTES, softmax
from pooling.native import native

# Queries that are computed together: of the keys only those are read that one of them sees.
_STRETCH = 128


@native
def _mask(x: Tensor, queries: int, first: int, low: int, high: int, causal: bool, window: int) -> Tensor:
    """What is added to scores [queries, high - low] of the queries from the first on, in the dtype of x."""
    ahead = (
        torch.arange(low, high, dtype=torch.int32) - torch.arange(first, first + queries, dtype=torch.int32)[:, None]
    )
    mask = x.new_zeros([queries, high - low])
    if causal:
        mask.masked_fill_(ahead > 0, float("-inf"))
    if window > 0:
        mask.masked_fill_(ahead.abs_() >= window, float("-inf"))
    return mask


@native
def attend_masked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    causal: bool,
    window: int,
    scale: float,
    stretch: int = _STRETCH,
    cache_bytes: int = CACHE_BYTES,
) -> None:
    """Inputs of equal length, from and to their places in a row.

    q and out [heads, inputs, length, dim], k and v [kv_heads, inputs, keys, dim]:
    the queries are those of the last `length` keys. Key k of query q is seen if
    |q - k| < window, unless that is 0, and if causal k <= q.
    """
    heads, inputs, length, dim = q.shape[0], q.shape[1], q.shape[2], q.shape[3]
    kv_heads, keys, width = k.shape[0], k.shape[2], v.shape[3]
    rows, repeat, before = kv_heads * inputs, heads // kv_heads, keys - length
    k = k.reshape(rows, keys, dim).transpose(1, 2)
    v = v.reshape(rows, keys, width)
    for start in range(0, length, stretch):
        queries, first, low, high = min(stretch, length - start), before + start, 0, keys
        if window > 0:
            low, high = max(0, first - window + 1), min(keys, first + queries + window - 1)
        if causal:
            high = first + queries
        # Heads that share keys lie one behind the other: [rows, repeat * queries, dim]
        some = q.narrow(2, start, queries).reshape(kv_heads, repeat, inputs, queries, dim)
        some = some.permute(0, 2, 1, 3, 4).reshape(rows, repeat * queries, dim)
        hidden = _mask(q, queries, first, low, high, causal, window).repeat(repeat, 1)[None]
        answer = q.new_empty([rows, repeat * queries, width])
        step = max(1, cache_bytes // (repeat * queries * (high - low) * q.element_size()))
        for row in range(0, rows, step):
            count = min(step, rows - row)
            seen = k.narrow(0, row, count).narrow(2, low, high - low)
            scores = torch.baddbmm(hidden, some.narrow(0, row, count), seen, beta=1, alpha=scale)
            values = v.narrow(0, row, count).narrow(1, low, high - low)
            torch.bmm(softmax(scores), values, out=answer.narrow(0, row, count))
        answer = answer.view(kv_heads, inputs, repeat, queries, width).permute(0, 2, 1, 3, 4)
        out.narrow(2, start, queries).copy_(answer.reshape(heads, inputs, queries, width))
