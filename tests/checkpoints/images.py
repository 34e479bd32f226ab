"""Checkpoints of models that take images, with tokenizer and image processor; sharp like the others."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.checkpoints.vision_decoders import BUILDS, RETRIEVERS
from tests.checkpoints.writing import HIDDEN, sharpen
from tests.vocabularies import as_transformers, byte_bpe

Parts = tuple[PreTrainedModel, PreTrainedTokenizerFast | None, Any]
SIDE = 32


@dataclass(frozen=True)
class VisionCheckpoint:
    """build: model, tokenizer and image processor. fill_to: how long texts are made, None as they are."""

    name: str
    build: Callable[[], Parts]
    fill_to: int | None = None

    def write(self, directory: Path) -> Path:
        model, tokenizer, processor = self.build()
        sharpen(model, seed=len(self.name))
        _calm(model)
        model.save_pretrained(directory)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
        processor.save_pretrained(directory)
        return directory


def _calm(model: PreTrainedModel) -> None:
    """What scales logits; and ColPali's Gemma, which multiplies its embeddings by sqrt(hidden) and adds 1 to a norm's
    weight."""
    gemma = model.config.model_type == "colpali"
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("logit_scale", "logit_bias")):
                weight.fill_(1.0)
            elif gemma and name.endswith("embed_tokens.weight"):
                weight.mul_(HIDDEN**-0.5)
            elif gemma and "language_model" in name and name.endswith("norm.weight"):
                weight.sub_(1.0)


def _clip(end: int | None = None) -> Callable[[], Parts]:
    """end: what config.json calls the end token; None: the tokenizer's own id."""

    def build() -> Parts:
        tokenizer = _clip_tokenizer(40)
        text = {
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 40,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id if end is None else end,
            "pad_token_id": 1,
        }
        config = CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=40)
        processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
        return CLIPModel(config), tokenizer, processor

    return build


def _siglip() -> Parts:
    tokenizer = as_transformers(
        byte_bpe(["<unk>", "</s>"], "$A </s>", "$A </s> $B </s>"), 24, eos_token="</s>", pad_token="</s>"
    )
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 24,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_size": 48,
    }
    processor = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return SiglipModel(SiglipConfig(text_config=text, vision_config=_VISION)), tokenizer, processor


def _vit() -> Parts:
    labels = ["cat", "dog", "tree", "house", "none of these"]
    config = ViTConfig(**_VISION, id2label=dict(enumerate(labels)), label2id={v: k for k, v in enumerate(labels)})
    return ViTForImageClassification(config), None, ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})


_VISION: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 8,
}


def _clip_tokenizer(limit: int) -> PreTrainedTokenizerFast:
    begin, end = "<|startoftext|>", "<|endoftext|>"
    pieces = byte_bpe([begin, end], f"{begin} $A {end}", f"{begin} $A {end} {begin} $B {end}")
    return as_transformers(pieces, limit, bos_token=begin, eos_token=end, pad_token=end, unk_token=end)


TOWERS = {
    one.name: one
    for one in (
        VisionCheckpoint("clip", _clip()),
        # The first CLIPs call token 2 their end, and pool at the token of the highest id.
        VisionCheckpoint("clip-first", _clip(end=2)),
        VisionCheckpoint("siglip", _siglip, fill_to=24),
    )
}
CLASSIFIERS = {"vit": VisionCheckpoint("vit", _vit)}
DECODERS = {name: VisionCheckpoint(name, build) for name, build in BUILDS.items()}
RETRIEVING = {name: VisionCheckpoint(name, build) for name, build in RETRIEVERS.items()}
WITH_IMAGES = TOWERS | CLASSIFIERS | DECODERS | RETRIEVING
