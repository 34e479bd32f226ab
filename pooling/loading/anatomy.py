"""Anatomy: what a checkpoint's architecture is made of, beside the stack of layers that every model has."""

from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedConfig

from pooling.errors import CheckpointError
from pooling.loading.scorer import Scorer

# embedder: layers alone. classifier and token_classifier: a head of transformers' own class. reward: two linear
# layers over every token, of which transformers has no class. masked_lm: transformers' head, which SPLADE reads.
# colbert: one linear layer over every token, in the same file as the layers. scorer: rows of a causal language model's
# output layer. image_classifier: a linear layer over what an image's first token says. retriever: one over every token
# of a text or an image, of transformers' own class.
Kind = Literal[
    "embedder",
    "classifier",
    "token_classifier",
    "image_classifier",
    "reward",
    "masked_lm",
    "colbert",
    "retriever",
    "scorer",
]

_ENDINGS: tuple[tuple[str, Kind], ...] = (
    ("ForSequenceClassification", "classifier"),
    ("ForTokenClassification", "token_classifier"),
    ("ViTForImageClassification", "image_classifier"),
    ("Qwen2ForRewardModel", "reward"),
    ("Qwen2ForProcessRewardModel", "reward"),
    ("HF_ColBERT", "colbert"),
    ("Model", "embedder"),
    ("ForMaskedLM", "embedder"),
    ("ForCausalLM", "embedder"),
    ("ForPreTraining", "embedder"),
    ("LMHeadModel", "embedder"),
    ("ForTextEncoding", "embedder"),
    ("T5ForConditionalGeneration", "embedder"),  # its encoder
    ("VLForConditionalGeneration", "embedder"),
    ("ForRetrieval", "retriever"),
)
# The token behind each step of a solution, of which Qwen2.5-Math-PRM was trained to judge the step; its `<extra_0>`.
_QWEN_STEP_TAG = 151_651


@dataclass(frozen=True, slots=True)
class Anatomy:
    """architecture: the first name in config.json. labels: what a head's columns mean, () without one.

    step_tag_id: of a process reward model, the token whose rows are the answer.
    scorer: of a scorer, the logits that are its answer.
    """

    architecture: str
    kind: Kind
    labels: tuple[str, ...] = ()
    step_tag_id: int | None = None
    scorer: Scorer | None = None


def anatomy_of(config: PreTrainedConfig, scorer: Scorer | None, splade: bool = False) -> Anatomy:
    """splade: whether its files say that a masked-language-model head is read.

    Raises CheckpointError for a head that is not served: naming what was found and what is.
    """
    name = (config.architectures or ["(none named)"])[0]
    if not config.architectures and not splade:
        return Anatomy(name, "embedder")
    if scorer is not None:
        return Anatomy(name, "scorer", scorer.labels, scorer=scorer)
    kind = kind_of(name)
    if splade:
        if not name.endswith("ForMaskedLM"):
            raise CheckpointError(
                f"SPLADE reads a masked-language-model head, which {name} lacks; ...ForMaskedLM has one"
            )
        return Anatomy(name, "masked_lm")
    if kind in ("embedder", "colbert", "retriever"):
        return Anatomy(name, kind)
    if kind == "classifier" and hasattr(config, "num_decoder_layers"):
        raise CheckpointError(f"architecture {name} classifies by its decoder, which is not supported")
    labels = tuple(str(label) for _, label in sorted((config.id2label or {}).items()))
    process = name.endswith("ForProcessRewardModel")
    return Anatomy(name, kind, labels, _QWEN_STEP_TAG if process else None)


def kind_of(architecture: str) -> Kind:
    """Raises CheckpointError for a head that is not served: naming what was found and what is."""
    kind = next((kind for ending, kind in _ENDINGS if architecture.endswith(ending)), None)
    if kind is None or (kind == "embedder" and architecture.endswith("RewardModel")):
        allowed = ", ".join(ending for ending, _ in _ENDINGS)
        raise CheckpointError(
            f"architecture {architecture} has a head that is not served; supported are those that end in {allowed}"
        )
    return kind
