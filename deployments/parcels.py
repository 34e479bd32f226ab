"""Parcels: small requests that wait at the same moment travel to an engine in one call."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from functools import partial
from typing import Protocol

from pooling.errors import EngineDead
from pooling.request import PackedBatch, PooledOutput

# A call of Ray Serve costs router and replica 1.5 ms of processor time together (docs/benchmarks.md); to compute a
# larger request takes many times as long, and would hold up the others of its call.
SMALL_TOKENS = 256
# A parcel is answered when the last of its requests is: it should fit into a step.
_MOST_TOKENS = 1_024
MOST_REQUESTS = 32
# A request that waits for others is sent after so long, whatever the calls under way do.
_HOLD_S = 0.005

Answers = Sequence[PooledOutput | Exception]


class ManyAnswers(Awaitable[Answers], Protocol):
    """A call that is under way, with an answer or an error for each of its requests."""

    def cancel(self) -> object: ...


class Parcels:
    """Sends requests at once while few calls are under way; else together with others, when one has returned.

    So a request alone waits for nobody, and the more there are, the fewer calls
    each of them costs. One that fails does not touch the others of its call; a
    call that fails, fails all of them. For one event loop.
    """

    def __init__(self, send: Callable[[list[PackedBatch]], ManyAnswers], calls: int) -> None:
        """calls: how many may be under way before requests wait for one to return."""
        self._send, self._calls = send, calls
        self._waiting: deque[tuple[PackedBatch, asyncio.Future[PooledOutput]]] = deque()
        self._under_way: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, batch: PackedBatch) -> asyncio.Future[PooledOutput]:
        """The answer to come. Cancelling it cancels the call, if all others of it are cancelled or answered too."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[PooledOutput] = loop.create_future()
        self._waiting.append((batch, future))
        if len(self._under_way) < self._calls:
            self._start()
        elif self._timer is None:
            self._timer = loop.call_later(_HOLD_S, self._start)
        return future

    def _start(self) -> None:
        """Sends what waits, as far as it fits into a parcel."""
        batches: list[PackedBatch] = []
        futures: list[asyncio.Future[PooledOutput]] = []
        tokens = 0
        while self._waiting and len(batches) < MOST_REQUESTS:
            batch, future = self._waiting[0]
            if not future.done():  # else its caller has left
                if batches and tokens + batch.tokens > _MOST_TOKENS:
                    break
                batches.append(batch)
                futures.append(future)
                tokens += batch.tokens
            self._waiting.popleft()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(_HOLD_S, self._start)
        if batches:
            # In a context of its own: Serve cancels the calls that were made in a request's when its client leaves.
            task = asyncio.get_running_loop().create_task(self._deliver(batches, futures), context=Context())
            self._under_way.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if self._waiting and len(self._under_way) < self._calls:
            self._start()

    async def _deliver(self, batches: list[PackedBatch], futures: list[asyncio.Future[PooledOutput]]) -> None:
        if all(future.done() for future in futures):
            return
        try:
            call = self._send(batches)
            for future in futures:
                future.add_done_callback(partial(_leave, call, futures))
            answers = await call
        except asyncio.CancelledError:  # by the replica, which stops: of those who are left nobody asked for that
            answers = [EngineDead("the call was cancelled")] * len(batches)
        except Exception as error:
            answers = [error] * len(batches)
        for future, answer in zip(futures, answers, strict=True):
            if future.done():  # its caller has left
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


def _leave(
    call: ManyAnswers, futures: list[asyncio.Future[PooledOutput]], future: asyncio.Future[PooledOutput]
) -> None:
    if future.cancelled() and all(other.done() for other in futures):
        call.cancel()
