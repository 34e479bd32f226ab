"""What differs from family to family, by transformers' `model_type`: one row each, with the reason it is there."""

from dataclasses import dataclass

from pooling.config import PoolingType


@dataclass(frozen=True, slots=True)
class Family:
    """How one family of models runs.

    packed: attention of every layer goes through transformers' attention
    interface, so inputs may lie end to end in one row (each also checks itself
    at start-up); otherwise inputs are padded to one length.
    pooling_type: the model's own pooler. positions_after_pad: position ids
    count from pad_token_id + 1, as fairseq's tables do.
    """

    packed: bool
    pooling_type: PoolingType
    positions_after_pad: bool = False


_ENCODER = Family(packed=True, pooling_type="CLS")
_FAIRSEQ = Family(packed=True, pooling_type="CLS", positions_after_pad=True)
_DECODER = Family(packed=True, pooling_type="LAST")
# Never call the attention interface, so a packed row would mix its inputs; wrong by about 0.1 without an error.
_PADDED_ENCODER = Family(packed=False, pooling_type="CLS")
_PADDED_DECODER = Family(packed=False, pooling_type="LAST")

FAMILIES: dict[str, Family] = {
    "bert": _ENCODER,
    "electra": _ENCODER,
    "albert": _ENCODER,
    "distilbert": _ENCODER,
    "modernbert": _ENCODER,
    "eurobert": _ENCODER,
    "roberta": _FAIRSEQ,
    "xlm-roberta": _FAIRSEQ,
    "xlm-roberta-xl": _FAIRSEQ,
    "camembert": _FAIRSEQ,
    "mistral": _DECODER,
    "llama": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
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
    "mpnet": Family(packed=False, pooling_type="CLS", positions_after_pad=True),
    "deberta": _PADDED_ENCODER,
    "deberta-v2": _PADDED_ENCODER,
    "bloom": _PADDED_DECODER,
}


def family_of(model_type: str) -> Family:
    """The row of a family; one without a row runs padded, which every transformers model supports."""
    return FAMILIES.get(model_type, _PADDED_DECODER)
