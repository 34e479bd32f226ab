"""RowEngine: an engine for callers with rows, of which a bad one costs no other its answer."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cluster.actor_process import end_actor_process, settle_actor_process
from cluster.shard_group import start_ranks
from pooling.config import ModelSpec
from pooling.engine import Engine
from pooling.errors import EngineDead, InvalidRequest, NonFiniteResult
from pooling.intake import Intake
from pooling.request import PackedBatch, PooledOutput, PoolingRequest, Prompt

Result = TypeVar("Result")
Places = NDArray[np.int64]
Reasons = dict[int, str]
# A sum over the ranks fails a moment before the end of a rank's process is heard of.
_LOST_S = 5.0


class RowEngine:
    """Tokenises on the caller's thread, pools on one of its own; safe to call from several threads.

    threads: of an engine on CPUs; None: as many as its actor has CPUs. When the
    process of another rank has ended, the actor ends too, as it does when rank 0 is
    killed, which it is itself: whoever runs it starts another, and asks again.
    Raises StartupError of the fitting kind.
    """

    def __init__(self, intake: Intake, spec: ModelSpec, threads: int | None = None) -> None:
        settle_actor_process(threads)
        self._intake = intake
        self._engine, self._ranks = Engine.load(spec, start_ranks()), spec.tensor_parallel_size
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="raypool-rows", daemon=True)
        self._thread.start()

    def answer(
        self, request: PoolingRequest, inputs: Sequence[Prompt | None], reasons: Reasons
    ) -> tuple[Places, PooledOutput | None]:
        """The rows that have an answer, in order, and the answers to them; None where no row has one.

        request: what is asked of each input. reasons: rows in it are passed over,
        and rows that turn out bad are added.
        """
        rows = np.array([row for row in range(len(inputs)) if row not in reasons], np.int64)
        batches = _divide(
            lambda start, stop: self._tokenize(request, [inputs[row] for row in rows[start:stop]]), rows, reasons
        )
        if not batches:
            return rows[:0], None
        whole = PackedBatch.join([batch for _, batch in batches])
        left = np.concatenate([part for part, _ in batches])
        outputs = _divide(lambda start, stop: self._pool(whole.slice(start, stop)), left, reasons)
        if not outputs:
            return rows[:0], None
        return np.concatenate([part for part, _ in outputs]), PooledOutput.merge([output for _, output in outputs])

    def close(self) -> None:
        """Ends the engine and its threads, for a caller that is no actor: those end with their process."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._engine.close)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _tokenize(self, request: PoolingRequest, inputs: Sequence[Any]) -> PackedBatch:
        return self._intake.tokenize(replace(request, inputs=inputs))

    def _pool(self, batch: PackedBatch) -> PooledOutput:
        try:
            return asyncio.run_coroutine_threadsafe(self._engine.pool(batch), self._loop).result()
        except EngineDead as error:
            if self._ranks > 1 and self._engine.lost.wait(_LOST_S):
                end_actor_process(error.detail)
            raise


def _divide(
    work: Callable[[int, int], Result], rows: Places, reasons: Reasons, start: int = 0, stop: int | None = None
) -> list[tuple[Places, Result]]:
    """Does the work on all rows at once; where one spoils it, on each half, down to the rows at fault.

    Returns the results with the rows each is for, in order. A few bad rows among
    thousands cost a few more calls; no row costs another one its answer.
    """
    stop = len(rows) if stop is None else stop
    if start == stop:
        return []
    try:
        return [(rows[start:stop], work(start, stop))]
    except (InvalidRequest, NonFiniteResult) as error:
        if stop - start == 1:
            reasons[int(rows[start])] = error.detail
            return []
    middle = (start + stop) // 2
    return _divide(work, rows, reasons, start, middle) + _divide(work, rows, reasons, middle, stop)
