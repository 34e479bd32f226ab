"""EngineClient: one model's engine replicas as a router sees them; split, send, retry, merge."""

import asyncio
import logging
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Protocol

import grpc
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deployments.slicing import cut
from pooling.errors import EngineDead, EngineFailure, PoolingError, Unavailable
from pooling.request import PackedBatch, PooledOutput
from pooling.step_sizes import StepSizes

log = logging.getLogger("raypool")

# A lost slice goes out again after so long: at once nearly, then when a failed replica is surely gone.
_PAUSES_S = (0.2, 1.0)
# Two slices under way for each replica: one computes while the other travels.
_SLICES_PER_REPLICA = 2
# The smallest step an engine chooses by itself, on a CPU: no request under it is worth splitting.
_SMALLEST_STEP = 1_024
_PROBE_S = 2.0
_PROBE_LASTS_S = 1.0


@dataclass(frozen=True, slots=True)
class Vitals:
    """What one engine replica says of itself.

    steps: how large its steps were, in `inputs` and in `tokens`. places: how many
    steps it computes at the same time.
    """

    replica: str
    healthy: bool
    max_batch_tokens: int
    stats: dict[str, float]
    steps: dict[str, StepSizes] = field(default_factory=dict)
    places: int = 1


class Answer(Awaitable[PooledOutput], Protocol):
    """A call that is under way at an engine replica."""

    def cancel(self) -> object: ...


class Engines(Protocol):
    """The engine replicas of one model, wherever they run; deployments/engines.py has those in Serve."""

    def send(self, batch: PackedBatch, alone: bool = False) -> Answer:
        """Starts the call at one replica; waits for one to start if there is none.

        alone: it shares its call with no other batch.
        """
        ...

    async def vitals(self, timeout_s: float) -> list[Vitals]:
        """What the running replicas say; those that do not answer in time are left out."""
        ...


class EngineClient:
    """Sends batches to one model's engines and hides that there are several, and that they may die.

    Not thread-safe: for one event loop. `lost_slices` counts those that a
    replica died under.
    """

    def __init__(self, engines: Engines, replicas: int, step_tokens: int | None = None) -> None:
        self._engines = engines
        self._most_slices = replicas * _SLICES_PER_REPLICA
        self._step_tokens = step_tokens
        self.lost_slices = 0
        self._probe: asyncio.Future[list[Vitals]] | None = None
        self._probed = 0.0

    async def pool(self, batch: PackedBatch) -> PooledOutput:
        """The answers to a batch, in its order, from as many replicas as its size is worth.

        Raises what the engine raised, or Unavailable if replicas died under it
        three times. Cancelling it, or one failed slice, cancels all slices.
        """
        bounds = cut(batch.lengths, await self._step(batch.tokens), self._most_slices)
        if len(bounds) == 1:
            return await self._slice(batch)
        tasks = [asyncio.ensure_future(self._slice(batch.slice(*bound))) for bound in bounds]
        try:
            return PooledOutput.merge(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def alive(self) -> bool:
        """Whether at least one replica can serve; never takes longer than two seconds."""
        return any(vitals.healthy for vitals in await self.vitals())

    async def vitals(self) -> list[Vitals]:
        """What the replicas say of themselves, at most a second old. All who ask meanwhile share one probe."""
        old = self._probe is not None and self._probe.done() and time.monotonic() - self._probed > _PROBE_LASTS_S
        if self._probe is None or old:
            self._probed = time.monotonic()
            self._probe = asyncio.ensure_future(self._engines.vitals(_PROBE_S))
        return await asyncio.shield(self._probe)

    async def _step(self, tokens: int) -> int:
        """Tokens of one engine step. Asked of a replica once, and only when a request is large enough to matter."""
        if self._step_tokens is None:
            if tokens < _SMALLEST_STEP:
                return _SMALLEST_STEP
            vitals = await self.vitals()
            if not vitals:
                return tokens  # none runs yet: whole, and asked again next time
            self._step_tokens = max(1, *(one.max_batch_tokens for one in vitals))
        return self._step_tokens

    async def _slice(self, batch: PackedBatch) -> PooledOutput:
        for attempt, pause_s in enumerate(_PAUSES_S):
            try:
                # Again alone: if another batch of its call brought the replica down, that must not happen to it twice.
                return await self._once(batch, alone=attempt > 0)
            except EngineDead as lost:
                self.lost_slices += 1
                log.warning("a replica was lost with %d inputs, sending them again: %s", len(batch), lost)
            await asyncio.sleep(pause_s)
        try:
            return await self._once(batch, alone=True)
        except EngineDead as lost:
            self.lost_slices += 1
            raise Unavailable(
                f"the engine failed {len(_PAUSES_S) + 1} times under this request, the last time because: {lost.detail}"
            ) from lost

    async def _once(self, batch: PackedBatch, alone: bool) -> PooledOutput:
        try:
            answer = self._engines.send(batch, alone)
            try:
                return await answer
            except asyncio.CancelledError:
                answer.cancel()
                raise
        except Exception as error:
            raise translate(error) from None


def translate(error: BaseException) -> PoolingError:
    """What Ray or Serve raised, as an error of ours.

    EngineDead means that the replica is lost and another may do the same work.
    """
    while isinstance(error, RayTaskError):
        error = error.cause
    if isinstance(error, PoolingError):
        return error
    if _is_lost(error):
        return EngineDead("the replica that had the request is gone")
    if isinstance(error, DeploymentUnavailableError | BackPressureError):
        return Unavailable("no engine of this model can take a request now")
    log.error("an engine replica failed in a way that is not known", exc_info=error)
    return EngineFailure("the engine failed")


# A call that a replica gave up because it was being stopped counts as lost too: nobody here cancelled it.
_LOST = (RayActorError, ObjectLostError, WorkerCrashedError, NodeDiedError, TaskCancelledError)


def _is_lost(error: BaseException) -> bool:
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    return isinstance(error, _LOST)
