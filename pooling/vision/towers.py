"""TowersForward: CLIP and SigLIP, a text or an image -> a row, each by its own layers; ImagesForward: images alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from pooling.attention import Packing, bind
from pooling.forward import StepInput, alone_by_eager, to_device
from pooling.media import Media, ProcessedImage
from pooling.vision.distinct import Distinct


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of a step. ids and positions: [1, tokens] packed, else [texts, longest].

    rows [texts]: where their answers belong. ends [texts]: the token of each whose
    state is its answer, in the flattened ids.
    """

    ids: Tensor
    positions: Tensor
    packing: Packing | None
    ends: Tensor
    rows: Tensor


@dataclass(frozen=True, slots=True)
class Images:
    """The images of a step. pixels [images, channels, height, width], each image once; of and rows: which image's
    answer belongs to which input."""

    pixels: Tensor
    of: Tensor
    rows: Tensor


@dataclass(frozen=True, slots=True)
class TowersStep(StepInput):
    """Either part is None where no input is of its kind."""

    texts: Texts | None = None
    images: Images | None = None


class ImagesForward:
    """Images of one size, in a batch: a row of each is what the model says of its first token, [inputs, dim]."""

    path = "batched"
    shares_prefixes = False

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        self._model: Any = model
        self._device = device

    def to_device(self, array: NDArray[Any]) -> Tensor:
        return to_device(array, self._device)

    def prepare(
        self,
        ids: NDArray[np.int32],
        lengths: NDArray[np.int32],
        second: NDArray[np.int32] | None = None,
        attended: NDArray[np.int32] | None = None,
        media: Media | None = None,
    ) -> TowersStep:
        is_image = np.array([bool(images) for images in media or ((),) * len(lengths)])
        images = None if media is None or not is_image.any() else self._images(media, is_image)
        texts = None if is_image.all() else self._texts(ids[np.repeat(~is_image, lengths)], lengths, is_image)
        places = self.to_device(np.zeros((1, 0), np.int64))
        sizes = tuple(lengths.tolist())
        on_device = self.to_device(lengths.astype(np.int64))
        return TowersStep(places, places, on_device, sizes, Packing.of(sizes), texts=texts, images=images)

    def _images(self, media: Media, is_image: NDArray[np.bool_]) -> Images:
        distinct = Distinct.among(images[0] for images in media if images)
        pixels = np.concatenate([image.pixels for image in distinct.images])
        rows = np.flatnonzero(is_image)
        return Images(*(self.to_device(part) for part in (pixels, np.array(distinct.of), rows)))

    def _texts(self, ids: NDArray[np.int32], lengths: NDArray[np.int32], is_image: NDArray[np.bool_]) -> Texts:
        raise RuntimeError("a text for a model of images alone")  # refused at the door

    def __call__(self, step: StepInput) -> Tensor:
        """-> a row for each input, [inputs, dim], in the model's dtype."""
        assert isinstance(step, TowersStep)
        parts: list[tuple[Tensor, Tensor]] = []
        if step.texts is not None:
            parts.append((step.texts.rows, self._text_rows(step.texts)))
        if step.images is not None:
            parts.append((step.images.rows, self._image_rows(step.images.pixels)[step.images.of]))
        if len(parts) == 1:
            return parts[0][1]  # inputs of one kind are in their order
        (places, rows), (other_places, other_rows) = parts
        answer = rows.new_empty(len(step.sizes), rows.shape[1])
        answer[places], answer[other_places] = rows, other_rows
        return answer

    def _text_rows(self, texts: Texts) -> Tensor:
        raise RuntimeError("a text for a model of images alone")

    def _image_rows(self, pixels: Tensor) -> Tensor:
        rows: Tensor = self._model(pixel_values=pixels.to(self._model.dtype))[0][:, 0]
        return rows

    def alone(self, ids: NDArray[np.int32], images: Sequence[ProcessedImage] = ()) -> Tensor:
        """One input by transformers' own eager attention: [1, dim]."""
        with alone_by_eager(self._model):
            return self._image_rows(self.to_device(images[0].pixels))


class TowersForward(ImagesForward):
    """Beside images texts, packed, or in a padded batch where the device has no packed attention.

    CLIP's texts see what is before them only, so that padding behind them needs
    no mask; SigLIP's all have one length.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device, packed: bool) -> None:
        super().__init__(model, device)
        self.path = "packed" if packed else "padded"
        text: Any = self._model.text_model
        # CLIP's answer is at the end token: the first of that id, or, where old files name the wrong one, the token of
        # the highest id. SigLIP's is at the last token.
        self._project: nn.Module = getattr(self._model, "text_projection", None) or text.head
        self._end = int(text.config.eos_token_id) if hasattr(self._model, "text_projection") else None
        if packed:
            self._slot = bind(text)
            text.embeddings = _Unbounded(text.embeddings)

    def _texts(self, ids: NDArray[np.int32], lengths: NDArray[np.int32], is_image: NDArray[np.bool_]) -> Texts:
        lengths = lengths[~is_image]
        stops = np.cumsum(lengths, dtype=np.int64)
        starts = stops - lengths
        places = np.arange(len(ids)) - np.repeat(starts, lengths)
        ends = np.array([_end(ids[a:b], self._end) for a, b in zip(starts, stops, strict=True)], np.int64)
        rows = np.flatnonzero(~is_image)
        if self.path == "packed":
            table, positions, ends = ids[None].astype(np.int64), places[None], starts + ends
            cu_seqlens = None
            if self._device.type == "cuda":
                cu_seqlens = self.to_device(np.concatenate([[0], stops]).astype(np.int32))
            packing = Packing.of(lengths.tolist(), cu_seqlens)
            return Texts(self.to_device(table), self.to_device(positions), packing, *map(self.to_device, (ends, rows)))
        longest = int(lengths.max())
        table = np.zeros((len(lengths), longest), np.int64)
        table[np.repeat(np.arange(len(lengths)), lengths), places] = ids
        positions = np.arange(longest)[None]
        ends = np.arange(len(lengths)) * longest + ends
        return Texts(self.to_device(table), self.to_device(positions), None, *map(self.to_device, (ends, rows)))

    def _text_rows(self, texts: Texts) -> Tensor:
        if texts.packing is not None:
            self._slot.packing = texts.packing
        try:
            hidden = self._model.text_model(input_ids=texts.ids, position_ids=texts.positions).last_hidden_state
        finally:
            if texts.packing is not None:
                self._slot.packing = None
        rows: Tensor = self._project(hidden.flatten(0, 1)[texts.ends])
        return rows

    def _image_rows(self, pixels: Tensor) -> Tensor:
        rows: Tensor = self._model.get_image_features(pixel_values=pixels).pooler_output
        return rows

    def alone(self, ids: NDArray[np.int32], images: Sequence[ProcessedImage] = ()) -> Tensor:
        with alone_by_eager(self._model):
            if images:
                return self._image_rows(self.to_device(images[0].pixels))
            on_device = self.to_device(ids[None].astype(np.int64))
            rows: Tensor = self._model.get_text_features(input_ids=on_device).pooler_output
            return rows


class _Unbounded(nn.Module):
    """The text embeddings of transformers without their check of a row's length, which is not an input's where inputs
    are packed."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.token_embedding, self.position_embedding = own.token_embedding, own.position_embedding

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        embedded: Tensor = self.token_embedding(input_ids) + self.position_embedding(position_ids)
        return embedded


def _end(ids: NDArray[np.int32], end: int | None) -> int:
    """The token whose state is a text's answer. Source: transformers' CLIPTextModel and SiglipTextModel."""
    if end is None:
        return len(ids) - 1
    return int(ids.argmax() if end == 2 else (ids == end).argmax())
