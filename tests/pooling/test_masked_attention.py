"""Attention a stretch of queries at a time: the same as at once, by every rule and wherever stretches end."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pooling.masked_attention import attend_masked

DIM = 16


def drawn(heads: int, kv_heads: int, inputs: int, length: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the last `length` of `keys` tokens, sharp ones: a wrong mask moves the answer by 0.1 and more."""
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(heads, inputs * length, DIM, generator=draw) * 3
    k, v = torch.randn(2, kv_heads, inputs * keys, DIM, generator=draw)
    return (q.view(heads, inputs, length, DIM), *(part.view(kv_heads, inputs, keys, DIM) for part in (k, v)))


def by_mask(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int) -> Tensor:
    length, keys = q.shape[2], k.shape[2]
    ahead = torch.arange(keys)[None, :] - torch.arange(keys - length, keys)[:, None]
    seen = ahead <= 0 if causal else torch.ones_like(ahead, dtype=torch.bool)
    seen = seen & (ahead.abs() < window) if window else seen
    q, k, v = (part.transpose(0, 1) for part in (q, k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=0.25, enable_gqa=True).transpose(0, 1)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("causal", "window"), [(True, 0), (True, 20), (True, 7), (False, 20), (False, 5), (False, 0)])
@pytest.mark.parametrize(
    ("inputs", "length", "keys"),
    [(1, 1, 1), (3, 16, 16), (1, 17, 17), (2, 75, 75), (1, 5, 75), (2, 40, 75), (3, 1, 33)],
)
def test_stretches_together_are_the_whole(
    kv_heads: int, causal: bool, window: int, inputs: int, length: int, keys: int
) -> None:
    q, k, v = drawn(4, kv_heads, inputs, length, keys)
    expected = by_mask(q, k, v, causal, window)
    for cache_bytes in (1 << 20, 5_000, 1):
        row = torch.full((inputs * length, 4, DIM), torch.nan)
        out = row.view(inputs, length, 4, DIM).permute(2, 0, 1, 3)
        attend_masked(q, k, v, out, causal, window, 0.25, 16, cache_bytes)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
