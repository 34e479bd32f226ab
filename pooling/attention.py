"""Packed variable-length attention: inputs lie end to end in one row, and no input sees another.

transformers' models call the function registered here for every layer. It
finds the lengths of the batch through the calling module, in a slot that
`bind()` puts there, so two models in one process never share any state.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pooling.full_attention import attend_group
from pooling.masked_attention import attend_masked

NAME = "raypool_packed"
_SLOT = "raypool_packing"
# Beyond this the fused kernel, which never holds all scores, wins. With AMX it always does: its products are as fast,
# and 54 tokens of MiniLM take 1.4 instead of 1.9 ms a thousand.
_PLAIN_BYTES = 0 if torch.cpu._is_amx_tile_supported() else 1 << 26


class Group(NamedTuple):
    """Neighbours of equal length: inputs of `length` tokens each, from token `start` on, `inputs` of them.

    Of each input the first `keys` tokens are seen.
    """

    start: int
    inputs: int
    length: int
    keys: int


class PrefixedGroup(NamedTuple):
    """Neighbours of which the last `length` of `keys` tokens are computed, from token `start` and key `first` on."""

    start: int
    inputs: int
    length: int
    first: int
    keys: int


@dataclass(frozen=True, slots=True)
class Prefixed:
    """Of a step whose inputs share what they begin with, the keys that its tokens see.

    places [keys]: which token of the row each key is, input after input. As in Packing,
    groups serves the CPU kernel, cu_seqlens [inputs + 1] and max_length that of CUDA.
    """

    places: Tensor
    groups: tuple[PrefixedGroup, ...]
    max_length: int
    cu_seqlens: Tensor | None = None

    @classmethod
    def of(cls, sizes: Sequence[Sequence[int]], places: Tensor, cu_seqlens: Tensor | None = None) -> "Prefixed":
        """sizes: of each input how many of its tokens are computed, and how many it has."""
        groups, start, first = [], 0, 0
        for (length, keys), run in groupby(map(tuple, sizes)):
            count = sum(1 for _ in run)
            groups.append(PrefixedGroup(start, count, length, first, keys))
            start, first = start + count * length, first + count * keys
        return cls(places, tuple(groups), max(keys for _, keys in sizes), cu_seqlens)


@dataclass(frozen=True, slots=True)
class Packing:
    """How the inputs of one step lie in its row.

    groups serves the CPU kernel. cu_seqlens [inputs + 1] int32 on the device
    and max_length serve the CUDA kernel, as do the groups whose tokens are not
    all seen. prefixed: the keys, where not all of an input's are its own.
    """

    groups: tuple[Group, ...]
    max_length: int
    cu_seqlens: Tensor | None = None
    prefixed: Prefixed | None = None

    @classmethod
    def of(
        cls, lengths: Sequence[int], cu_seqlens: Tensor | None = None, attended: Sequence[int] | None = None
    ) -> "Packing":
        """Lengths should be sorted: only equal neighbours share a group. attended: how many tokens of each are seen."""
        groups, start = [], 0
        for (length, keys), run in groupby(zip(lengths, lengths if attended is None else attended, strict=True)):
            count = sum(1 for _ in run)
            groups.append(Group(start, count, length, keys))
            start += count * length
        return cls(tuple(groups), max(lengths), cu_seqlens)

    @property
    def rows(self) -> list[tuple[int, int, int, int]]:
        """The groups as compiled code takes them."""
        return [(start, inputs, length, keys) for start, inputs, length, keys in self.groups]


class PackingSlot(threading.local):
    """Where a model's attention finds the packing of the step, or of the part of it, that its thread is running."""

    def __init__(self, packing: Packing | None = None) -> None:
        self.packing = packing


@dataclass(frozen=True, slots=True)
class Rule:
    """Which keys a query sees, and how scores are made: key k of query q is seen if |q - k| < window (and k <= q).

    bias [1, heads, longest, longest] is added to the scaled scores; it depends
    on q - k only, so a shorter input takes its top left corner.
    """

    scale: float
    causal: bool
    window: int | None
    softcap: float | None
    bias: Tensor | None = None

    def sees_all(self, length: int) -> bool:
        """Whether each query of an input of that length sees all its keys, with scores as they are."""
        within = self.window is None or length <= self.window
        return within and not self.causal and self.softcap is None and self.bias is None


def bind(model: nn.Module) -> PackingSlot:
    """Gives every layer of a model the slot through which its attention learns the packing of a step.

    T5's layers build a bias for each pair of tokens in the row; here it is
    built for each pair of the longest input's.
    """
    slot = PackingSlot()
    module: Any
    for module in model.modules():
        setattr(module, _SLOT, slot)
        if hasattr(module, "compute_bias") and not isinstance(module.compute_bias, _BiasOfLongest):
            module.compute_bias = _BiasOfLongest(module.compute_bias, module)
    return slot


def slot_of(module: nn.Module) -> PackingSlot:
    """The slot of a module that bind() has seen."""
    slot: PackingSlot = getattr(module, _SLOT)
    return slot


class _BiasOfLongest:
    """Of a layer of T5: the bias of each pair of the longest input's tokens."""

    def __init__(self, compute: Callable[..., Tensor], module: nn.Module) -> None:
        self._compute, self._module = compute, module

    def __call__(self, query_length: int, key_length: int, device: torch.device | None = None, **rest: Any) -> Tensor:
        packing = slot_of(self._module).packing
        if packing is not None:
            query_length = key_length = packing.max_length
        return self._compute(query_length, key_length, device, **rest)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over one packed row.

    query [1, heads, tokens, head_dim], key and value [1, kv_heads, tokens,
    head_dim] -> [1, tokens, heads, head_dim]. A config's `is_causal` arrives
    as a keyword and beats the module's own.
    Raises RuntimeError for a term of the scores that it does not know: ignoring
    one gives wrong vectors without a sign.
    """
    packing = slot_of(module).packing
    unknown = [name for name in ("s_aux",) if other.get(name) is not None]
    unknown += ["position_bias beside softcap"] if softcap is not None and position_bias is not None else []
    if packing is None or attention_mask is not None or unknown:
        raise RuntimeError(f"packed attention cannot run: packing {packing}, mask {attention_mask}, unknown {unknown}")
    built_causal = bool(getattr(module, "is_causal", True))
    causal = built_causal if is_causal is None else is_causal
    # Where a config turns a causal model both ways, transformers' own mask counts the window without the token itself.
    rule = Rule(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        causal=causal,
        window=sliding_window + 1 if sliding_window and built_causal and not causal else sliding_window,
        softcap=softcap,
        bias=position_bias,
    )
    kernel: Callable[[Tensor, Tensor, Tensor, Packing, Rule], Tensor] = _cuda if query.is_cuda else attend
    # [heads, tokens, head_dim] in, [tokens, heads, head_dim] out
    return kernel(query[0], key[0], value[0], packing, rule).unsqueeze(0), None


def plain_bytes() -> int:
    """How large the scores of an input may be for two products and a softmax, as in full_attention.attend_group()."""
    return _PLAIN_BYTES


def attend(query: Tensor, key: Tensor, value: Tensor, packing: Packing, rule: Rule) -> Tensor:
    """On a CPU: query [heads, tokens, head_dim], key and value [kv_heads, tokens, ...] -> [tokens, heads, head_dim]."""
    if packing.prefixed is not None:
        return _attend_prefixed(query, key, value, packing.prefixed, rule)
    out = query.new_empty(query.shape[1], query.shape[0], value.shape[-1])
    for group in packing.groups:
        if rule.sees_all(group.length):
            attend_group(query, key, value, out, *group, rule.scale, plain_bytes())
            continue
        q, k, v, place = (
            _inputs(part, group.start, group.inputs, group.length) for part in (query, key, value, out.transpose(0, 1))
        )
        if group.keys == group.length and _takes_stretches(query, rule):
            attend_masked(q, k, v, place, rule.causal, rule.window or 0, rule.scale)
            continue
        # [inputs, heads, length, dim], all views: nothing is copied yet
        q, k, v, place = (part.transpose(0, 1) for part in (q, k, v, place))
        place.copy_(_ruled(q, k[:, :, : group.keys], v[:, :, : group.keys], rule))
    return out


def _inputs(part: Tensor, start: int, inputs: int, length: int) -> Tensor:
    """[heads, tokens, dim] -> of some inputs of equal length, a view [heads, inputs, length, dim]."""
    return part.narrow(1, start, inputs * length).view(part.shape[0], inputs, length, part.shape[2])


def _takes_stretches(query: Tensor, rule: Rule) -> bool:
    """Whether attend_masked() is faster than torch's fused kernel (docs/benchmarks.md)."""
    return _is_plain(rule) and query.dtype == torch.bfloat16 and plain_bytes() > 0


def _is_plain(rule: Rule) -> bool:
    return rule.softcap is None and rule.bias is None


def _attend_prefixed(query: Tensor, key: Tensor, value: Tensor, prefixed: Prefixed, rule: Rule) -> Tensor:
    """As attend(), by a causal rule: each token sees keys of its input that another one's tokens have given.

    Raises RuntimeError for a rule with a bias, which no causal model has.
    """
    if rule.bias is not None:
        raise RuntimeError("inputs that share what they begin with cannot have a bias")
    out = query.new_empty(query.shape[1], query.shape[0], value.shape[-1])
    key, value = key[:, prefixed.places], value[:, prefixed.places]
    for start, inputs, length, first, keys in prefixed.groups:
        q, place = (_inputs(part, start, inputs, length) for part in (query, out.transpose(0, 1)))
        k, v = (_inputs(part, first, inputs, keys) for part in (key, value))
        if _takes_stretches(query, rule) or (_is_plain(rule) and length < keys):
            attend_masked(q, k, v, place, rule.causal, rule.window or 0, rule.scale)
            continue
        q, k, v, place = (part.transpose(0, 1) for part in (q, k, v, place))
        if length == keys:
            place.copy_(_ruled(q, k, v, rule))
        else:
            place.copy_(_softcapped(q, k, v, rule, _build_visible(keys, rule.causal, rule.window, length)))
    return out


def _ruled(q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
    """One group whose rule hides something: all [inputs, heads, length, dim], k and v with kv_heads and keys."""
    length = q.shape[2]
    if rule.softcap is not None:
        visible = _visible(length, rule.causal, rule.window)
        return _softcapped(q, k, v, rule, None if visible is None else visible[:, : k.shape[2]])
    # is_causal alone is faster than a mask that says the same
    within = rule.bias is None and (rule.window is None or length <= rule.window)
    mask = None if within else _mask(length, rule)
    mask = None if mask is None else mask[..., : k.shape[2]]
    causal, grouped = rule.causal and within, k.shape[1] != q.shape[1]
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=rule.scale, enable_gqa=grouped)


def _softcapped(q: Tensor, k: Tensor, v: Tensor, rule: Rule, visible: Tensor | None) -> Tensor:
    assert rule.softcap is not None
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    scores = (q @ k.transpose(2, 3)) * rule.scale
    scores = torch.tanh(scores / rule.softcap) * rule.softcap
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    return scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v


def _mask(length: int, rule: Rule) -> Tensor | None:
    """What is added to the scores, or (bool) which of them count: [.., length, length]."""
    visible = _visible(length, rule.causal, rule.window)
    if rule.bias is None:
        return visible
    bias = rule.bias[..., :length, :length]
    return bias if visible is None else bias.masked_fill(~visible, float("-inf"))


def _visible(length: int, causal: bool, window: int | None) -> Tensor | None:
    """[length, length] bool, true where the query of that row sees the key of that column; None: all."""
    return (_short_mask if length <= _SHORT else _long_masks.of)(length, causal, window)


def _build_visible(length: int, causal: bool, window: int | None, queries: int | None = None) -> Tensor | None:
    """queries: only the last rows."""
    if not causal and window is None:
        return None
    place = torch.arange(length)
    ahead = place[None, :] - place[-(queries or length) :, None]
    seen = ahead <= 0 if causal else torch.ones_like(ahead, dtype=torch.bool)
    return seen if window is None else seen & (ahead.abs() < window)


# Two kinds of layer (local and global) at some 64 lengths: what a few steps of mixed work use, and at most 128 MiB.
# A long mask costs little beside its attention; the layers of a step share it, in each thread that runs a part of it.
_SHORT = 1_024
_short_mask = lru_cache(maxsize=128)(_build_visible)


class _LongMasks(threading.local):
    def __init__(self) -> None:
        self.of = lru_cache(maxsize=2)(_build_visible)


_long_masks = _LongMasks()


def _cuda(query: Tensor, key: Tensor, value: Tensor, packing: Packing, rule: Rule) -> Tensor:
    """torch's built-in FlashAttention for packed rows: bfloat16 and float16, no padding, no mask."""
    from torch.nn.attention.varlen import varlen_attn

    if rule.softcap is not None or rule.bias is not None or packing.cu_seqlens is None:
        raise RuntimeError("packed attention on CUDA supports neither softcap nor bias and needs cu_seqlens")
    repeat = query.shape[0] // key.shape[0]
    q, k, v = (part.transpose(0, 1) for part in (query, key, value))
    cu_keys, longest = packing.cu_seqlens, packing.max_length
    if packing.prefixed is not None:
        assert packing.prefixed.cu_seqlens is not None
        k, v = k[packing.prefixed.places], v[packing.prefixed.places]
        cu_keys, longest = packing.prefixed.cu_seqlens, packing.prefixed.max_length
    if repeat > 1:  # torch 2.11 has no grouped heads here
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    back = -1 if rule.window is None else rule.window - 1
    answer: Tensor = varlen_attn(  # type: ignore[assignment]  # a tuple only if return_aux is given
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        packing.cu_seqlens,
        cu_keys,
        packing.max_length,
        longest,
        scale=rule.scale,
        # Of fewer tokens than keys the kernel takes the last one to see all keys.
        window_size=(back, 0 if rule.causal else back),
    )
    return _with_expanded(answer, q, k, v, packing, rule)


def _with_expanded(answer: Tensor, q: Tensor, k: Tensor, v: Tensor, packing: Packing, rule: Rule) -> Tensor:
    """The answer again for inputs that are not seen whole: those of a group have as many queries and as many keys.

    They are shorter than any window (the loader sees to that) and few, for they are queries of a search.
    """
    for group in packing.groups:
        if group.keys == group.length:
            continue
        size = group.inputs * group.length
        some = (
            part[group.start : group.start + size].view(group.inputs, group.length, *part.shape[1:])
            for part in (q, k, v)
        )
        own_q, own_k, own_v = (part.transpose(1, 2) for part in some)
        own_k, own_v = own_k[:, :, : group.keys], own_v[:, :, : group.keys]
        own = scaled_dot_product_attention(own_q, own_k, own_v, is_causal=rule.causal, scale=rule.scale)
        answer[group.start : group.start + size] = own.transpose(1, 2).flatten(0, 1)
    return answer


# Only attention is registered, no mask: transformers then builds none, for every kind of mask.
ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
