"""Job: a caller's batch while the engine has it, and its answers as they come."""

import asyncio
import math
from dataclasses import dataclass, field

import numpy as np

from pooling.errors import NonFiniteResult
from pooling.request import PackedBatch, PooledOutput, Rows, Timing


@dataclass(slots=True)
class Job:
    """A request under way. `left` counts the inputs without an answer yet.

    owners: where inputs are chunks or repeats are left out, which input of the caller's each is (part of).
    computed: from when to when steps had inputs of it.
    """

    batch: PackedBatch
    future: asyncio.Future[PooledOutput]
    arrived: float
    left: int
    bounds: np.ndarray
    owners: np.ndarray | None = None
    started: float | None = None
    forward_s: float = 0.0
    computed: tuple[float, float] = (math.inf, -math.inf)
    answer: Rows | None = None
    pieces: list[Rows] = field(default_factory=list)

    def take(self, inputs: np.ndarray) -> PackedBatch:
        return self.batch.take(inputs, self.bounds)

    def count(self, start: float, end: float) -> None:
        """A step had inputs of it; what runs at the same time counts once."""
        first, last = self.computed
        if first > last:
            self.forward_s, self.computed = end - start, (start, end)
            return
        self.forward_s += max(0.0, min(end, first) - start) + max(0.0, end - max(start, last))
        self.computed = min(start, first), max(end, last)

    def deliver(self, inputs: np.ndarray, output: PooledOutput) -> None:
        """Puts the answers of some inputs in their places; the last one resolves the caller's future."""
        if self.future.done():
            return
        if not np.isfinite(output.data).all():
            self.future.set_exception(NonFiniteResult(self._name_non_finite(inputs, output)))
            return
        if output.lengths is None:
            if self.answer is None:
                self.answer = np.empty((len(self.batch), output.data.shape[1]), np.float32)
            self.answer[inputs] = output.data
        else:
            self.pieces = self.pieces or [np.empty(0, np.float32)] * len(self.batch)
            for index, rows in zip(inputs, output.rows(), strict=True):
                self.pieces[index] = rows
        self.left -= len(inputs)
        if self.left == 0:
            data = self.answer if self.answer is not None else np.concatenate(self.pieces)
            lengths = None if output.lengths is None else np.array([len(rows) for rows in self.pieces], np.int32)
            waited = (self.started or self.arrived) - self.arrived
            self.future.set_result(PooledOutput(data, lengths, Timing(waited, self.forward_s)))

    def _name_non_finite(self, inputs: np.ndarray, output: PooledOutput) -> str:
        """The first of them, as the caller counts."""
        own = (inputs if self.owners is None else self.owners[inputs]) + self.batch.first
        bad = [int(i) for i, rows in zip(own, output.rows(), strict=True) if not np.isfinite(rows).all()]
        return f"the model answered NaN or infinity for input {min(bad)}"
