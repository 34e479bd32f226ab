"""Graphs: steps on a GPU, recorded once and replayed, so that a host slower than a small step does not hold it up."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from pooling.attention import Packing

# Tokens of a recorded step; one that has fewer is computed as if it had so many: half more at most, above 64.
_TOKENS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1_024, 1_536, 2_048, 3_072, 4_096, 6_144, 8_192, 12_288, 16_384)
# The attention kernel starts work for every input of a recorded step and every stretch of its longest, there or not;
# so there is room for inputs of 8 tokens on average, 32 in the largest.
_LONGEST = 512
_LEAST_INPUTS, _MOST_INPUTS, _TOKENS_PER_INPUT = 64, 512, 8


class Run(Protocol):
    """The forward pass: ids, positions and types [1, tokens] -> hidden [tokens, dim].

    What follows the last of packing's inputs is computed and means nothing.
    """

    def __call__(self, ids: Tensor, positions: Tensor, types: Tensor | None, packing: Packing) -> Tensor: ...


# Records what a function does and returns what does it again, with the tensor that will then hold its answer.
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]


@dataclass(frozen=True, slots=True)
class _Graph:
    """A recorded step: where its input lies on the device, what runs it, and where its answer then lies.

    cu_seqlens [inputs + 1] int32.
    """

    ids: Tensor
    positions: Tensor
    types: Tensor | None
    cu_seqlens: Tensor
    longest: int
    replay: Callable[[], object]
    hidden: Tensor

    @property
    def tokens(self) -> int:
        return self.ids.shape[1]

    @property
    def inputs(self) -> int:
        return len(self.cu_seqlens) - 1


class Graphs:
    """Recorded steps of one model, for one thread. replayed: how many steps ran so."""

    def __init__(self, graphs: Sequence[_Graph]) -> None:
        """graphs: those of fewer tokens first."""
        self._graphs = graphs
        self.replayed = 0

    @classmethod
    def record(
        cls, run: Run, record: Record, device: torch.device, max_tokens: int, max_length: int, types: bool
    ) -> Self:
        """For steps of up to max_tokens. types: whether the model is given types. Raises what recording raises."""
        largest = min(max_tokens, _TOKENS[-1])
        sizes = [*(size for size in _TOKENS if size < largest), largest]
        with torch.inference_mode():
            # The largest first: the others find room in what it leaves.
            graphs = [_recorded(run, record, device, size, max_length, types) for size in reversed(sizes)]
        return cls(graphs[::-1])

    @property
    def max_tokens(self) -> int:
        return self._graphs[-1].tokens

    def run(self, ids: Tensor, positions: Tensor, types: Tensor | None, packing: Packing, inputs: int) -> Tensor | None:
        """-> hidden [tokens, dim], which the next step overwrites; None for a step that none has room for."""
        tokens = ids.shape[1]
        # A larger one than need be would cost more than it saves.
        graph = next((one for one in self._graphs if one.tokens >= tokens), None)
        if graph is None or inputs > graph.inputs or packing.max_length > graph.longest or packing.cu_seqlens is None:
            return None
        if any(group.keys != group.length for group in packing.groups):
            return None  # such inputs are computed again one group at a time
        graph.ids[:, :tokens].copy_(ids)
        graph.positions[:, :tokens].copy_(positions)
        if graph.types is not None:
            graph.types.zero_() if types is None else graph.types[:, :tokens].copy_(types)
        graph.cu_seqlens[: inputs + 1].copy_(packing.cu_seqlens)
        graph.cu_seqlens[inputs + 1 :].fill_(tokens)  # inputs without a token
        graph.replay()
        self.replayed += 1
        return graph.hidden[:tokens]


def _recorded(run: Run, record: Record, device: torch.device, tokens: int, max_length: int, types: bool) -> _Graph:
    longest = min(tokens, max_length, _LONGEST)
    inputs = min(tokens, max(_LEAST_INPUTS, min(_MOST_INPUTS, tokens // _TOKENS_PER_INPUT)))
    ids, positions = (torch.zeros(1, tokens, dtype=torch.int64, device=device) for _ in range(2))
    given = torch.zeros_like(ids) if types else None
    cu_seqlens = torch.arange(inputs + 1, dtype=torch.int32, device=device).clamp_(max=tokens)
    packing = Packing((), longest, cu_seqlens)
    replay, hidden = record(lambda: run(ids, positions, given, packing))
    return _Graph(ids, positions, given, cu_seqlens, longest, replay, hidden)


class CudaRecorder:
    """Records with CUDA graphs, which share their memory: one runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """Raises RuntimeError if the function waits for the device, before anything of it is recorded."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            function()  # what libraries allocate or choose on first use must not be recorded
            with _no_waiting():  # found while recording, it would leave the allocator in the middle of that
                function()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                hidden = function()
        finally:
            torch.cuda.set_stream(current)  # which torch leaves out where recording fails
        current.wait_stream(self._stream)
        return graph.replay, hidden


@contextmanager
def _no_waiting() -> Iterator[None]:
    """What makes the host wait for the device raises RuntimeError, in all of this process."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
