"""Checkpoints of language models that read images, laid out as published ones: tokens, template, processor."""

from collections.abc import Callable
from typing import Any

from transformers import (
    ColPaliConfig,
    ColPaliForRetrieval,
    ColQwen2Config,
    ColQwen2ForRetrieval,
    PaliGemmaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.colpali.processing_colpali import ColPaliProcessor
from transformers.models.colqwen2.processing_colqwen2 import ColQwen2Processor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.vocabularies import as_transformers, byte_bpe

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
PLACE = "<|vision_start|><|image_pad|><|vision_end|>"
# As Qwen's own, without video.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    f"{{% if part.type == 'image' %}}{PLACE}{{% elif 'text' in part %}}{{{{ part.text }}}}{{% endif %}}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = as_transformers(
        byte_bpe([*SPECIAL, "<|video_pad|>", "yes"], "$A", "$A $B"),
        512,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _text(tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **more,
    }


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


_ROPE = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 3, 3]}


def qwen2_vl(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLConfig:
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 64, "patch_size": 4}
    return Qwen2VLConfig(text_config=_text(tokenizer, rope_parameters=_ROPE), vision_config=vision, **_ids(tokenizer))


def qwen2_5_vl(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    text = _text(tokenizer, rope_parameters=_ROPE)
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_ids(tokenizer))


def qwen3_vl(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "patch_size": 4,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    text = _text(tokenizer, head_dim=16, rope_parameters=_ROPE | {"mrope_interleaved": True})
    return Qwen3VLConfig(text_config=text, vision_config=vision, **_ids(tokenizer))


def processor() -> Any:
    """From 64 to 1024 pixels in patches of 4x4, four of them a token: 1 to 16 tokens an image."""
    return Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 64, "longest_edge": 1024})


def _build(kind: Any, config: Callable[[Any], Any]) -> Callable[[], tuple[PreTrainedModel, Any, Any]]:
    def build() -> tuple[PreTrainedModel, Any, Any]:
        tokenizer = qwen_tokenizer()
        return kind(config(tokenizer)), tokenizer, processor()

    return build


BUILDS = {
    "qwen2-vl": _build(Qwen2VLForConditionalGeneration, qwen2_vl),
    "qwen2.5-vl": _build(Qwen2_5_VLForConditionalGeneration, qwen2_5_vl),
    "qwen3-vl": _build(Qwen3VLForConditionalGeneration, qwen3_vl),
}


def _colqwen2() -> tuple[PreTrainedModel, Any, Any]:
    tokenizer = qwen_tokenizer()
    config = ColQwen2Config(vlm_config=qwen2_vl(tokenizer).to_dict(), embedding_dim=24)
    return ColQwen2ForRetrieval(config), tokenizer, ColQwen2Processor(processor(), tokenizer)


def _colpali() -> tuple[PreTrainedModel, Any, Any]:
    tokenizer = as_transformers(
        byte_bpe(["<pad>", "<eos>", "<bos>", "<unk>", "<image>"], "<bos> $A", "<bos> $A $B"),
        512,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    made = ColPaliProcessor(images, tokenizer)  # adds tokens
    text = {
        "model_type": "gemma",
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        "vision_use_head": False,
    }
    vlm = PaliGemmaConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=64,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return ColPaliForRetrieval(ColPaliConfig(vlm_config=vlm.to_dict(), embedding_dim=24)), tokenizer, made


RETRIEVERS: dict[str, Callable[[], tuple[PreTrainedModel, Any, Any]]] = {"colqwen2": _colqwen2, "colpali": _colpali}
