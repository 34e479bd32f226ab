"""Runner: what running a batch means; LocalRunner: packed forward, pooler and head on one device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pooling.choose import choose_forward
from pooling.config import ModelSpec
from pooling.errors import ConfigError
from pooling.forward import Forward, PackedForward, StepInput
from pooling.heads import activation_of, check_activation, cut
from pooling.heads.check import check_heads
from pooling.kept import kept, side_of
from pooling.lanes import count_lanes
from pooling.loading.card import ModelCard, ResolvedPooler
from pooling.loading.describe import Description, describe
from pooling.loading.dtype import choose_device, choose_dtype
from pooling.media import join_media
from pooling.parallel.forward import GroupForward, load_group
from pooling.parallel.group import StartRanks
from pooling.parallel.local import start_local
from pooling.poolers import POOLERS
from pooling.poolers.splade import SpladePooler
from pooling.request import PackedBatch, PooledOutput, PoolingParams, join_given, join_segments
from pooling.tasks import TASKS, parts_of
from pooling.vision.choose import choose_vision_forward

# Larger steps are no faster on a CPU, and make a small request wait longer behind a bulk one.
_CPU_STEP_TOKENS = 1_024
# Of a core.
_CPU_LANE_TOKENS = 512
# A core's step of so many runs at the rate of one twice as large, one of half the size a fifth slower.
_LEAST_LANE_TOKENS = 256
# Enough to fill a Hopper GPU with a base-size encoder; vLLM's default there is the same.
_CUDA_STEP_TOKENS = 16_384


class Pending(Protocol):
    """A step that was started on the device."""

    def done(self) -> bool:
        """Whether wait() would return at once."""
        ...

    def wait(self) -> list[PooledOutput]:
        """The answers, one for each part of the step, in its order. Raises what the device raised."""
        ...


class Runner(Protocol):
    """Runs steps: `prepare` on the host while other steps run, `launch` on the device.

    lanes: how many steps may be launched at the same time, each on a thread of its own that computes on one core;
    with one, steps are launched one after another. max_batch_tokens: what those compute together at most.
    least_batch_tokens: if they hold fewer, all is slower.
    """

    card: ModelCard
    max_batch_tokens: int
    least_batch_tokens: int
    lanes: int

    @property
    def shares_prefixes(self) -> bool:
        """Whether a step computes once what its inputs begin with alike."""
        ...

    def prepare(self, parts: Sequence[PackedBatch]) -> "Prepared": ...

    def launch(self, prepared: "Prepared") -> Pending: ...

    def describe(self) -> dict[str, str]: ...

    def watch(self, listener: Callable[[str, bool], None]) -> None:
        """listener(reason, ended) is called, on any thread, when a part of the runner in another process is gone.

        ended: because its process has, not because of what it raised.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Ask:
    """Parts of a step that want the same: which rows, and how they divide into parts.

    by_token: whether rows are of tokens, not of inputs that a pooler reduced.
    counts: where inputs have several rows, how many each input of each part has.
    pooled: the only tokens that are pooled, where those are not all.
    """

    task: str
    params: PoolingParams
    parts: tuple[int, ...]
    rows: Tensor
    by_token: bool
    sizes: tuple[int, ...]
    counts: tuple[NDArray[np.int32], ...]
    pooled: "Pooled | None" = None


@dataclass(frozen=True, slots=True)
class Pooled:
    """Tokens that are pooled: where they lie [tokens], and how many of them make each row [rows]."""

    tokens: Tensor
    lengths: Tensor


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step ready for the device: its inputs sorted by length, longest first, and what is asked of each.

    tasks: of each part, those that it wants answered, in its order.
    """

    step: StepInput
    asks: tuple[Ask, ...]
    tasks: tuple[tuple[str, ...], ...]


class LocalRunner:
    """Runs a model in this process, on one device; a model that is split, as rank 0 of its ranks.

    start: how the other ranks are started, where there are any. Raises
    StartupError of the fitting kind if the model cannot be served exactly:
    damaged files, an unknown architecture, or a forward pass that fails its
    self-check.
    """

    def __init__(self, spec: ModelSpec, start: StartRanks = start_local) -> None:
        description = describe(spec)
        self.card = description.card
        if spec.quantization is not None and self.card.vision is not None:
            raise ConfigError(f"{self.card.name}: there is no quantization for models that take images; leave it out")
        self.device = choose_device(spec.device)
        self.dtype = choose_dtype(spec.dtype, self.device)
        self._ranks = spec.tensor_parallel_size
        self.lanes = count_lanes() if self.device.type == "cpu" and self._ranks == 1 else 1
        default = min(max(_CPU_STEP_TOKENS, self.lanes * _CPU_LANE_TOKENS), _CUDA_STEP_TOKENS)
        self.max_batch_tokens = spec.max_batch_tokens or (_CUDA_STEP_TOKENS if self.device.type == "cuda" else default)
        smaller = self.device.type == "cpu" and self._ranks == 1 and spec.max_batch_tokens is None
        self.least_batch_tokens = (
            min(self.lanes * _LEAST_LANE_TOKENS, self.max_batch_tokens) if smaller else self.max_batch_tokens
        )
        self._group: GroupForward | None = None
        self._forward: Forward
        how = (description, self.dtype, self.device, self.max_batch_tokens)
        if self._ranks > 1:
            self._group, self._heads = load_group(spec, *how, start)
            self._forward = self._group
        else:
            self._forward, self._heads = (
                choose_forward(*how, spec.enforce_eager, spec.quantization)
                if self.card.vision is None
                else choose_vision_forward(*how)
            )
        try:
            self._read_card(description)
        except BaseException:
            self.close()
            raise

    def _read_card(self, description: Description) -> None:
        check_heads(self.card, self._heads, self._forward)
        splade = description.files.splade
        self._splade = (
            SpladePooler(splade.strategy, splade.logarithms, self.card.dim, self.lanes) if splade is not None else None
        )
        self._activations = {
            pooler.activation: activation_of(pooler.activation) for pooler in self.card.poolers.values()
        }
        for pooler in self.card.poolers.values():
            check_activation(pooler.activation, self._activations[pooler.activation], pooler.width)

    def describe(self) -> dict[str, str]:
        """What was chosen at start-up, for the log."""
        return {
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "path": self._forward.path,
            "quantization": self._quantized(),
            "tensor_parallel": f"over {self._ranks} ranks" if self._ranks > 1 else "",
            "cuda_graphs": self._graphs(),
            "threads": str(torch.get_num_threads()) if self.device.type == "cpu" else "",
        }

    def _quantized(self) -> str:
        return self._forward.quantized if isinstance(self._forward, PackedForward) else ""

    @property
    def shares_prefixes(self) -> bool:
        return self._forward.shares_prefixes

    def _graphs(self) -> str:
        graphs = self._forward.graphs if isinstance(self._forward, PackedForward) else None
        return "" if graphs is None else f"up to {graphs.max_tokens} tokens"

    def watch(self, listener: Callable[[str, bool], None]) -> None:
        if self._group is not None:
            self._group.watch(listener)

    def close(self) -> None:
        """Ends the other ranks, where there are any."""
        if self._group is not None:
            self._group.close()

    def prepare(self, parts: Sequence[PackedBatch]) -> Prepared:
        """Sorts the inputs of a step by length and builds what the device reads. Host work only."""
        lengths = np.concatenate([part.lengths for part in parts])
        ids = np.concatenate([part.ids for part in parts])
        second, attended = join_given(parts, "second"), join_given(parts, "attended")
        media = join_media([part.media for part in parts], [len(part) for part in parts])
        # Neighbours of equal length are computed in one product, if as many of their tokens are seen.
        order = np.argsort(-lengths, kind="stable") if attended is None else np.lexsort((attended, -lengths))
        place = np.empty_like(order)  # where the input now lies, for each input in part order
        place[order] = np.arange(len(order))
        sorted_lengths = lengths[order]
        if np.any(order[1:] < order[:-1]):
            ids = ids[_tokens_of(order, lengths)]
        second, attended = (None if given is None else given[order] for given in (second, attended))
        media = None if media is None else tuple(media[index] for index in order)
        step = self._forward.prepare(ids, sorted_lengths, second, attended, media)
        asks = tuple(self._asks(parts, ids, place, sorted_lengths))
        return Prepared(step, asks, tuple(parts_of(part.task) for part in parts))

    def launch(self, prepared: Prepared) -> "LocalPending":
        """Runs the forward pass, the pooler and the heads; on CUDA it only enqueues them."""
        with torch.inference_mode():
            hidden = self._forward(prepared.step)
            answers = [self._answer(hidden, prepared.step.lengths, ask) for ask in prepared.asks]
            confirm = None if self._group is None else self._group.confirm
            return LocalPending(prepared, [_to_host(rows) for rows in answers], self.device, confirm)

    def _asks(
        self, parts: Sequence[PackedBatch], ids: NDArray[np.int32], place: NDArray[np.int64], lengths: NDArray[np.int32]
    ) -> list[Ask]:
        """Groups the parts that want the same, and says which rows they get."""
        bounds = np.cumsum([0, *(len(part) for part in parts)])
        wants: dict[tuple[str, PoolingParams, str | None, bool], list[int]] = {}
        for index, part in enumerate(parts):
            for task in parts_of(part.task):
                wants.setdefault((task, part.params, part.input_type, part.by_segment), []).append(index)
        asks = []
        for (task, params, input_type, by_segment), members in wants.items():
            rows = np.concatenate([place[bounds[index] : bounds[index + 1]] for index in members])
            ends = np.cumsum([len(parts[index]) for index in members])[:-1]
            of_input: NDArray[np.int32] | None = None  # rows of each input, where that is not one
            pooler, by_token, pooled = self.card.poolers[task], TASKS[task].rows == "token", None
            segments = join_segments([parts[index] for index in members])
            if pooler.skipped_id is not None:
                rows, by_token = _last_kept(rows, ids, lengths, pooler.skipped_id), True
            elif segments is not None:
                tokens, tokens_of_row, rows_of_input = _segments_of(rows, lengths, segments)
                pooled = Pooled(self._forward.to_device(tokens), self._forward.to_device(tokens_of_row))
                rows, of_input = np.arange(len(tokens_of_row)), rows_of_input if by_segment else None
            elif by_token:
                rows, of_input = self._tokens(rows, ids, lengths, pooler, params, input_type)
            counts = () if of_input is None else tuple(np.split(of_input, ends))
            sizes = tuple(int(one.sum()) for one in counts) or tuple(len(parts[index]) for index in members)
            on_device = self._forward.to_device(rows)
            asks.append(Ask(task, params, tuple(members), on_device, by_token, sizes, counts, pooled))
        return asks

    def _tokens(
        self,
        inputs: NDArray[np.int64],
        ids: NDArray[np.int32],
        lengths: NDArray[np.int32],
        pooler: ResolvedPooler,
        params: PoolingParams,
        input_type: str | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The rows of a token task's inputs, and how many of them each input has."""
        rows, counts = _tokens_of(inputs, lengths), lengths[inputs]
        mask = kept(ids[rows], counts, pooler, params, side_of(self.card, input_type))
        if mask is None:
            return rows, counts
        of_input = np.repeat(np.arange(len(inputs)), counts)
        return rows[mask], np.bincount(of_input[mask], minlength=len(inputs)).astype(np.int32)

    def _answer(self, hidden: Tensor, lengths: Tensor, ask: Ask) -> Tensor:
        pooler: ResolvedPooler = self.card.poolers[ask.task]
        if self._splade is not None:
            rows = self._splade(hidden, lengths, self._heads["masked_lm"])[ask.rows]
        else:
            rows = self._pooled(hidden, lengths, ask, pooler)
        columns = pooler.returned_token_ids if ask.params.returned_token_ids is None else ask.params.returned_token_ids
        if columns is not None:
            rows = rows[:, list(columns)]
        rows = _calibrated(rows, pooler)
        rows = cut(rows, ask.params.dimensions or pooler.dimensions)
        activate = pooler.activate if ask.params.use_activation is None else ask.params.use_activation
        return self._activations[pooler.activation](rows) if activate else rows

    def _pooled(self, hidden: Tensor, lengths: Tensor, ask: Ask, pooler: ResolvedPooler) -> Tensor:
        """The rows of an ask, pooled and read by the task's head."""
        head = self._heads[pooler.head] if pooler.head is not None else None
        if head is not None and pooler.head_first:
            hidden, head = head(hidden.float()), None
        if ask.pooled is not None:
            hidden, lengths = hidden[ask.pooled.tokens], ask.pooled.lengths
        whole = ask.by_token or pooler.pooling_type == "MODEL"  # which has made a row of each input itself
        source = hidden if whole else POOLERS[pooler.pooling_type](hidden, lengths)
        rows = source[ask.rows].float()
        return rows if head is None else head(rows)


class LocalPending:
    """A step on this process's device; its answers are on the way to host memory.

    confirm: raises if they are none, which is known only once the device is done: NCCL's
    kernels end without a sum when a rank is gone.
    """

    def __init__(
        self,
        prepared: Prepared,
        answers: list[Tensor],
        device: torch.device,
        confirm: Callable[[], None] | None = None,
    ) -> None:
        self._prepared, self._answers, self._confirm = prepared, answers, confirm
        self._event: Any = None
        if device.type == "cuda":
            self._event = torch.cuda.current_stream().record_event()

    def done(self) -> bool:
        return self._event is None or bool(self._event.query())

    def wait(self) -> list[PooledOutput]:
        if self._event is not None:
            self._event.synchronize()
        if self._confirm is not None:
            self._confirm()
        outputs: list[dict[str, PooledOutput]] = [{} for _ in self._prepared.tasks]
        for ask, answer in zip(self._prepared.asks, self._answers, strict=True):
            pieces = np.split(answer.numpy(), np.cumsum(ask.sizes)[:-1])
            for index, (part, rows) in enumerate(zip(ask.parts, pieces, strict=True)):
                outputs[part][ask.task] = PooledOutput(rows, ask.counts[index] if ask.counts else None)
        return [
            output[tasks[0]] if len(tasks) == 1 else PooledOutput.together([output[task] for task in tasks])
            for output, tasks in zip(outputs, self._prepared.tasks, strict=True)
        ]


def _tokens_of(inputs: NDArray[np.int64], lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    """Where the tokens of the named inputs lie, input after input: lengths [inputs] are of all, in row order."""
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    chosen = lengths[inputs].astype(np.int64)
    ends = np.cumsum(chosen)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts[inputs] - (ends - chosen), chosen) + np.arange(total)


def _segments_of(
    inputs: NDArray[np.int64], lengths: NDArray[np.int32], segments: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Where the tokens of the named inputs lie that count, how many of them each segment has, and how many segments
    each input has; segments are those of the named inputs' tokens, input after input."""
    pooled = segments >= 0
    owners = np.repeat(np.arange(len(inputs)), lengths[inputs])[pooled]
    begins = (np.diff(owners, prepend=-1) != 0) | (np.diff(segments[pooled], prepend=-1) != 0)
    places = np.flatnonzero(begins)
    of_input = np.bincount(owners[places], minlength=len(inputs)).astype(np.int32)
    return _tokens_of(inputs, lengths)[pooled], np.diff(places, append=len(owners)), of_input


def _last_kept(
    inputs: NDArray[np.int64], ids: NDArray[np.int32], lengths: NDArray[np.int32], skipped: int
) -> NDArray[np.int64]:
    """Where the last token of each named input lies that is not `skipped`; its first where all are."""
    starts = (np.cumsum(lengths, dtype=np.int64) - lengths)[inputs]
    place = np.arange(len(ids))
    before = np.maximum.accumulate(np.where(ids != skipped, place, -1))
    last: NDArray[np.int64] = np.maximum(before[starts + lengths[inputs] - 1], starts)
    return last


def _calibrated(rows: Tensor, pooler: ResolvedPooler) -> Tensor:
    if pooler.logit_mean is not None:
        rows = rows - pooler.logit_mean
    return rows / pooler.logit_sigma if pooler.logit_sigma is not None else rows


def _to_host(rows: Tensor) -> Tensor:
    if not rows.is_cuda:
        return rows
    host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    return host.copy_(rows, non_blocking=True)
