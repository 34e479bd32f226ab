"""What differs from family to family, by transformers' `model_type`: one row each, with the reason it is there."""

from dataclasses import dataclass
from typing import Any, Literal

from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from pooling.config import PoolingType

# MODEL: the model's own class makes one row of an input, and no other pooling can be asked for.
OwnPooling = Literal["MODEL"]
# towers: a text or an image, each in layers of its own. images: images alone. decoder: images as tokens among a text's.
VisionKind = Literal["towers", "images", "decoder"]


@dataclass(frozen=True, slots=True)
class Family:
    """How one family of models runs.

    packed: attention of every layer goes through transformers' attention
    interface, so inputs may lie end to end in one row (each also checks itself
    at start-up); otherwise inputs are padded to one length.
    pooling_type: the model's own pooler, where no file states one.
    positions_after_pad: position ids count from pad_token_id + 1, as fairseq's
    tables do. position_bias: a learnt bias is added to the scores, and there is
    no table of positions, hence no longest input. vision: how images are read, None
    where they are not.
    """

    packed: bool
    pooling_type: PoolingType | OwnPooling
    positions_after_pad: bool = False
    position_bias: bool = False
    vision: VisionKind | None = None


# An encoder's first token was trained to stand for the text (next-sentence prediction, or nothing better to take).
_ENCODER = Family(packed=True, pooling_type="CLS")
_FAIRSEQ = Family(packed=True, pooling_type="CLS", positions_after_pad=True)
# Only the last token of a causal decoder has seen the whole text. One that a config turns both ways keeps LAST, as in
# other servers; such models state their pooling in a file (most of them MEAN).
_DECODER = Family(packed=True, pooling_type="LAST")
# T5 has no first token of its own and its end token stands for nothing: Sentence-T5 and GTR average.
_T5 = Family(packed=True, pooling_type="MEAN", position_bias=True)
# Never call the attention interface, so a packed row would mix its inputs; wrong by about 0.1 without an error.
_PADDED_ENCODER = Family(packed=False, pooling_type="CLS")
_PADDED_FAIRSEQ = Family(packed=False, pooling_type="CLS", positions_after_pad=True)
_PADDED_DECODER = Family(packed=False, pooling_type="LAST")
# Their text layers go through the attention interface; images all have one size, so nothing is padded.
_TOWERS = Family(packed=True, pooling_type="MODEL", vision="towers")
_IMAGES = Family(packed=False, pooling_type="MODEL", vision="images")
_VISION_DECODER = Family(packed=True, pooling_type="LAST", vision="decoder")

FAMILIES: dict[str, Family] = {
    "bert": _ENCODER,
    "electra": _ENCODER,
    "albert": _ENCODER,
    "distilbert": _ENCODER,
    "modernbert": _ENCODER,
    "eurobert": _ENCODER,
    "nomic_bert": _ENCODER,
    "gte": _ENCODER,
    "jina_embeddings_v3": _ENCODER,  # rotary: its positions count from zero, unlike XLM-R's
    "roberta": _FAIRSEQ,
    "xlm-roberta": _FAIRSEQ,
    "xlm-roberta-xl": _FAIRSEQ,
    "camembert": _FAIRSEQ,
    "mistral": _DECODER,
    "llama": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "qwen3_moe": _DECODER,
    "phi3": _DECODER,
    "granite": _DECODER,
    "olmo2": _DECODER,
    "smollm3": _DECODER,
    "gemma": _DECODER,
    "gemma2": _DECODER,
    "gemma3_text": _DECODER,
    "gpt2": _DECODER,
    "gpt_neox": _DECODER,
    "opt": _DECODER,
    "modernbert-decoder": _DECODER,
    "t5": _T5,
    "mt5": _T5,
    "umt5": _T5,
    "mpnet": _PADDED_FAIRSEQ,
    "deberta": _PADDED_ENCODER,
    "deberta-v2": _PADDED_ENCODER,
    # Scales an input's embeddings by the share of mask tokens in its row, which packed would be everyone's.
    "esm": _PADDED_FAIRSEQ,
    "bloom": Family(packed=False, pooling_type="LAST", position_bias=True),
    # Here for their tables of positions, which are two longer than their inputs may be.
    "data2vec-text": _PADDED_FAIRSEQ,
    "ibert": _PADDED_FAIRSEQ,
    "roberta-prelayernorm": _PADDED_FAIRSEQ,
    "xmod": _PADDED_FAIRSEQ,
    "clip": _TOWERS,
    "siglip": _TOWERS,
    "vit": _IMAGES,
    "qwen2_vl": _VISION_DECODER,
    "qwen2_5_vl": _VISION_DECODER,
    "qwen3_vl": _VISION_DECODER,
    "colqwen2": _VISION_DECODER,
    "colpali": _VISION_DECODER,
}

# Families that transformers has under another name; their own code does no more than set these values.
TWINS: dict[str, tuple[str, dict[str, Any]]] = {"llama_bidirec": ("llama", {"is_causal": False})}


def family_of(model_type: str) -> Family:
    """The row of a family; one without a row runs padded, which every transformers model supports.

    What has a masked language model is an encoder.
    """
    unlisted = _PADDED_ENCODER if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else _PADDED_DECODER
    return FAMILIES.get(model_type, unlisted)
