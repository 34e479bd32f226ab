"""vision_of(): how a model takes images, from its config; which models do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedConfig

from pooling.config import ModelSpec
from pooling.errors import CheckpointError
from pooling.loading.families import FAMILIES, Family, VisionKind
from pooling.loading.files import read_json


@dataclass(frozen=True, slots=True)
class Vision:
    """How a model takes images.

    kind: as in Family. max_images: how many an input may have. shape: of a
    processed image, None where that differs from image to image. tokens: of an
    image, None where that differs. token_id: what stands in ids for each of them.
    fill_to: so many tokens texts are filled up to; None: not at all.

    Of a decoder: merge: patches to a token, along each side of an image. patch:
    numbers of a patch, None where images are not cut into patches. by_place:
    whether tokens are numbered by their place in an image; else first is the
    number of an input's first one. row: numbers of an image token that is embedded
    already, made of row_parts: one for the input, others for the first layers.
    texts: how a text alone is read: None as it stands, as a message, or as a query
    by forms, which has what is written before a query, and around an image.
    edge_ids: what is written before and after an image's placeholder.
    """

    kind: VisionKind
    max_images: int
    shape: tuple[int, ...] | None = None
    tokens: int | None = None
    token_id: int = 0
    fill_to: int | None = None
    merge: int = 1
    patch: int | None = None
    by_place: bool = False
    first: int = 0
    row: int = 0
    row_parts: int = 1
    texts: Literal["message", "query"] | None = None
    forms: tuple[str, str] = ("", "")
    edge_ids: tuple[int, ...] = ()

    def __str__(self) -> str:
        """In words: `images alone, 197 tokens each`."""
        apart = "one in place of a text"
        how = {
            "towers": apart,
            "images": "images alone",
            "decoder": apart if self.texts == "query" else f"up to {self.max_images} among the texts of an input",
        }[self.kind]
        return how if self.tokens is None else f"{how}, {self.tokens} tokens each"


def vision_of(config: PreTrainedConfig, family: Family, spec: ModelSpec, backbone: Path) -> Vision | None:
    """None for a model that reads text alone. backbone: the model's directory."""
    most = spec.limit_mm_per_prompt["image"]
    if family.vision is None:
        return None
    if config.model_type == "colqwen2":
        return _colqwen2(config, backbone, min(most, 1))
    if config.model_type == "colpali":
        return _colpali(config, backbone, min(most, 1))
    if family.vision == "decoder":
        return _qwen_vl(config, most)
    # SigLIP has no class token; its texts were always filled up to the end of its table of positions, and their answer
    # is that of the last place.
    siglip = config.model_type == "siglip"
    fill_to = int(config.text_config.max_position_embeddings) if siglip else None
    shape, patches = _of_one_size(getattr(config, "vision_config", config))
    return Vision(family.vision, min(most, 1), shape, patches + (not siglip), fill_to=fill_to)


def _of_one_size(part: Any) -> tuple[tuple[int, ...], int]:
    """The shape of a processed image, and its patches."""
    side = int(part.image_size)
    return (1, int(part.num_channels), side, side), (side // int(part.patch_size)) ** 2


def _qwen_vl(config: Any, most: int, **more: Any) -> Vision:
    part = config.vision_config
    parts = 1 + len(getattr(part, "deepstack_visual_indexes", ()))
    settings: dict[str, Any] = {
        "token_id": int(config.image_token_id),
        "merge": int(part.spatial_merge_size),
        "patch": int(part.in_channels) * int(part.temporal_patch_size) * int(part.patch_size) ** 2,
        "by_place": True,
        "row": int(config.text_config.hidden_size) * parts,
        "row_parts": parts,
        "edge_ids": (int(config.vision_start_token_id), int(config.vision_end_token_id)),
    }
    return Vision("decoder", most, **(settings | more))


def _colqwen2(config: Any, backbone: Path, most: int) -> Vision:
    """transformers' class gives its decoder no places of images, so tokens are numbered one after another.

    Source of the forms: its ColQwen2Processor.
    """
    query = _of_processor(backbone, "query_prefix", "Query: ")
    image = _of_processor(
        backbone,
        "visual_prompt_prefix",
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe the image.<|im_end|><|endoftext|>",
    )
    return _qwen_vl(config.vlm_config, most, by_place=False, texts="query", forms=(query, image))


def _colpali(config: Any, backbone: Path, most: int) -> Vision:
    """Source of the forms: transformers' ColPaliProcessor; of the first number: its PaliGemmaModel."""
    vlm = config.vlm_config
    shape, patches = _of_one_size(vlm.vision_config)
    query = "{bos}" + _of_processor(backbone, "query_prefix", "Question: ")
    image = "<image>{bos}" + _of_processor(backbone, "visual_prompt_prefix", "Describe the image.") + "\n"
    return Vision(
        "decoder",
        most,
        shape,
        patches,
        token_id=int(vlm.image_token_id),
        first=1,
        row=int(vlm.text_config.hidden_size),
        texts="query",
        forms=(query, image),
    )


def _of_processor(backbone: Path, name: str, default: str) -> str:
    """What the processor's file says, where there is one that does."""
    file = backbone / "processor_config.json"
    return str((read_json(file) if file.exists() else {}).get(name) or default)


def stack_of(config: PreTrainedConfig, family: Family) -> Any:
    """The config of the layers that read text; a model of images alone has only its own."""
    if family.vision in (None, "images"):
        return config
    return getattr(config, "vlm_config", config).text_config


def refuse_other_vision(config: PreTrainedConfig) -> None:
    """Raises CheckpointError for a model with a vision part that is not served."""
    has_part = any(getattr(config, name, None) is not None for name in ("vision_config", "vlm_config"))
    if has_part and FAMILIES.get(config.model_type, _NONE).vision is None:
        known = ", ".join(kind for kind, family in FAMILIES.items() if family.vision is not None)
        raise CheckpointError(
            f"{config.model_type} is a model with a vision part that is not supported; those that take images are "
            f"{known}"
        )


_NONE = Family(packed=False, pooling_type="CLS")
