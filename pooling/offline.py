"""OfflineEngine: an engine with an event loop of its own, for callers that have none and a list of prompts."""

import asyncio
import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from pooling.asked import Asked, Prompts, as_list, unwrap
from pooling.config import ModelSpec
from pooling.engine import Engine
from pooling.errors import EngineDead
from pooling.intake import Intake
from pooling.request import Ids, PackedBatch, PooledOutput, Prompt, Rows

# Inputs tokenised at once: enough for long runs of equal length, which the CPU kernel likes,
# while the next ones are tokenised during the forward pass of these.
_CHUNK = 2_048
# Where inputs may have images, which take up to some 20 MiB each when they are processed.
_CHUNK_OF_IMAGES = 64
_CHUNKS_AHEAD = 2
# Of answers as wide as a vocabulary, which are held until they are read.
_CHUNK_BYTES = 64 * 2**20
_END_S = 5.0


class OfflineEngine:
    """Tokenises on the caller's thread, pools on a loop's. Raises StartupError of the fitting kind."""

    def __init__(self, spec: ModelSpec) -> None:
        self.intake = Intake.load(spec)
        self._engine = Engine.load(spec)
        self.card = self._engine.card
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run, args=(self._loop,), name="raypool-llm", daemon=True)
        self._thread.start()
        # For those who never close: the thread knows the loop alone, not this object.
        weakref.finalize(self, _stop, self._loop, self._thread)

    def stream(self, prompts: Prompts | Sequence[Prompt], asked: Asked, use_tqdm: bool) -> Iterator[tuple[Rows, Ids]]:
        """Tokenises chunk after chunk, a few ahead of the engine; (rows, ids) of each prompt in order."""
        if not self._thread.is_alive():
            raise EngineDead("this LLM was closed")
        inputs = as_list(prompts)
        under_way: deque[tuple[PackedBatch, Future[PooledOutput]]] = deque()
        with tqdm(total=len(inputs), desc="Processed prompts", disable=not use_tqdm, dynamic_ncols=True) as bar:
            try:
                for batch in self._batches(inputs, asked):
                    under_way.append((batch, asyncio.run_coroutine_threadsafe(self._engine.pool(batch), self._loop)))
                    if len(under_way) > _CHUNKS_AHEAD:
                        yield from _collect(under_way, bar)
                while under_way:
                    yield from _collect(under_way, bar)
            finally:
                for _, future in under_way:
                    future.cancel()

    def _batches(self, inputs: list[Any], asked: Asked) -> Iterator[PackedBatch]:
        wide = asked.task is not None and asked.task == self.card.sparse_task == "embed"
        chunk = max(1, min(_CHUNK, _CHUNK_BYTES // (4 * self.card.dim))) if wide else _CHUNK
        chunk = chunk if self.card.vision is None else _CHUNK_OF_IMAGES
        for start in range(0, max(len(inputs), 1), chunk):
            request = asked.request([unwrap(item) for item in inputs[start : start + chunk]])
            yield self.intake.tokenize(replace(request, first=start, of=len(inputs)))

    def close(self) -> None:
        """Ends the engine and its threads; using it afterwards raises EngineDead."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._engine.close)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Whoever drops a model wants its memory for the next, so the end is waited for, as long as it should take."""
    with contextlib.suppress(RuntimeError):  # closed already
        loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():
        thread.join(_END_S)


def _collect(under_way: deque[tuple[PackedBatch, Future[PooledOutput]]], bar: Any) -> list[tuple[Rows, Ids]]:
    """Waits for the oldest chunk."""
    batch, future = under_way.popleft()
    rows = future.result().rows()
    bar.update(len(rows))
    return list(zip(rows, np.split(batch.ids, batch.offsets()[1:-1]), strict=True))
