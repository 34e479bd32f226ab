"""Parcels: small requests that wait at the same moment travel to an engine in one call."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol

from pooling.errors import EngineDead, EngineFailure
from pooling.request import PackedBatch, PooledOutput

# What a call of Ray Serve costs router and replica, 1.3 ms of processor time together (docs/benchmarks.md), is little
# beside computing a larger request, which would hold up the others of its call.
SMALL_TOKENS = 256
MOST_REQUESTS = 32
# A request that waits for others is sent after so long, whatever the calls under way do.
_HOLD_S = 0.005

Answers = Sequence[PooledOutput | Exception]


class ManyAnswers(Awaitable[Answers], Protocol):
    """A call that is under way, with an answer or an error for each of its requests."""

    def cancel(self) -> object: ...


class _Waiting(NamedTuple):
    batch: PackedBatch
    future: asyncio.Future[PooledOutput]
    since: float


class Parcels:
    """Sends requests at once while few calls are under way; else together with others, when one has returned.

    So a request alone waits for nobody, and the more there are, the fewer calls
    each of them costs. A parcel is answered when the last of its requests is: so
    it holds such as take about as long, in all no more than are computed at once.
    One that fails does not touch the others; a call that fails, fails all of
    them. For one event loop.
    """

    def __init__(self, send: Callable[[list[PackedBatch]], ManyAnswers]) -> None:
        self._send = send
        self.fit(calls=4, tokens=512)
        self._queues: defaultdict[int, deque[_Waiting]] = defaultdict(deque)
        self._under_way: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def fit(self, calls: int, tokens: int) -> None:
        """calls: so many may be under way before requests wait for one to return. tokens: of a parcel, at most."""
        self._calls, self._tokens = calls, tokens

    def add(self, batch: PackedBatch) -> asyncio.Future[PooledOutput]:
        """The answer to come. Cancelling it cancels the call, if all others of it are cancelled or answered too."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[PooledOutput] = loop.create_future()
        self._queues[_class_of(batch.tokens)].append(_Waiting(batch, future, loop.time()))
        self._go()
        return future

    def _go(self) -> None:
        """Sends what may be sent, and looks again when the oldest of the rest has waited long enough."""
        loop = asyncio.get_running_loop()
        while (queue := self._oldest()) is not None:
            due = queue[0].since + _HOLD_S
            if len(self._under_way) >= self._calls and loop.time() < due:
                if self._timer is None:
                    self._timer = loop.call_at(due, self._look_again)
                return
            # In a context of its own: Serve cancels the calls that were made in a request's when its client leaves.
            task = loop.create_task(self._deliver(self._take(queue)), context=Context())
            self._under_way.add(task)
            task.add_done_callback(self._ended)

    def _look_again(self) -> None:
        self._timer = None
        self._go()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():  # else the loop ends
            self._go()

    def _oldest(self) -> deque[_Waiting] | None:
        """The queue whose first request has waited longest; callers that have left are forgotten."""
        for kind, queue in list(self._queues.items()):
            while queue and queue[0].future.done():
                queue.popleft()
            if not queue:
                del self._queues[kind]
        return min(self._queues.values(), key=lambda queue: queue[0].since, default=None)

    def _take(self, queue: deque[_Waiting]) -> list[_Waiting]:
        parcel = [queue.popleft()]
        tokens = parcel[0].batch.tokens
        while queue and len(parcel) < MOST_REQUESTS:
            if not queue[0].future.done():
                tokens += queue[0].batch.tokens
                if tokens > self._tokens:
                    break
                parcel.append(queue[0])
            queue.popleft()
        return parcel

    async def _deliver(self, parcel: list[_Waiting]) -> None:
        futures = [each.future for each in parcel]
        sent = asyncio.get_running_loop().time()
        answers: Answers
        if all(future.done() for future in futures):
            return
        try:
            call = self._send([each.batch for each in parcel])
            for future in futures:
                future.add_done_callback(partial(_leave, call, futures))
            answers = await call
            if len(answers) != len(parcel):
                raise EngineFailure(f"{len(answers)} answers came for {len(parcel)} requests")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # By the replica, which stops: of those who are left nobody asked for that.
            answers = [EngineDead("the call was cancelled")] * len(parcel)
        except Exception as error:
            answers = [error] * len(parcel)
        for each, answer in zip(parcel, answers, strict=True):
            if each.future.done():  # its caller has left
                continue
            if isinstance(answer, PooledOutput):
                waited = replace(answer.timing, queue_s=answer.timing.queue_s + sent - each.since)
                each.future.set_result(replace(answer, timing=waited))
            else:
                unknown = EngineFailure(f"a {type(answer).__name__} came for an answer")
                each.future.set_exception(answer if isinstance(answer, Exception) else unknown)


def _class_of(tokens: int) -> int:
    """The same for requests of which none has four times as many tokens as another."""
    return (tokens.bit_length() + 1) // 2


def _leave(
    call: ManyAnswers, futures: list[asyncio.Future[PooledOutput]], future: asyncio.Future[PooledOutput]
) -> None:
    if future.cancelled() and all(other.done() for other in futures):
        with suppress(Exception):  # it has failed already
            call.cancel()
