"""DecoderForward: a language model that reads images as tokens among those of a text, packed."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from pooling.attention import NAME
from pooling.forward import PackedForward, StepInput, alone_by_eager, places_of
from pooling.heads import Head
from pooling.loading.checkpoint import Checkpoint
from pooling.loading.describe import Description
from pooling.loading.model import load_model
from pooling.loading.vision import Vision
from pooling.media import Media, ProcessedImage
from pooling.parallel.shard import Shard
from pooling.tuned import tune
from pooling.vision.distinct import Distinct
from pooling.vision.positions import positions_by_place


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """The images of a step, each once, and where their tokens lie.

    pixels [patches, numbers of a patch] and grid [images, 3] are of the images that
    the model embeds, rows [tokens, dim] those of the images that are embedded
    already, which come behind them; None where there are none. tokens: of all of
    them. at and of [image tokens of the step]: which token of the step, and which
    of the images it is.
    """

    pixels: Tensor | None
    grid: Tensor | None
    rows: Tensor | None
    tokens: int
    at: Tensor
    of: Tensor


@dataclass(frozen=True, slots=True)
class DecoderStep(StepInput):
    """images: None where no input has one."""

    images: ImageTokens | None = None


class DecoderForward(PackedForward):
    """Qwen-VL and its kin: layers of their own make rows of the images, which take the places of their tokens.

    packed: whether the device has packed attention for the model; without it
    inputs are run one after another.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        device: torch.device,
        vision: Vision,
        packed: bool,
        shard: Shard | None = None,
    ) -> None:
        """shard: which share of the decoder this is; rank 0 alone embeds images, and tells the others."""
        super().__init__(model, device, None)
        self.shares_prefixes = False  # whose positions in an image are others than in the row
        self._vlm: Any = model
        self._vision, self._packed, self._shard = vision, packed, shard
        self.path = "packed" if packed else "one by one"

    def prepare(
        self,
        ids: NDArray[np.int32],
        lengths: NDArray[np.int32],
        second: NDArray[np.int32] | None = None,
        attended: NDArray[np.int32] | None = None,
        media: Media | None = None,
    ) -> DecoderStep:
        step = super().prepare(ids, lengths, second, attended)
        own = {field.name: getattr(step, field.name) for field in fields(StepInput)}
        with_images = media is not None and any(media)
        if self._vision.by_place:
            own["positions"] = self._places(step, ids, lengths, media if with_images else None)
        elif self._vision.first:
            own["positions"] = step.positions + self._vision.first
        images = self._images(ids, lengths, media) if with_images and media is not None else None
        return DecoderStep(**own, images=images)

    def _places(
        self, step: StepInput, ids: NDArray[np.int32], lengths: NDArray[np.int32], media: Media | None
    ) -> Tensor:
        """[3, 1, tokens]"""
        if media is None:
            return step.positions.expand(3, 1, -1)
        places = np.tile(places_of(lengths), (3, 1, 1))
        ends = np.cumsum(lengths, dtype=np.int64)
        for start, end, images in zip(ends - lengths, ends, media, strict=True):
            if images:
                is_image = ids[start:end] == self._vision.token_id
                places[:, 0, start:end] = positions_by_place(is_image, images, self._vision.merge)
        return self.to_device(places)

    def _images(self, ids: NDArray[np.int32], lengths: NDArray[np.int32], media: Media) -> ImageTokens:
        distinct = Distinct.among(image for images in media for image in images)
        # The model embeds its images in one pass, so those that are embedded already come behind them.
        numbers = sorted(range(len(distinct.images)), key=lambda number: distinct.images[number].embedded)
        images = [distinct.images[number] for number in numbers]
        starts = np.cumsum([0, *(image.tokens for image in images)])
        begin = {number: int(start) for number, start in zip(numbers, starts[:-1], strict=True)}
        of = np.concatenate([begin[one] + np.arange(distinct.images[one].tokens) for one in distinct.of])
        own, given = ([image for image in images if image.embedded is embedded] for embedded in (False, True))
        has_images = np.repeat([bool(images) for images in media], lengths)
        at = np.flatnonzero((ids == self._vision.token_id) & has_images)
        return ImageTokens(
            self.to_device(np.concatenate([image.pixels for image in own])) if own else None,
            self.to_device(np.array([image.grid for image in own], np.int64)) if own and own[0].grid else None,
            self.to_device(np.concatenate([image.pixels for image in given])) if given else None,
            int(starts[-1]),
            self.to_device(at),
            self.to_device(of),
        )

    def __call__(self, step: StepInput) -> Tensor:
        """-> hidden [tokens, dim] in the model's dtype."""
        assert isinstance(step, DecoderStep)
        embeds: Tensor = self._vlm.get_input_embeddings()(step.ids)
        layers: list[Tensor] = []
        if step.images is not None:
            first, *layers = self._shared(step.images, embeds)
            embeds[0, step.images.at] = first[step.images.of].to(embeds.dtype)
            layers = [rows[step.images.of] for rows in layers]
        if not self._packed:
            return self._one_by_one(step, embeds, layers)
        self._slot.packing = step.packing
        try:
            return self._decode(embeds, step.positions, step.images, layers)
        finally:
            self._slot.packing = None

    def _decode(
        self, embeds: Tensor, positions: Tensor, images: ImageTokens | None, layers: Sequence[Tensor], start: int = 0
    ) -> Tensor:
        """layers: what is added to the image tokens behind each of the first layers (DeepStack, arXiv:2406.04334)."""
        more: dict[str, Any] = {}
        if images is not None and layers:
            stop = start + embeds.shape[1]
            here = (images.at >= start) & (images.at < stop)
            seen = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
            seen[0, images.at[here] - start] = True
            more = {"visual_pos_masks": seen, "deepstack_visual_embeds": [rows[here] for rows in layers]}
        answer = self._vlm.language_model(inputs_embeds=embeds, position_ids=positions, use_cache=False, **more)
        hidden: Tensor = answer[0][0]
        return hidden

    def _one_by_one(self, step: DecoderStep, embeds: Tensor, layers: Sequence[Tensor]) -> Tensor:
        answers, start = [], 0
        for size in step.sizes:
            part = slice(start, start + size)
            answers.append(self._decode(embeds[:, part], step.positions[..., part], step.images, layers, start))
            start += size
        return torch.cat(answers)

    def _shared(self, images: ImageTokens, embeds: Tensor) -> list[Tensor]:
        """The rows of the images on every rank: a sum to which the others add nothing."""
        shard, parts = self._shard, self._vision.row_parts
        if shard is None:
            return self._embedded(images)
        if shard.rank == 0:
            rows = torch.cat(self._embedded(images), dim=1).to(embeds.dtype)
        else:
            rows = embeds.new_zeros(images.tokens, embeds.shape[2] * parts)
        return list(torch.split(shard.add_up(rows.contiguous()), embeds.shape[2], dim=1))

    def _embedded(self, images: ImageTokens) -> list[Tensor]:
        """The rows of the images [tokens, dim], and those for the first layers where the model has some."""
        made: list[list[Tensor]] = []
        if images.pixels is not None:
            made.append(self._made(images.pixels, images.grid))
        if images.rows is not None:
            parts = images.rows.shape[1] // self._vision.row_parts
            made.append(list(torch.split(images.rows, parts, dim=1)))
        return [torch.cat([one.to(rows[0].dtype) for one in rows]) for rows in zip(*made, strict=True)]

    def _made(self, pixels: Tensor, grid: Tensor | None) -> list[Tensor]:
        if grid is None:
            rows: Tensor = self._vlm.get_image_features(pixels.to(self._vlm.dtype)).pooler_output
            return [rows.flatten(0, 1)]
        visual = self._vlm.visual
        answer = visual(pixels.to(visual.dtype), grid_thw=grid)
        return [answer.pooler_output, *(getattr(answer, "deepstack_features", None) or ())]

    def alone(self, ids: NDArray[np.int32], images: Sequence[ProcessedImage] = ()) -> Tensor:
        """One input, whole, through transformers' own class and its eager attention: hidden [tokens, dim]."""
        given: dict[str, Any] = {}
        if images:
            given["pixel_values"] = torch.cat([self.to_device(image.pixels) for image in images])
        if images and self._vision.patch is not None:
            given["image_grid_thw"] = self.to_device(np.array([image.grid for image in images], np.int64))
            given["mm_token_type_ids"] = self.to_device((ids == self._vision.token_id).astype(np.int32)[None])
        if not self._vision.by_place:
            given["position_ids"] = self.to_device(np.arange(len(ids))[None] + self._vision.first)
        with alone_by_eager(self.model):
            on_device = self.to_device(ids.astype(np.int64)[None])
            hidden: Tensor = self._vlm(input_ids=on_device, use_cache=False, **given)[0]
        return hidden[0]


def load_decoder(
    description: Description,
    dtype: torch.dtype,
    device: torch.device,
    max_batch_tokens: int,
    packed: bool = True,
    shard: Shard | None = None,
) -> tuple[DecoderForward, dict[str, Head]]:
    """The model, or this rank's share of it, not proven yet; beside it its heads, by name."""
    vision = description.card.vision
    assert vision is not None
    attention = NAME if packed else "sdpa"
    loaded = load_model(Checkpoint(description.backbone), description, attention, dtype, device, shard)
    tune(loaded.backbone, device, dtype, max_batch_tokens, shard is not None)
    return DecoderForward(loaded.backbone, device, vision, packed, shard), loaded.heads
