"""Plans: which layers of a family are split over the ranks, and how; and what must divide by their number."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedConfig

from pooling.errors import CheckpointError

# column: this rank's rows of the weight and of the bias, hence its share of the features. row: its columns, for
# features that are split; the ranks' answers are added up. vocab: its rows of the table of words. norm: of a norm over
# split features. experts: added up over the ranks, its weights having rules of their own. whole: every rank has it all.
Style = Literal["column", "row", "vocab", "norm", "experts", "whole"]


@dataclass(frozen=True, slots=True)
class Rule:
    """blocks: of a layer that several were fused into, how many equal ones; "qkv": queries, keys and values, of which
    there may be fewer keys and values. Each block is split by itself."""

    style: Style
    blocks: int | Literal["qkv"] = 1


Plan = Mapping[str, Rule]


def _plan(**layers: str | Mapping[str, Rule]) -> dict[str, Rule]:
    """column, row, vocab, norm, whole: names of layers relative to the backbone, `*` for a layer's number."""
    plan: dict[str, Rule] = {}
    for style, names in layers.items():
        if isinstance(names, str):
            plan |= {name: Rule(style) for name in names.split()}  # type: ignore[arg-type]  # the keywords are styles
        else:
            plan |= names
    return plan


_BERT = _plan(
    column="encoder.layer.*.attention.self.query encoder.layer.*.attention.self.key "
    "encoder.layer.*.attention.self.value encoder.layer.*.intermediate.dense",
    row="encoder.layer.*.attention.output.dense encoder.layer.*.output.dense",
    vocab="embeddings.word_embeddings",
    # A few hundred rows, one thousandth of a large model; Electra's narrow table is widened by one small layer.
    whole="embeddings.position_embeddings embeddings.token_type_embeddings embeddings_project",
)
_DISTILBERT = _plan(
    column="transformer.layer.*.attention.q_lin transformer.layer.*.attention.k_lin "
    "transformer.layer.*.attention.v_lin transformer.layer.*.ffn.lin1",
    row="transformer.layer.*.attention.out_lin transformer.layer.*.ffn.lin2",
    vocab="embeddings.word_embeddings",
    whole="embeddings.position_embeddings",
)
_ALBERT_LAYER = "encoder.albert_layer_groups.*.albert_layers.*"
_ALBERT = _plan(
    column=f"{_ALBERT_LAYER}.attention.query {_ALBERT_LAYER}.attention.key {_ALBERT_LAYER}.attention.value "
    f"{_ALBERT_LAYER}.ffn",
    row=f"{_ALBERT_LAYER}.attention.dense {_ALBERT_LAYER}.ffn_output",
    vocab="embeddings.word_embeddings",
    whole="embeddings.position_embeddings embeddings.token_type_embeddings encoder.embedding_hidden_mapping_in "
    f"{_ALBERT_LAYER}.attention.LayerNorm {_ALBERT_LAYER}.full_layer_layer_norm",
)
_MODERNBERT = _plan(
    fused={"layers.*.attn.Wqkv": Rule("column", 3), "layers.*.mlp.Wi": Rule("column", 2)},
    column="layers.*.attn.q_proj layers.*.attn.k_proj layers.*.attn.v_proj",  # the decoder's
    row="layers.*.attn.Wo layers.*.mlp.Wo",
    vocab="embeddings.tok_embeddings",
)
_LLAMA_LAYERS = _plan(
    column="layers.*.self_attn.q_proj layers.*.self_attn.k_proj layers.*.self_attn.v_proj layers.*.mlp.gate_proj "
    "layers.*.mlp.up_proj",
    row="layers.*.self_attn.o_proj layers.*.mlp.down_proj",
)
# Nomic, GTE and Jina v3: BERT's embeddings, Llama's layers.
_ROTARY_ENCODER = _LLAMA_LAYERS | _plan(
    column="layers.*.mlp.fc1",
    row="layers.*.mlp.fc2",
    vocab="embeddings.word_embeddings",
    whole="embeddings.token_type_embeddings",
)
_GPT2 = _plan(
    fused={"h.*.attn.c_attn": Rule("column", 3)},
    column="h.*.mlp.c_fc",
    row="h.*.attn.c_proj h.*.mlp.c_proj",
    vocab="wte",
    whole="wpe",
)
_OPT_LAYER = "decoder.layers.*"
_OPT = _plan(
    column=f"{_OPT_LAYER}.self_attn.q_proj {_OPT_LAYER}.self_attn.k_proj {_OPT_LAYER}.self_attn.v_proj "
    f"{_OPT_LAYER}.fc1",
    row=f"{_OPT_LAYER}.self_attn.out_proj {_OPT_LAYER}.fc2",
    vocab="decoder.embed_tokens",
    whole="decoder.embed_positions decoder.project_in decoder.project_out "
    f"{_OPT_LAYER}.self_attn_layer_norm {_OPT_LAYER}.final_layer_norm",
)
_T5_LAYER = "encoder.block.*.layer.*"
_T5 = _plan(
    column=f"{_T5_LAYER}.SelfAttention.q {_T5_LAYER}.SelfAttention.k {_T5_LAYER}.SelfAttention.v "
    # a number for each head
    f"{_T5_LAYER}.SelfAttention.relative_attention_bias "
    f"{_T5_LAYER}.DenseReluDense.wi {_T5_LAYER}.DenseReluDense.wi_0 {_T5_LAYER}.DenseReluDense.wi_1",
    row=f"{_T5_LAYER}.SelfAttention.o {_T5_LAYER}.DenseReluDense.wo",
    vocab="shared encoder.embed_tokens",
)
# What transformers' plans of decoders leave out.
_DECODER = _plan(
    vocab="embed_tokens embed_in",
    # of each head by itself, where a model has them
    whole="layers.*.self_attn.q_norm layers.*.self_attn.k_norm layers.*.mlp.gate",
)
# Its plan gathers the fused layers again; split by block nothing needs to be gathered.
_PHI3 = _DECODER | _plan(
    fused={"layers.*.self_attn.qkv_proj": Rule("column", "qkv"), "layers.*.mlp.gate_up_proj": Rule("column", 2)},
    row="layers.*.self_attn.o_proj layers.*.mlp.down_proj",
)
# Its plan gathers queries and keys, which are normed over all heads together; here the norm adds up.
_OLMO2 = _DECODER | _LLAMA_LAYERS | _plan(norm="layers.*.self_attn.q_norm layers.*.self_attn.k_norm")

# Layers that read images, `visual`, are whole: only rank 0 runs them, and sends the others what they make.
_VISION_DECODER = {f"language_model.{name}": rule for name, rule in (_DECODER | _LLAMA_LAYERS).items()}
_WITH_VISION = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "colqwen2")

# None: transformers' own plan of the family, with what it leaves out.
_FAMILIES: dict[str, Plan | None] = {
    **dict.fromkeys(("bert", "electra", "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert"), _BERT),
    "distilbert": _DISTILBERT,
    "albert": _ALBERT,
    **dict.fromkeys(("modernbert", "modernbert-decoder"), _MODERNBERT),
    **dict.fromkeys(("nomic_bert", "gte", "jina_embeddings_v3"), _ROTARY_ENCODER),
    **dict.fromkeys(("t5", "mt5", "umt5"), _T5),
    "gpt2": _GPT2,
    "opt": _OPT,
    "phi3": _PHI3,
    "olmo2": _OLMO2,
    **dict.fromkeys(("eurobert", "mistral", "llama", "qwen2", "qwen3", "qwen3_moe", "granite", "smollm3"), None),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "gpt_neox"), None),
    **dict.fromkeys(_WITH_VISION, _VISION_DECODER),
}
# transformers' words for our styles. A norm of each head by itself needs its gradient added up, and nothing else.
_WORDS: dict[str, Rule] = {
    "colwise": Rule("column"),
    "rowwise": Rule("row"),
    "packed_colwise": Rule("column", 2),
    "moe_tp_experts": Rule("experts"),
    "replicated_with_grad_allreduce": Rule("whole"),
}
# What is split, by the names that families give it: each must divide by the number of ranks.
_HEADS = ("num_attention_heads", "num_key_value_heads")
_WIDTHS = ("intermediate_size", "moe_intermediate_size", "hidden_dim", "ffn_dim", "d_ff", "n_inner")


def plan_of(config: PreTrainedConfig) -> Plan:
    """The plan of a family that has one. Raises CheckpointError for a word in transformers' plan that is not known."""
    plan = _FAMILIES[config.model_type]
    if plan is not None:
        return plan
    own: Mapping[str, Any] = getattr(config, "base_model_tp_plan", None) or _LLAMA_LAYERS
    unknown = sorted({str(word) for word in own.values() if not isinstance(word, Rule) and word not in _WORDS})
    if unknown:
        raise CheckpointError(
            f"transformers' tensor-parallel plan of {config.model_type} says {', '.join(unknown)}; known are "
            f"{', '.join(_WORDS)}"
        )
    return _DECODER | {name: word if isinstance(word, Rule) else _WORDS[word] for name, word in own.items()}


def sizes_of(config: PreTrainedConfig, packed: bool) -> tuple[int, ...]:
    """The numbers of ranks, above 1, that a model can be split over; () for one that cannot be split."""
    if not packed or config.model_type not in _FAMILIES:
        return ()
    common = math.gcd(*_divided(config).values())
    return tuple(size for size in range(2, common + 1) if common % size == 0)


def obstacle_to(size: int, config: PreTrainedConfig, packed: bool) -> str | None:
    """Why a model cannot be split over `size` ranks; None if it can. packed: whether its family runs packed."""
    kind = config.model_type
    if not packed:
        return f"family {kind} runs padded, and only families that run packed are split"
    if kind not in _FAMILIES:
        return f"family {kind} has no tensor-parallel plan; those that have one are {', '.join(_FAMILIES)}"
    odd = [f"{name} {value}" for name, value in _divided(config).items() if value % size]
    if odd:
        allowed = ", ".join(map(str, (1, *sizes_of(config, packed))))
        return f"{' and '.join(odd)} cannot be divided by it; allowed are {allowed}"
    return None


def _divided(config: PreTrainedConfig) -> dict[str, int]:
    """By name, the sizes that must divide by the number of ranks."""
    stack = config.get_text_config() if config.model_type in _WITH_VISION else config
    named = {name: getattr(stack, name, None) for name in (*_HEADS, *_WIDTHS)}
    return {name: size for name, size in named.items() if isinstance(size, int) and size > 0}
