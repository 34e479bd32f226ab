"""Attention on a CPU where each token of an input sees all that are seen of it, compiled as in native.py."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pooling.native import native

# Score matrices of this size stay in a core's second-level cache, where softmax and the second product find them.
CACHE_BYTES = 1 << 20


@native
def softmax(scores: Tensor) -> Tensor:
    """Of the last dimension. torch's kernel for bfloat16 is up to four times slower where that is no multiple of 32."""
    keys = scores.shape[2]
    if keys % 32 == 0 or keys < 16:
        return scores.softmax(-1)
    return scores.float().softmax(-1).to(scores.dtype)


@native
def _two_products(q: Tensor, k: Tensor, v: Tensor, keys: int, scale: float, cache_bytes: int = CACHE_BYTES) -> Tensor:
    """softmax(q k) v of [rows, length, dim], of k and v the first `keys`."""
    rows, length = q.shape[0], q.shape[1]
    k = k.transpose(1, 2)
    if keys < length:
        k, v = k.narrow(2, 0, keys), v.narrow(1, 0, keys)
    step = max(1, cache_bytes // (length * keys * q.element_size()))
    if step >= rows:
        return torch.bmm(softmax(torch.baddbmm(q.new_empty([1]), q, k, beta=0, alpha=scale)), v)
    out = q.new_empty([rows, length, v.shape[2]])
    for start in range(0, rows, step):
        some = min(step, rows - start)
        scores = torch.baddbmm(
            q.new_empty([1]), q.narrow(0, start, some), k.narrow(0, start, some), beta=0, alpha=scale
        )
        torch.bmm(softmax(scores), v.narrow(0, start, some), out=out.narrow(0, start, some))
    return out


@native
def _fused(q: Tensor, k: Tensor, v: Tensor, keys: int, scale: float) -> Tensor:
    """q [heads, inputs, length, dim], k and v [kv_heads, inputs, length, ...], their first `keys` seen -> as q."""
    q, k, v = q.transpose(0, 1), k.transpose(0, 1).narrow(2, 0, keys), v.transpose(0, 1).narrow(2, 0, keys)
    grouped = k.shape[1] != q.shape[1]
    return scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=grouped).transpose(0, 1)


@native
def _takes_products(query: Tensor, heads: int, length: int, plain_bytes: int) -> bool:
    """Whether two products and a softmax are faster than torch's fused kernel.

    In bfloat16, up to twice as fast, if the scores of an input have at most plain_bytes.
    """
    return query.dtype == torch.bfloat16 and heads * length * length * query.element_size() <= plain_bytes


@native
def attend_merged(qkv: Tensor, groups: list[tuple[int, int, int, int]], scale: float, plain_bytes: int) -> Tensor:
    """qkv [3, heads, tokens, head_dim] -> [tokens, heads, head_dim].

    groups: as attention.Group has it. plain_bytes: see _takes_products().
    """
    heads, tokens, dim = qkv.shape[1], qkv.shape[2], qkv.shape[3]
    out = qkv.new_empty([tokens, heads, dim])
    for start, inputs, length, keys in groups:
        part = qkv.narrow(2, start, inputs * length)
        # [heads, inputs, length, dim], a view: nothing is copied yet
        place = out.narrow(0, start, inputs * length).view(inputs, length, heads, dim).permute(2, 0, 1, 3)
        if _takes_products(qkv, heads, length, plain_bytes):
            rows = part.reshape(3, heads * inputs, length, dim)  # of all three at once; for one input a view
            place.copy_(_two_products(rows[0], rows[1], rows[2], keys, scale).view(heads, inputs, length, dim))
        else:
            parts = part.view(3, heads, inputs, length, dim)
            place.copy_(_fused(parts[0], parts[1], parts[2], keys, scale))
    return out


@native
def attend_group(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    start: int,
    inputs: int,
    length: int,
    keys: int,
    scale: float,
    plain_bytes: int,
) -> None:
    """One group of inputs, from and to its place in a row.

    query [heads, tokens, head_dim], key and value [kv_heads, tokens, ...] ->
    out [tokens, heads, head_dim].
    """
    heads, size = query.shape[0], inputs * length
    q = query.narrow(1, start, size).view(heads, inputs, length, query.shape[2])
    k = key.narrow(1, start, size).view(key.shape[0], inputs, length, key.shape[2])
    v = value.narrow(1, start, size).view(value.shape[0], inputs, length, value.shape[2])
    place = out.narrow(0, start, size).view(inputs, length, heads, out.shape[2]).permute(2, 0, 1, 3)
    if key.shape[0] == heads and _takes_products(query, heads, length, plain_bytes):
        q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)  # a view for one input, else a copy
        place.copy_(_two_products(q, k, v, keys, scale).view(place.shape))
    else:
        place.copy_(_fused(q, k, v, keys, scale))
