"""Ways to be wrong, each made on purpose in transformers' own model: a wrong mask, window, position or scale."""

from collections.abc import Callable
from typing import Any

import torch

from tests.reference import Reference

Mistake = Callable[[Reference], None]


def _shift(rows: int, table: str = "embeddings.position_embeddings") -> Mistake:
    """A token at position p reads the row of position p + rows."""

    def apply(reference: Reference) -> None:
        weight = reference.model.get_submodule(table).weight
        weight.data = weight.data.roll(-rows, 0)

    return apply


def _zero(name: str) -> Mistake:
    """A weight left out."""

    def apply(reference: Reference) -> None:
        reference.model.get_parameter(name).data.zero_()

    return apply


def _layers(part: str = "", **changes: Any) -> Mistake:
    """Other attributes in that part of each layer."""

    def apply(reference: Reference) -> None:
        for layer in reference.model.layers:
            for name, value in changes.items():
                setattr(layer.get_submodule(part), name, value)

    return apply


def _config(**changes: object) -> Mistake:
    def apply(reference: Reference) -> None:
        for name, value in changes.items():
            setattr(reference.model.config, name, value)

    return apply


def _theta(buffer: str, theta: float, module: str = "rotary_emb") -> Mistake:
    def apply(reference: Reference) -> None:
        frequencies = getattr(reference.model.get_submodule(module), buffer)
        steps = torch.arange(len(frequencies)) / len(frequencies)
        frequencies.copy_(theta**-steps)

    return apply


def _key_value_heads_swapped(reference: Reference) -> None:
    for layer in reference.model.layers:
        for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.weight.data = projection.weight.data.roll(projection.weight.shape[0] // 2, 0)


def _experts_by_name(reference: Reference) -> None:
    """Expert 10 before expert 2, as text sorts."""
    for layer in reference.model.layers:
        for name in ("gate_up_proj", "down_proj"):
            experts = getattr(layer.mlp.experts, name).data
            order = sorted(range(len(experts)), key=str)
            experts.copy_(experts[order].clone())


def _one_expert(reference: Reference) -> None:
    for layer in reference.model.layers:
        layer.mlp.gate.top_k = 1


def _padding_counts(reference: Reference) -> None:
    """Positions go on over padding that is written in the text."""
    model, first = reference.model, reference.tokenizer.pad_token_id + 1

    def hidden(ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            positions = torch.arange(first, first + len(ids))[None]
            return model(input_ids=torch.tensor([ids]), position_ids=positions).last_hidden_state[0]

    reference.hidden = hidden  # type: ignore[method-assign]


def _no_convolution(reference: Reference) -> None:
    reference.model.encoder.conv = None


def _no_mask_share(reference: Reference) -> None:
    reference.model.embeddings.token_dropout = False


def _t5_attention(**changes: Any) -> Mistake:
    def apply(reference: Reference) -> None:
        for block in reference.model.encoder.block:
            for name, value in changes.items():
                setattr(block.layer[0].SelfAttention, name, value)

    return apply


def _one_bias_for_all(reference: Reference) -> None:
    biases = [block.layer[0].SelfAttention.relative_attention_bias for block in reference.model.encoder.block]
    for bias in biases[1:]:
        bias.weight.data.copy_(biases[0].weight)


def _no_alibi(reference: Reference) -> None:
    for block in reference.model.h:
        attention = block.self_attention
        attention.forward = _without_alibi(attention.forward)


def _without_alibi(forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, alibi: torch.Tensor, **rest: Any) -> Any:
        return forward(*args, alibi=torch.zeros_like(alibi), **rest)

    return call


def _embeddings_not_scaled(reference: Reference) -> None:
    reference.model.embed_tokens.embed_scale.fill_(1.0)


def _cls_for_the_rest(reference: Reference) -> None:
    reference.pooling = "CLS"


def _last_for_the_rest(reference: Reference) -> None:
    reference.pooling = "LAST"


def _sees_a_neighbour(reference: Reference) -> None:
    """Another text lies before this one in the row and attention does not stop between them."""
    neighbour, alone = reference.ids("a neighbour in the same batch"), reference.hidden
    room = getattr(reference.model.config, "max_position_embeddings", 512) - 2
    reference.hidden = lambda ids: alone([*neighbour, *ids][-room:])[-len(ids) :]  # type: ignore[method-assign]


def _sees_padding(reference: Reference) -> None:
    """Up to nine padding tokens follow, and attention does not leave them out."""
    padding, alone = [reference.tokenizer.pad_token_id or 0] * 9, reference.hidden
    room = getattr(reference.model.config, "max_position_embeddings", 512) - 2
    reference.hidden = lambda ids: alone([*ids, *padding][:room])[: len(ids)]  # type: ignore[method-assign]


MISTAKES: dict[str, dict[str, Mistake]] = {
    "bert": {
        "positions one too far": _shift(1),
        "token types ignored": _zero("embeddings.token_type_embeddings.weight"),
        "causal": _config(is_decoder=True),
        "neighbours seen": _sees_a_neighbour,
        "CLS for MEAN": _cls_for_the_rest,
    },
    "xlmr": {
        "positions from zero": _shift(-2),
        "positions from pad": _shift(-1),
        "token types ignored": _zero("embeddings.token_type_embeddings.weight"),
        "neighbours seen": _sees_a_neighbour,
        "LAST for CLS": _last_for_the_rest,
    },
    "modernbert": {
        "window ignored": _config(local_attention=4096),
        "window one too wide": _config(local_attention=34),
        "window one too narrow": _config(local_attention=30),
        "global theta in local layers": _theta("sliding_attention_inv_freq", 160_000.0),
        "local theta in global layers": _theta("full_attention_inv_freq", 10_000.0),
        "neighbours seen": _sees_a_neighbour,
    },
    "qwen3": {
        "bidirectional": _config(is_causal=False),
        "theta": _theta("inv_freq", 10_000.0),
        "key-value heads swapped": _key_value_heads_swapped,
        "scale of hidden size": _layers("self_attn", scaling=(64 / 4) ** -0.5),
        "neighbours seen": _sees_a_neighbour,
    },
    "mistral": {
        "window ignored": _config(sliding_window=None),
        "window one too wide": _config(sliding_window=49),
        "window one too narrow": _config(sliding_window=47),
        "theta": _theta("inv_freq", 1_000_000.0),
        "key-value heads swapped": _key_value_heads_swapped,
        "neighbours seen": _sees_a_neighbour,
    },
    "mpnet": {
        "positions one too far": _shift(1),
        "relative bias ignored": _zero("encoder.relative_attention_bias.weight"),
        "padding seen": _sees_padding,
    },
    "roberta": {
        "positions from zero": _shift(-2),
        "padding in the text counts": _padding_counts,
        "neighbours seen": _sees_a_neighbour,
    },
    "xlmr-xl": {"positions from zero": _shift(-2), "neighbours seen": _sees_a_neighbour},
    "camembert": {"positions from zero": _shift(-2)},
    "distilbert": {"positions one too far": _shift(1), "neighbours seen": _sees_a_neighbour},
    "albert": {
        "positions one too far": _shift(1),
        "token types ignored": _zero("embeddings.token_type_embeddings.weight"),
    },
    "electra": {
        "positions one too far": _shift(1),
        "token types ignored": _zero("embeddings.token_type_embeddings.weight"),
    },
    "nomic": {
        "theta": _theta("inv_freq", 10_000.0),
        "token types ignored": _zero("embeddings.token_type_embeddings.weight"),
        "neighbours seen": _sees_a_neighbour,
    },
    "jina": {"theta": _theta("inv_freq", 10_000.0), "neighbours seen": _sees_a_neighbour},
    "eurobert": {"theta": _theta("inv_freq", 10_000.0), "key-value heads swapped": _key_value_heads_swapped},
    "gte": {"theta": _theta("inv_freq", 10_000.0), "neighbours seen": _sees_a_neighbour},
    "esm": {
        "mask tokens not counted": _no_mask_share,
        "theta": _theta("inv_freq", 1000.0, "rotary_embeddings"),
        "padding seen": _sees_padding,
    },
    "deberta": {
        "distances one too far": _shift(1, "encoder.rel_embeddings"),
        "padding seen": _sees_padding,
    },
    "deberta-v3": {
        "distances one too far": _shift(1, "encoder.rel_embeddings"),
        "padding seen": _sees_padding,
    },
    "deberta-v2-conv": {
        "token types ignored": _zero("embeddings.token_type_embeddings.weight"),
        "convolution ignored": _no_convolution,
        "positions one too far": _shift(1),
        "padding seen": _sees_padding,
    },
    "t5": {
        "bias ignored": _zero("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        "distances one too far": _shift(1, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"),
        "a decoder's distances": _t5_attention(is_decoder=True),
        "scores scaled": _t5_attention(scaling=16**-0.5),
        "neighbours seen": _sees_a_neighbour,
    },
    "t5-pair": {"a decoder's distances": _t5_attention(is_decoder=True)},
    "mt5": {"a decoder's distances": _t5_attention(is_decoder=True)},
    "umt5": {
        "bias ignored in the second layer": _zero(
            "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
        ),
        "the first layer's bias in all": _one_bias_for_all,
    },
    "qwen2": {
        "window ignored": _config(sliding_window=4096),
        "window one too wide": _config(sliding_window=25),
        "window one too narrow": _config(sliding_window=23),
        "biases ignored": _zero("layers.1.self_attn.k_proj.bias"),
        "theta": _theta("inv_freq", 10_000.0),
    },
    "qwen2-both-ways": {
        "causal": _config(is_causal=True),
        "window one too wide": _config(sliding_window=25),
        "window one too narrow": _config(sliding_window=23),
    },
    "qwen3-moe": {
        "experts in another order": _experts_by_name,
        "one expert for two": _one_expert,
        "weights not normalised": _layers("mlp.gate", norm_topk_prob=False),
    },
    "llama": {
        "frequencies not stretched": _theta("inv_freq", 500_000.0),
        "bidirectional": _config(is_causal=False),
        "neighbours seen": _sees_a_neighbour,
    },
    "llama-both-ways": {"causal": _config(is_causal=True), "LAST for MEAN": _last_for_the_rest},
    "gemma": {
        "embeddings not scaled": _embeddings_not_scaled,
        "scale of hidden size": _layers("self_attn", scaling=0.25),
    },
    "gemma-both-ways": {"causal": _config(is_causal=True)},
    "gemma2": {
        "softcap ignored": _layers("self_attn", attn_logit_softcapping=None),
        "softcap of the published models": _layers("self_attn", attn_logit_softcapping=50.0),
        "window ignored": _config(sliding_window=4096),
        "window one too wide": _config(sliding_window=25),
        "scale of a head": _layers("self_attn", scaling=32**-0.5),
    },
    "gemma3": {
        "window one too wide": _config(sliding_window=25),
        "global theta in local layers": _theta("sliding_attention_inv_freq", 1_000_000.0),
        "local theta in global layers": _theta("full_attention_inv_freq", 10_000.0),
    },
    "embedding-gemma": {
        "causal": _config(use_bidirectional_attention=False),
        "window of both sides on each": _config(sliding_window=49),
        "window one too wide": _config(sliding_window=26),
        "window one too narrow": _config(sliding_window=24),
    },
    "phi3": {"window ignored": _config(sliding_window=4096), "window one too wide": _config(sliding_window=25)},
    "granite": {
        "scale of a head": _layers("self_attn", scaling=16**-0.5),
        "residual multiplier ignored": _layers(residual_multiplier=1.0),
    },
    "olmo2": {"theta": _theta("inv_freq", 10_000.0), "key-value heads swapped": _key_value_heads_swapped},
    "smollm3": {"positions in every layer": _layers("self_attn", use_rope=1)},
    "gpt2": {"positions one too far": _shift(1, "wpe"), "bidirectional": _config(is_causal=False)},
    "gpt-neox": {"theta": _theta("inv_freq", 100.0), "bidirectional": _config(is_causal=False)},
    "opt": {"positions from zero": _shift(-2, "decoder.embed_positions")},
    "modernbert-decoder": {
        "window of both sides": _config(sliding_window=48),
        "window one too wide": _config(sliding_window=25),
        "global theta in local layers": _theta("sliding_attention_inv_freq", 160_000.0),
    },
    "bloom": {"slopes ignored": _no_alibi, "neighbours seen": _sees_a_neighbour},
}
