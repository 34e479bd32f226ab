"""Decoders: one checkpoint of each family built to read from left to right, some of them turned both ways."""

import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma3TextModel,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from tests import vocabularies
from tests.checkpoints.encoders import ENCODER
from tests.checkpoints.family import Family
from tests.checkpoints.writing import HIDDEN
from tests.vocabularies import as_transformers, bytes_tokenizer, llama_tokenizer

Built = tuple[PreTrainedModel, PreTrainedTokenizerFast]
DECODER = {**ENCODER, "num_key_value_heads": 2}
_LAYERS = {"num_hidden_layers": 2}


def _qwen3() -> Built:
    tokenizer = as_transformers(
        vocabularies.byte_bpe(["<|endoftext|>", "<|im_end|>"], "$A <|endoftext|>", "$A $B <|endoftext|>"),
        model_max_length=512,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    config = Qwen3Config(
        **DECODER,
        head_dim=32,  # not hidden / heads, as in the real ones
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen3ForCausalLM(config), tokenizer


def _mistral() -> Built:
    """Saved in several files and with an output layer of its own, which an embedding never uses."""
    tokenizer = llama_tokenizer(512)
    config = MistralConfig(
        **DECODER,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        sliding_window=48,
        rope_parameters=_rope(10_000.0),
    )
    return MistralForCausalLM(config), tokenizer


def _rope(theta: float) -> dict[str, object]:
    return {"rope_type": "default", "rope_theta": theta}


def _common(tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    return {
        **DECODER,
        **_LAYERS,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 200,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _qwen2_config(tokenizer: PreTrainedTokenizerFast, **more: object) -> Qwen2Config:
    """The second layer sees a window; queries, keys and values have biases."""
    return Qwen2Config(
        **_common(tokenizer),
        use_sliding_window=True,
        sliding_window=24,
        max_window_layers=1,
        rope_parameters=_rope(1_000_000.0),
        **more,
    )


def _qwen2() -> Built:
    tokenizer = bytes_tokenizer(200, ends=True)
    return Qwen2ForCausalLM(_qwen2_config(tokenizer)), tokenizer


def _qwen2_both_ways() -> Built:
    tokenizer = bytes_tokenizer(200, ends=True)
    return Qwen2Model(_qwen2_config(tokenizer, is_causal=False)), tokenizer


def _qwen3_moe() -> Built:
    """Two of twelve experts for a token; the checkpoint has each expert alone, the model all in one."""
    tokenizer = bytes_tokenizer(200, ends=True)
    config = Qwen3MoeConfig(
        **_common(tokenizer),
        head_dim=16,
        num_experts=12,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        norm_topk_prob=True,
        rope_parameters=_rope(1_000_000.0),
    )
    return Qwen3MoeForCausalLM(config), tokenizer


def _llama() -> Built:
    """Rotary frequencies stretched as in Llama 3.1, the texts longer than the original length."""
    tokenizer = llama_tokenizer(200)
    scaled = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "original_max_position_embeddings": 48}
    config = LlamaConfig(
        **_common(tokenizer), rope_parameters=scaled | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    )
    return LlamaForCausalLM(config), tokenizer


def _llama_both_ways() -> Built:
    tokenizer = llama_tokenizer(200)
    return LlamaModel(LlamaConfig(**_common(tokenizer), rope_parameters=_rope(500_000.0))), tokenizer


def _gemma_both_ways() -> Built:
    tokenizer = llama_tokenizer(200)
    config = GemmaConfig(**_common(tokenizer), head_dim=32, use_bidirectional_attention=True)
    return GemmaForCausalLM(config), tokenizer


def _gemma() -> Built:
    tokenizer = llama_tokenizer(200)
    return GemmaForCausalLM(GemmaConfig(**_common(tokenizer), head_dim=32)), tokenizer


def _gemma2() -> Built:
    """Scores capped at 4, the first of two layers local."""
    tokenizer = llama_tokenizer(200)
    config = Gemma2Config(
        **_common(tokenizer), head_dim=32, query_pre_attn_scalar=16, sliding_window=24, attn_logit_softcapping=4.0
    )
    return Gemma2ForCausalLM(config), tokenizer


def _gemma3_config(tokenizer: PreTrainedTokenizerFast, window: int, both_ways: bool) -> Gemma3TextConfig:
    return Gemma3TextConfig(
        **_common(tokenizer),
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=window,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"full_attention": _rope(1_000_000.0), "sliding_attention": _rope(10_000.0)},
        use_bidirectional_attention=both_ways,
    )


def _gemma3() -> Built:
    tokenizer = llama_tokenizer(200)
    return Gemma3ForCausalLM(_gemma3_config(tokenizer, 24, both_ways=False)), tokenizer


def _embedding_gemma() -> Built:
    """Gemma 3 turned both ways: a window of 48 is 24 tokens and itself on either side."""
    tokenizer = llama_tokenizer(200)
    return Gemma3TextModel(_gemma3_config(tokenizer, 48, both_ways=True)), tokenizer


def _phi3() -> Built:
    """q, k and v in one layer, as are the gate and the up projection; every layer sees a window."""
    tokenizer = llama_tokenizer(200)
    return Phi3ForCausalLM(Phi3Config(**_common(tokenizer), sliding_window=24, rope_parameters=_rope(1e4))), tokenizer


def _granite() -> Built:
    tokenizer = bytes_tokenizer(200, ends=True)
    multipliers = {"embedding_multiplier": 2.0, "attention_multiplier": 0.2, "residual_multiplier": 0.7}
    return GraniteForCausalLM(GraniteConfig(**_common(tokenizer), **multipliers)), tokenizer


def _olmo2() -> Built:
    tokenizer = bytes_tokenizer(200, ends=True)
    return Olmo2ForCausalLM(Olmo2Config(**_common(tokenizer), rope_parameters=_rope(500_000.0))), tokenizer


def _smollm3() -> Built:
    """The second of two layers knows no positions."""
    tokenizer = bytes_tokenizer(200, ends=True)
    config = SmolLM3Config(**_common(tokenizer), no_rope_layers=[1, 0], rope_parameters=_rope(2_000_000.0))
    return SmolLM3ForCausalLM(config), tokenizer


def _gpt2() -> Built:
    """No padding token, in the tokenizer or in the config."""
    tokenizer = bytes_tokenizer(200)
    config = GPT2Config(n_embd=HIDDEN, n_head=4, n_layer=2, n_positions=200, vocab_size=len(tokenizer))
    return GPT2LMHeadModel(config), tokenizer


def _gpt_neox() -> Built:
    """A quarter of each head turns with the position; attention and feed-forward side by side."""
    tokenizer = bytes_tokenizer(200)
    config = GPTNeoXConfig(
        **ENCODER | _LAYERS,
        vocab_size=len(tokenizer),
        max_position_embeddings=200,
        rope_parameters=_rope(10_000.0) | {"partial_rotary_factor": 0.25},
    )
    return GPTNeoXForCausalLM(config), tokenizer


def _opt() -> Built:
    """As the 350M: embeddings, and so vectors, narrower than the layers, and the norms after them."""
    tokenizer = llama_tokenizer(200)
    config = OPTConfig(
        hidden_size=HIDDEN,
        num_attention_heads=4,
        num_hidden_layers=2,
        ffn_dim=128,
        word_embed_proj_dim=32,
        do_layer_norm_before=False,
        vocab_size=len(tokenizer),
        max_position_embeddings=200,
    )
    return OPTForCausalLM(config), tokenizer


def _modernbert_decoder() -> Built:
    """A local_attention of 48 is a window of 24 tokens."""
    tokenizer = bytes_tokenizer(200, ends=True)
    config = ModernBertDecoderConfig(
        **ENCODER | _LAYERS,
        vocab_size=len(tokenizer),
        max_position_embeddings=200,
        local_attention=48,
        layer_types=["full_attention", "sliding_attention"],
        rope_parameters={"full_attention": _rope(160_000.0), "sliding_attention": _rope(10_000.0)},
        **dict.fromkeys(("pad_token_id", "cls_token_id", "sep_token_id", "bos_token_id"), tokenizer.eos_token_id),
        eos_token_id=tokenizer.eos_token_id,
    )
    return ModernBertDecoderForCausalLM(config), tokenizer


def _bloom() -> Built:
    tokenizer = bytes_tokenizer(200)
    return BloomForCausalLM(BloomConfig(hidden_size=HIDDEN, n_head=4, n_layer=2, vocab_size=len(tokenizer))), tokenizer


# NVIDIA's name for a Llama that looks both ways; transformers reads it as the Llama that it is.
_BIDIREC = {
    "model_type": "llama_bidirec",
    "architectures": ["LlamaBidirectionalModel"],
    "auto_map": {"AutoModel": "llama_bidirectional_model.LlamaBidirectionalModel"},
    "pooling": "avg",
}
FIRST_DECODERS = (
    Family("qwen3", _qwen3, "LAST", max_model_len=512),
    Family("mistral", _mistral, "LAST", max_model_len=512, pooling="lasttoken", shards="400KB"),
)
DECODERS = (
    Family("qwen2", _qwen2, "LAST", max_model_len=200),
    Family("qwen2-both-ways", _qwen2_both_ways, "LAST", max_model_len=200),
    Family("qwen3-moe", _qwen3_moe, "LAST", max_model_len=200),
    Family("llama", _llama, "LAST", max_model_len=200),
    Family(
        "llama-both-ways", _llama_both_ways, "MEAN", 200, edit=_BIDIREC, kind=LlamaModel, config={"is_causal": False}
    ),
    Family("gemma", _gemma, "LAST", max_model_len=200),
    Family("gemma-both-ways", _gemma_both_ways, "LAST", max_model_len=200, config={"is_causal": False}),
    Family("gemma2", _gemma2, "LAST", max_model_len=200, dtype=torch.bfloat16),
    Family("gemma3", _gemma3, "LAST", max_model_len=200),
    Family("embedding-gemma", _embedding_gemma, "MEAN", max_model_len=200, pooling="mean"),
    Family("phi3", _phi3, "LAST", max_model_len=200),
    Family("granite", _granite, "LAST", max_model_len=200),
    Family("olmo2", _olmo2, "LAST", max_model_len=200),
    Family("smollm3", _smollm3, "LAST", max_model_len=200),
    Family("gpt2", _gpt2, "LAST", max_model_len=200),
    Family("gpt-neox", _gpt_neox, "LAST", max_model_len=200),
    Family("opt", _opt, "LAST", max_model_len=200),
    Family("modernbert-decoder", _modernbert_decoder, "LAST", max_model_len=200),
    Family("bloom", _bloom, "LAST", max_model_len=200, path="padded"),
)
