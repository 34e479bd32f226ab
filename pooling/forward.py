"""Forward: a step's token ids -> hidden states [tokens, dim], packed where the family allows it, padded otherwise."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from pooling.attention import Packing, Prefixed, bind
from pooling.graphs import Graphs, Record
from pooling.loading.card import ModelCard
from pooling.media import Media
from pooling.shared_prefixes import SharedPrefixes

# Inputs that begin alike are laid out so that it is computed once if that saves such a share of a step's tokens, or,
# where the step could be replayed, so many of them.
_WORTH_SHARING = 8
_WORTH_SHARING_OVER_GRAPHS = 2_048


@dataclass(frozen=True, slots=True)
class StepInput:
    """A step's inputs, end to end and longest first.

    ids and positions [1, tokens] int64 and lengths [inputs] int64 are on the
    device; sizes are the same lengths on the host. types [1, tokens] int64 is 1
    at the tokens of second texts, None where there are none. attended: how many
    tokens of each input are seen, None: all. spread [all tokens]: where inputs
    share what they begin with, so that ids and positions are of fewer tokens,
    which of these each is.
    """

    ids: Tensor
    positions: Tensor
    lengths: Tensor
    sizes: tuple[int, ...]
    packing: Packing
    types: Tensor | None = None
    attended: tuple[int, ...] | None = None
    spread: Tensor | None = None


class Forward(Protocol):
    """One way to run the model. `path` is its name for the log: packed or padded.

    shares_prefixes: whether what inputs of a step begin with alike is computed once.
    """

    path: str

    @property
    def shares_prefixes(self) -> bool: ...

    def prepare(
        self,
        ids: NDArray[np.int32],
        lengths: NDArray[np.int32],
        second: NDArray[np.int32] | None = None,
        attended: NDArray[np.int32] | None = None,
        media: Media | None = None,
    ) -> StepInput:
        """ids of inputs laid end to end, longest first, lengths [inputs]. media: of each input its images; only a model
        that takes images is given any."""
        ...

    def to_device(self, array: NDArray[Any]) -> Tensor: ...

    def __call__(self, step: StepInput) -> Tensor: ...

    def alone(self, ids: NDArray[np.int32]) -> Tensor:
        """One input by transformers' own eager attention: hidden [tokens, dim]."""
        ...


class PackedForward:
    """Inputs lie end to end in one row; none is filled up.

    counted_from: the padding token's id if positions count from it, as
    fairseq's do; then padding written in a text keeps that position and does
    not count.
    """

    path = "packed"

    def __init__(self, model: PreTrainedModel, device: torch.device, counted_from: int | None) -> None:
        self.model, self._device, self._counted_from = model, device, counted_from
        self._slot = bind(model)
        self._keywords = _keywords(model)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self.graphs: Graphs | None = None
        self.quantized = ""  # how, and what that changes
        # Right where no token sees a later one.
        self.shares_prefixes = self._takes_positions and counted_from is None and _is_causal(model)

    def record(self, record: Record, max_tokens: int, card: ModelCard) -> None:
        """Steps of up to max_tokens are replayed from now on. Raises what recording raises."""
        limits = (max_tokens, card.max_model_len, card.token_types)
        self.graphs = Graphs.record(self._run, record, self._device, *limits)

    def to_device(self, array: NDArray[Any]) -> Tensor:
        return to_device(array, self._device)

    def prepare(
        self,
        ids: NDArray[np.int32],
        lengths: NDArray[np.int32],
        second: NDArray[np.int32] | None = None,
        attended: NDArray[np.int32] | None = None,
        media: Media | None = None,
    ) -> StepInput:
        if self.shares_prefixes and second is None and attended is None and media is None:
            # A recorded step is faster than one from Python until that saves much.
            worth = len(ids) // _WORTH_SHARING if self.graphs is None else _WORTH_SHARING_OVER_GRAPHS
            shared = SharedPrefixes.of(ids, lengths, worth)
            if shared is not None:
                return self._prepare_shared(ids, lengths, shared)
        ends = np.cumsum(lengths, dtype=np.int64)
        places = places_of(lengths)
        positions = places if self._counted_from is None else self._positions(ids, ends - lengths, lengths)
        cu_seqlens = None
        if self._device.type == "cuda" or self.graphs is not None:
            cu_seqlens = self.to_device(np.concatenate([[0], ends]).astype(np.int32))
        sizes = tuple(lengths.tolist())
        return StepInput(
            self.to_device(ids.astype(np.int64)[None]),
            self.to_device(positions[None]),
            self.to_device(lengths.astype(np.int64)),
            sizes,
            Packing.of(sizes, cu_seqlens, None if attended is None else attended.tolist()),
            None if second is None else self.to_device(_types(places, lengths, second)[None]),
        )

    def _prepare_shared(self, ids: NDArray[np.int32], lengths: NDArray[np.int32], shared: SharedPrefixes) -> StepInput:
        own, keys = shared.sizes.T
        starts = (np.cumsum(lengths, dtype=np.int64) - lengths)[shared.inputs]
        ends = np.cumsum(keys)
        of_inputs = np.repeat(starts - (ends - keys), keys) + np.arange(ends[-1])  # the keys among all tokens
        cu_seqlens = cu_keys = None
        if self._device.type == "cuda":
            cu_seqlens, cu_keys = (
                self.to_device(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)) for sizes in (own, keys)
            )
        prefixed = Prefixed.of(shared.sizes.tolist(), self.to_device(shared.places[of_inputs]), cu_keys)
        return StepInput(
            self.to_device(ids[shared.computed].astype(np.int64)[None]),
            self.to_device(places_of(lengths)[shared.computed][None]),
            self.to_device(lengths.astype(np.int64)),
            tuple(lengths.tolist()),
            Packing((), int(own.max()), cu_seqlens, prefixed),
            spread=self.to_device(shared.places),
        )

    def _positions(
        self, ids: NDArray[np.int32], starts: NDArray[np.int64], lengths: NDArray[np.int32]
    ) -> NDArray[np.int64]:
        """Counted from the padding id, which itself stays where it is, as fairseq's tables have it."""
        assert self._counted_from is not None
        counts = ids != self._counted_from
        total = np.cumsum(counts, dtype=np.int64)
        before = total[starts] - counts[starts]
        positions: NDArray[np.int64] = (total - np.repeat(before, lengths)) * counts + self._counted_from
        return positions

    def __call__(self, step: StepInput) -> Tensor:
        """-> hidden [tokens, dim] in the model's dtype; with graphs the next call may overwrite it."""
        if step.spread is not None:
            return self._run(step.ids, step.positions, None, step.packing)[step.spread]
        given = (step.ids, step.positions, step.types, step.packing)
        replayed = None if self.graphs is None else self.graphs.run(*given, inputs=len(step.sizes))
        return self._run(*given) if replayed is None else replayed

    def _run(self, ids: Tensor, positions: Tensor, types: Tensor | None, packing: Packing) -> Tensor:
        given = {"position_ids": positions} if self._takes_positions else {}
        if types is not None:
            given["token_type_ids"] = types
        self._slot.packing = packing
        try:
            hidden: Tensor = self.model(input_ids=ids, **given, **self._keywords)[0]
        finally:
            self._slot.packing = None
        return hidden[0]

    def alone(self, ids: NDArray[np.int32]) -> Tensor:
        return _alone(self.model, self.to_device(ids.astype(np.int64)[None]))


class PaddedForward:
    """Inputs of similar length are padded to one length; the padding is dropped from the answer."""

    path = "padded"
    shares_prefixes = False

    def __init__(self, model: PreTrainedModel, device: torch.device, max_batch_tokens: int) -> None:
        self._model, self._device, self._budget = model, device, max_batch_tokens
        pad = getattr(model.config, "pad_token_id", None) or 0
        self._pad = int(pad) if 0 <= pad < model.config.vocab_size else 0  # any will do: it is masked
        self._keywords = _keywords(model)

    def to_device(self, array: NDArray[Any]) -> Tensor:
        return to_device(array, self._device)

    def prepare(
        self,
        ids: NDArray[np.int32],
        lengths: NDArray[np.int32],
        second: NDArray[np.int32] | None = None,
        attended: NDArray[np.int32] | None = None,
        media: Media | None = None,
    ) -> StepInput:
        sizes = tuple(lengths.tolist())
        tokens = self.to_device(ids.astype(np.int64)[None])
        types = None if second is None else self.to_device(_types(places_of(lengths), lengths, second)[None])
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

    def alone(self, ids: NDArray[np.int32]) -> Tensor:
        return _alone(self._model, self.to_device(ids.astype(np.int64)[None]))

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


@contextmanager
def alone_by_eager(model: PreTrainedModel) -> Iterator[None]:
    """Within it the model runs transformers' own eager attention."""
    before = [(config, config._attn_implementation) for config in configs_of(model)]
    for config, _ in before:
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        for config, attention in before:
            config._attn_implementation = attention


def configs_of(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """Those of its parts too: some have a copy, which model.set_attn_implementation does not reach (UMT5 in 5.17)."""
    parts = (getattr(module, "config", None) for module in model.modules())
    return list({id(config): config for config in parts if isinstance(config, PreTrainedConfig)}.values())


def _alone(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """ids [1, tokens], by eager attention."""
    with alone_by_eager(model):
        hidden: Tensor = model(input_ids=ids, **_keywords(model))[0]
    return hidden[0]


def _is_causal(model: PreTrainedModel) -> bool:
    """Whether no token sees a later one, by what the layers say of themselves; check_shared() proves it."""
    said = [module.is_causal for module in model.modules() if isinstance(getattr(module, "is_causal", None), bool)]
    return bool(said) and all(said) and all(getattr(one, "is_causal", True) is not False for one in configs_of(model))


def _keywords(model: PreTrainedModel) -> dict[str, Any]:
    """Whole inputs are read once, so nothing is kept for a next token."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def places_of(lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    """Of each token, which one of its input it is."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.arange(ends[-1], dtype=np.int64) - np.repeat(ends - lengths, lengths)


def _types(places: NDArray[np.int64], lengths: NDArray[np.int32], second: NDArray[np.int32]) -> NDArray[np.int64]:
    """1 at the tokens of an input's second text, 0 before."""
    return (places >= np.repeat(second, lengths)).astype(np.int64)


def _pad(inputs: Sequence[Tensor], value: int = 0) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(inputs), batch_first=True, padding_value=value)


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Over pinned memory to a GPU; on a CPU the array's own memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
