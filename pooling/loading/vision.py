"""vision_of(): how a model takes images, from its config; which models do."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from pooling.config import ModelSpec
from pooling.errors import CheckpointError
from pooling.loading.families import FAMILIES, Family, VisionKind


@dataclass(frozen=True, slots=True)
class Vision:
    """How a model takes images.

    kind: as in Family. max_images: how many an input may have. shape: of a
    processed image, None where that differs from image to image. tokens: of an
    image, None where that differs. token_id: what stands in ids for each of them.
    fill_to: so many tokens texts are filled up to; None: not at all.

    Of a decoder: merge: patches to a token, along each side of an image. patch:
    numbers of a patch. by_place: whether tokens are numbered by their place in an
    image. row: numbers of an image token that is embedded already, made of
    row_parts: one for the input, others for the first layers. messages: whether a
    text alone is read as a message too. edge_ids: what is written before and after
    an image's placeholder.
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
    row: int = 0
    row_parts: int = 1
    messages: bool = False
    edge_ids: tuple[int, ...] = ()

    def __str__(self) -> str:
        """In words: `images alone, 197 tokens each`."""
        how = {
            "towers": "one in place of a text",
            "images": "images alone",
            "decoder": f"up to {self.max_images} among the texts of an input",
        }[self.kind]
        return how if self.tokens is None else f"{how}, {self.tokens} tokens each"


def vision_of(config: PreTrainedConfig, family: Family, spec: ModelSpec) -> Vision | None:
    """None for a model that reads text alone."""
    if family.vision is None:
        return None
    most = spec.limit_mm_per_prompt["image"]
    if family.vision == "decoder":
        return _decoder(config, most)
    part: Any = getattr(config, "vision_config", config)
    side = int(part.image_size)
    patches = (side // int(part.patch_size)) ** 2
    shape = (1, int(part.num_channels), side, side)
    # SigLIP has no class token; its texts were always filled up to the end of its table of positions, and their answer
    # is that of the last place.
    siglip = config.model_type == "siglip"
    fill_to = int(config.text_config.max_position_embeddings) if siglip else None
    return Vision(family.vision, min(most, 1), shape, patches + (not siglip), fill_to=fill_to)


def _decoder(config: Any, most: int) -> Vision:
    part = config.vision_config
    parts = 1 + len(getattr(part, "deepstack_visual_indexes", ()))
    return Vision(
        "decoder",
        most,
        token_id=int(config.image_token_id),
        merge=int(part.spatial_merge_size),
        patch=int(part.in_channels) * int(part.temporal_patch_size) * int(part.patch_size) ** 2,
        by_place=True,
        row=int(config.text_config.hidden_size) * parts,
        row_parts=parts,
        edge_ids=(int(config.vision_start_token_id), int(config.vision_end_token_id)),
    )


def stack_of(config: PreTrainedConfig, family: Family) -> Any:
    """The config of the layers that read text; a model of images alone has only its own."""
    return config if family.vision in (None, "images") else config.text_config


def refuse_other_vision(config: PreTrainedConfig) -> None:
    """Raises CheckpointError for a model with a vision part that is not served."""
    if FAMILIES.get(config.model_type, _NONE).vision is None and getattr(config, "vision_config", None) is not None:
        known = ", ".join(kind for kind, family in FAMILIES.items() if family.vision is not None)
        raise CheckpointError(
            f"{config.model_type} is a model with a vision part that is not supported; those that take images are "
            f"{known}"
        )


_NONE = Family(packed=False, pooling_type="CLS")
