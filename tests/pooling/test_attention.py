"""Packed attention against a mask written out in full, for every rule a family uses."""

import itertools
from typing import Any

import pytest
import torch

from pooling.attention import Packing, PackingSlot, Rule, _with_expanded, bind, packed_attention

LENGTHS = [40, 17, 17, 17, 5, 1]
# Of three inputs not all tokens are seen: those behind fill a query up.
ATTENDED = [40, 17, 9, 9, 4, 1]


class Layer(torch.nn.Module):
    is_causal = True


def by_definition(q, k, v, causal, window, softcap, attended=LENGTHS):  # type: ignore[no-untyped-def]
    """One dense attention with the block-diagonal mask: [heads, tokens, dim] -> [tokens, heads, dim]."""
    places = torch.cat([torch.arange(length) for length in LENGTHS])
    owner = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    ahead = torch.arange(len(owner))[None, :] - torch.arange(len(owner))[:, None]
    seen = owner[None, :] == owner[:, None]
    seen &= (places < torch.repeat_interleave(torch.tensor(attended), torch.tensor(LENGTHS)))[None, :]
    seen &= ahead <= 0 if causal else torch.tensor(True)
    seen &= ahead.abs() < window if window else torch.tensor(True)
    k, v = (part.repeat_interleave(q.shape[0] // k.shape[0], dim=0) for part in (k, v))
    scores = (q @ k.transpose(1, 2)) * q.shape[-1] ** -0.5
    scores = torch.tanh(scores / softcap) * softcap if softcap else scores
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32))
    return (weights.to(q.dtype) @ v).transpose(0, 1)


def off(answer, q, k, v, *rule) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """How far the answer is from the exact one, and how far it may be: in bfloat16 about as far as the definition is,
    which is what transformers' eager attention computes."""
    exact = by_definition(q.double(), k.double(), v.double(), *rule)
    rounded = float((by_definition(q, k, v, *rule) - exact).abs().max())
    return float((answer - exact).abs().max()), 1e-5 if q.dtype == torch.float32 else min(1.25 * rounded, 0.06)


@pytest.fixture(params=["two products", "fused"], autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of the two a CPU takes depends on what it multiplies fast; both must be right on each."""
    monkeypatch.setattr("pooling.attention._PLAIN_BYTES", 1 << 26 if request.param == "two products" else 0)


@pytest.mark.parametrize(
    ("dtype", "kv_heads", "causal", "window", "softcap"),
    [
        *itertools.product([torch.float32, torch.bfloat16], [4, 2], [True, False], [None, 8], [None]),
        (torch.float32, 2, True, 8, 5.0),
        (torch.float32, 4, False, None, 5.0),
    ],
)
def test_no_input_sees_another_and_each_query_sees_its_window(dtype, kv_heads, causal, window, softcap) -> None:  # type: ignore[no-untyped-def]
    draw = torch.Generator().manual_seed(0)
    tokens = sum(LENGTHS)
    # Queries of this size make a wrong mask move the answer by 0.1 and more.
    q = (torch.randn(1, 4, tokens, 16, generator=draw) * 3).to(dtype)
    k, v = (torch.randn(1, kv_heads, tokens, 16, generator=draw).to(dtype) for _ in range(2))
    layer = Layer()
    layer.is_causal = causal
    layer.raypool_packing = PackingSlot(Packing.of(LENGTHS))
    answer, _ = packed_attention(layer, q, k, v, None, sliding_window=window, softcap=softcap)
    assert answer.shape == (1, tokens, 4, 16)
    error, allowed = off(answer[0], q[0], k[0], v[0], causal, window, softcap)
    assert error < allowed


@pytest.mark.parametrize(
    ("dtype", "kv_heads", "causal", "window", "softcap"),
    [
        *itertools.product([torch.float32, torch.bfloat16], [4, 2], [True, False], [None, 16], [None]),
        (torch.float32, 2, True, 16, 5.0),
        (torch.float32, 4, False, None, 5.0),
    ],
)
def test_what_fills_a_query_up_sees_the_query_and_is_seen_by_nobody(dtype, kv_heads, causal, window, softcap) -> None:  # type: ignore[no-untyped-def]
    draw = torch.Generator().manual_seed(0)
    tokens = sum(LENGTHS)
    q = (torch.randn(1, 4, tokens, 16, generator=draw) * 3).to(dtype)
    k, v = (torch.randn(1, kv_heads, tokens, 16, generator=draw).to(dtype) for _ in range(2))
    layer = Layer()
    layer.is_causal = causal
    layer.raypool_packing = PackingSlot(Packing.of(LENGTHS, attended=ATTENDED))
    answer, _ = packed_attention(layer, q, k, v, None, sliding_window=window, softcap=softcap)
    error, allowed = off(answer[0], q[0], k[0], v[0], causal, window, softcap, ATTENDED)
    assert error < allowed


@pytest.mark.parametrize("causal", [True, False])
def test_the_cuda_path_answers_again_for_filled_up_queries(causal: bool) -> None:
    """What it does behind the CUDA kernel, which sees every token of every input; it runs anywhere."""
    q, k, v = torch.randn(3, sum(LENGTHS), 4, 16, generator=torch.Generator().manual_seed(0))
    heads_first = [part.transpose(0, 1) for part in (q, k, v)]
    whole = by_definition(*heads_first, causal, None, None).float().contiguous()
    rule = Rule(scale=16**-0.5, causal=causal, window=None, softcap=None)
    answer = _with_expanded(whole.clone(), q, k, v, Packing.of(LENGTHS, attended=ATTENDED), rule)
    expected = by_definition(*heads_first, causal, None, None, ATTENDED)
    assert float((answer - expected).abs().max()) < 1e-5
    if not causal:
        assert float((whole - expected).abs().max()) > 0.1


def test_the_keyword_beats_the_module_on_causality() -> None:
    layer = Layer()
    layer.raypool_packing = PackingSlot(Packing.of([4]))
    q, k, v = torch.randn(3, 1, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    implied, _ = packed_attention(layer, q, k, v, None)
    causal, _ = packed_attention(layer, q, k, v, None, is_causal=True)
    both_ways, _ = packed_attention(layer, q, k, v, None, is_causal=False)
    assert torch.equal(implied, causal)
    assert not torch.allclose(causal, both_ways)


def test_a_causal_layer_turned_both_ways_sees_one_token_more_than_its_window() -> None:
    """As transformers' mask has it: |q - k| <= window, where a layer built to look both ways has |q - k| < window."""
    layer = Layer()
    layer.raypool_packing = PackingSlot(Packing.of([12]))
    q, k, v = torch.randn(3, 1, 2, 12, 8, generator=torch.Generator().manual_seed(0)) * 3
    turned, _ = packed_attention(layer, q, k, v, None, is_causal=False, sliding_window=4)
    layer.is_causal = False
    wider, _ = packed_attention(layer, q, k, v, None, sliding_window=5)
    same, _ = packed_attention(layer, q, k, v, None, sliding_window=4)
    assert torch.equal(turned, wider)
    assert not torch.allclose(turned, same)


@pytest.mark.parametrize("causal", [True, False])
def test_a_position_bias_is_each_input_s_own(causal: bool) -> None:
    layer = Layer()
    layer.is_causal = causal
    layer.raypool_packing = PackingSlot(Packing.of([12, 5]))
    draw = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 17, 8, generator=draw)
    bias = torch.randn(1, 2, 12, 12, generator=draw) * 3
    answer, _ = packed_attention(layer, q, k, v, None, scaling=1.0, position_bias=bias)
    for place, length in ((slice(0, 12), 12), (slice(12, 17), 5)):
        scores = q[0, :, place] @ k[0, :, place].transpose(1, 2) + bias[0, :, :length, :length]
        if causal:
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
        expected = (scores.softmax(-1) @ v[0, :, place]).transpose(0, 1)
        assert float((answer[0, place] - expected).abs().max()) < 1e-5


def test_a_position_bias_is_built_for_the_longest_input_not_for_the_row() -> None:
    """A row of 16,384 tokens would ask for a bias of 1 GiB a head."""

    class Biased(Layer):
        def compute_bias(self, queries: int, keys: int, device: Any = None, past_seen_tokens: int = 0) -> torch.Tensor:
            return torch.zeros(1, 2, queries, keys)

    layer = Biased()
    slot = bind(layer)
    assert layer.compute_bias(17, 17).shape == (1, 2, 17, 17)  # nothing is packed: as the model has it
    slot.packing = Packing.of([12, 5])
    assert layer.compute_bias(17, 17, device=None, past_seen_tokens=0).shape == (1, 2, 12, 12)


@pytest.mark.parametrize(
    "terms", [{"s_aux": torch.zeros(1)}, {"softcap": 5.0, "position_bias": torch.zeros(1, 2, 4, 4)}]
)
def test_a_term_of_the_scores_that_it_does_not_know_is_an_error(terms: dict[str, Any]) -> None:
    layer = Layer()
    layer.raypool_packing = PackingSlot(Packing.of([4]))
    q = torch.zeros(1, 2, 4, 8)
    with pytest.raises(RuntimeError, match=next(iter(terms))):
        packed_attention(layer, q, q, q, None, **terms)
