"""Forward: a step's token ids -> hidden states [tokens, dim], packed where the family allows it, padded otherwise."""

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from pooling.attention import NAME, Packing, bind
from pooling.errors import CheckpointError
from pooling.heads import Head
from pooling.loading.checkpoint import Checkpoint
from pooling.loading.describe import Description
from pooling.loading.model import load_model
from pooling.prepacked import prepack

log = logging.getLogger("raypool")


@dataclass(frozen=True, slots=True)
class StepInput:
    """A step's inputs, end to end and longest first.

    ids and positions [1, tokens] int64 and lengths [inputs] int64 are on the
    device; sizes are the same lengths on the host. types [1, tokens] int64 is 1
    at the tokens of second texts, None where there are none. attended: how many
    tokens of each input are seen, None: all.
    """

    ids: Tensor
    positions: Tensor
    lengths: Tensor
    sizes: tuple[int, ...]
    packing: Packing
    types: Tensor | None = None
    attended: tuple[int, ...] | None = None


class Forward(Protocol):
    """One way to run the model. `path` is its name for the log: packed or padded."""

    path: str

    def prepare(
        self,
        ids: NDArray[np.int32],
        lengths: NDArray[np.int32],
        second: NDArray[np.int32] | None = None,
        attended: NDArray[np.int32] | None = None,
    ) -> StepInput: ...

    def to_device(self, array: NDArray[Any]) -> Tensor: ...

    def __call__(self, step: StepInput) -> Tensor: ...


def choose_forward(
    description: Description, dtype: torch.dtype, device: torch.device, max_batch_tokens: int
) -> tuple[Forward, dict[str, Head]]:
    """Packed if the family is known to pack and this model proves it on this device, else padded, loudly.

    Beside it the heads of the model, by name.

    Raises CheckpointError if neither gives the answers of each input alone.
    """
    name, kind = description.card.name, description.card.model_type
    checkpoint = Checkpoint(description.backbone)
    obstacle = _obstacle(description, dtype, device)
    loaded = load_model(checkpoint, description, "eager" if obstacle else NAME, dtype, device)
    model = loaded.backbone
    if obstacle is None:
        first_position = description.config.pad_token_id + 1 if description.family.positions_after_pad else 0
        if device.type == "cpu" and dtype == torch.bfloat16:
            prepack(model, max_batch_tokens)
        packed = PackedForward(model, first_position, device)
        obstacle = check(packed, model, description, dtype)
        if obstacle is None:
            return packed, loaded.heads
    log.warning("%s: running padded, which is slower: %s", name, obstacle)
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    padded = PaddedForward(model, device, max_batch_tokens)
    reason = check(padded, model, description, dtype)
    if reason is not None:
        raise CheckpointError(f"a {kind} model cannot be served in batches: {reason}")
    return padded, loaded.heads


def _obstacle(description: Description, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a model cannot even be tried packed; None if it can."""
    if not description.family.packed:
        return f"family {description.card.model_type} is not known to run packed"
    if device.type == "cuda" and dtype == torch.float32:
        return "packed attention on CUDA takes bfloat16 and float16 only"
    if device.type == "cuda" and getattr(description.config, "attn_logit_softcapping", None) is not None:
        return "packed attention on CUDA has no softcap"
    return None


class PackedForward:
    """Inputs lie end to end in one row; no token is padding."""

    path = "packed"

    def __init__(self, model: PreTrainedModel, first_position: int, device: torch.device) -> None:
        self._model, self._device, self._first_position = model, device, first_position
        self._slot = bind(model)
        self._keywords = _keywords(model)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def to_device(self, array: NDArray[Any]) -> Tensor:
        return _to_device(array, self._device)

    def prepare(
        self,
        ids: NDArray[np.int32],
        lengths: NDArray[np.int32],
        second: NDArray[np.int32] | None = None,
        attended: NDArray[np.int32] | None = None,
    ) -> StepInput:
        ends = np.cumsum(lengths, dtype=np.int64)
        places = _places(lengths)
        cu_seqlens = None
        if self._device.type == "cuda":
            cu_seqlens = self.to_device(np.concatenate([[0], ends]).astype(np.int32))
        sizes = tuple(lengths.tolist())
        return StepInput(
            self.to_device(ids.astype(np.int64)[None]),
            self.to_device(places[None] + self._first_position),
            self.to_device(lengths.astype(np.int64)),
            sizes,
            Packing.of(sizes, cu_seqlens, None if attended is None else attended.tolist()),
            None if second is None else self.to_device(_types(places, lengths, second)[None]),
        )

    def __call__(self, step: StepInput) -> Tensor:
        """-> hidden [tokens, dim] in the model's dtype."""
        self._slot.packing = step.packing
        given = {"position_ids": step.positions} if self._takes_positions else {}
        if step.types is not None:
            given["token_type_ids"] = step.types
        hidden: Tensor = self._model(input_ids=step.ids, **given, **self._keywords)[0]
        return hidden[0]


class PaddedForward:
    """Inputs of similar length are padded to one length; the padding is dropped from the answer."""

    path = "padded"

    def __init__(self, model: PreTrainedModel, device: torch.device, max_batch_tokens: int) -> None:
        self._model, self._device, self._budget = model, device, max_batch_tokens
        self._pad = int(model.config.pad_token_id or 0)
        self._keywords = _keywords(model)

    def to_device(self, array: NDArray[Any]) -> Tensor:
        return _to_device(array, self._device)

    def prepare(
        self,
        ids: NDArray[np.int32],
        lengths: NDArray[np.int32],
        second: NDArray[np.int32] | None = None,
        attended: NDArray[np.int32] | None = None,
    ) -> StepInput:
        sizes = tuple(lengths.tolist())
        tokens = self.to_device(ids.astype(np.int64)[None])
        types = None if second is None else self.to_device(_types(_places(lengths), lengths, second)[None])
        seen = None if attended is None else tuple(attended.tolist())
        lengths_there = self.to_device(lengths.astype(np.int64))
        return StepInput(tokens, tokens, lengths_there, sizes, Packing.of(sizes), types, seen)

    def __call__(self, step: StepInput) -> Tensor:
        """-> hidden [tokens, dim] in the model's dtype."""
        inputs = torch.split(step.ids[0], list(step.sizes))
        types = None if step.types is None else torch.split(step.types[0], list(step.sizes))
        answers: list[Tensor] = []
        start = 0
        while start < len(inputs):
            # Longest first, so the first input of a batch sets its width.
            stop = start + max(1, self._budget // step.sizes[start])
            seen = None if step.attended is None else step.attended[start:stop]
            answers.append(self._padded(inputs[start:stop], None if types is None else types[start:stop], seen))
            start = stop
        return torch.cat(answers)

    def _padded(
        self, inputs: Sequence[Tensor], types: Sequence[Tensor] | None, attended: Sequence[int] | None
    ) -> Tensor:
        ids = _pad(inputs, self._pad)
        present = mask = _pad([torch.ones_like(item) for item in inputs])
        if attended is not None:
            places = torch.arange(ids.shape[1], device=ids.device)
            mask = (places < torch.tensor(attended, device=ids.device)[:, None]).long()
        given = {} if types is None else {"token_type_ids": _pad(types)}
        hidden: Tensor = self._model(input_ids=ids, attention_mask=mask, **given, **self._keywords)[0]
        return hidden[present.bool()]


def check(forward: Forward, model: PreTrainedModel, description: Description, dtype: torch.dtype) -> str | None:
    """Runs two inputs together and each alone; returns what is wrong, None if nothing is.

    Two questions. Does an input leak into another? Exact in any dtype: changing
    one must not change the other's rows by a bit. Are the rows those of
    transformers' own eager attention? Within rounding, where a wrong mask,
    window or position shows as 0.05 and more.
    """
    limit = description.card.max_model_len
    window = getattr(description.config, "sliding_window", None) or 0
    long = min(max(24, min(window + 9, 1_024)), limit)
    short = max(1, min(11, limit))
    draw = np.random.default_rng(0)
    a, b, other = (_draw(draw, size, description) for size in (long, short, short))
    c = _draw(draw, long, description)
    with torch.inference_mode():
        together = _run(forward, a, b)
        leaks = not torch.equal(together[:long], _run(forward, a, other)[:long])
        leaks |= not torch.equal(together[long:], _run(forward, c, b)[long:])
        if leaks:
            return "an input changes when another one does"
        ours = model.config._attn_implementation
        model.set_attn_implementation("eager")
        alone = torch.cat([_alone(forward, model, ids) for ids in (a, b)])
        model.set_attn_implementation(ours)
    error = float((together.float() - alone.float()).norm() / alone.float().norm())
    allowed = 1e-3 if dtype == torch.float32 else 0.05
    return None if error < allowed else f"its answers differ from the model's own by {error:.1e} of their length"


def _draw(draw: np.random.Generator, size: int, description: Description) -> NDArray[np.int32]:
    """Random ids without the padding id, from which some models compute positions."""
    ids = draw.integers(0, description.card.vocab_size, size).astype(np.int32)
    pad = getattr(description.config, "pad_token_id", None)
    return np.where(ids == pad, (ids + 1) % description.card.vocab_size, ids).astype(np.int32)


def _run(forward: Forward, *inputs: NDArray[np.int32]) -> Tensor:
    lengths = np.array([len(ids) for ids in inputs], np.int32)
    return forward(forward.prepare(np.concatenate(inputs), lengths))


def _alone(forward: Forward, model: PreTrainedModel, ids: NDArray[np.int32]) -> Tensor:
    hidden: Tensor = model(input_ids=forward.to_device(ids.astype(np.int64)[None]), **_keywords(model))[0]
    return hidden[0]


def _keywords(model: PreTrainedModel) -> dict[str, Any]:
    """Whole inputs are read once, so nothing is kept for a next token."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def _places(lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    """Of each token, which one of its input it is."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.arange(ends[-1], dtype=np.int64) - np.repeat(ends - lengths, lengths)


def _types(places: NDArray[np.int64], lengths: NDArray[np.int32], second: NDArray[np.int32]) -> NDArray[np.int64]:
    """1 at the tokens of an input's second text, 0 before."""
    return (places >= np.repeat(second, lengths)).astype(np.int64)


def _pad(inputs: Sequence[Tensor], value: int = 0) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(inputs), batch_first=True, padding_value=value)


def _to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
