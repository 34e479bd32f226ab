"""EngineReplica: one Engine in a Serve replica; health, and an end at once when the engine has failed."""

import asyncio
import logging
import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ray import serve

from deployments.dispatch import Vitals
from deployments.logs import show_log
from deployments.scaling import QUEUED_TOKENS
from pooling.config import ModelSpec
from pooling.errors import EngineDead, EngineFailure, PoolingError
from pooling.request import PackedBatch, PooledOutput

if TYPE_CHECKING:
    from pooling.engine import Engine

log = logging.getLogger("raypool")

# Long enough for the errors of the callers that waited to reach them.
_LAST_WORDS_S = 0.1


class EngineReplica:
    """Answers batches of one model on the device that Ray gave this process; of a split model as its rank 0."""

    async def __init__(self, spec: ModelSpec, threads: int) -> None:  # type: ignore[misc]  # Serve awaits it
        show_log()
        # In a thread, so that the replica answers Serve while the weights are read.
        self._engine = await asyncio.to_thread(_load, spec, threads)
        self._ending = False
        # At once, and while nobody asks: a rank that is gone does not come back.
        end_soon = partial(asyncio.get_running_loop().call_soon_threadsafe, self._end)
        self._engine.on_failure = end_soon
        if not self._engine.healthy:
            end_soon()

    async def pool(self, batch: PackedBatch) -> PooledOutput:
        """The answers to a batch. Raises what Engine.pool raises."""
        try:
            return await self._engine.pool(batch)
        except EngineDead:
            self._end()
            raise

    async def pool_all(self, batches: Sequence[PackedBatch]) -> list[PooledOutput | PoolingError]:
        """The answer to each batch, or the error that it alone has."""
        return await asyncio.gather(*map(self._answer, batches))

    async def _answer(self, batch: PackedBatch) -> PooledOutput | PoolingError:
        try:
            return await self.pool(batch)
        except PoolingError as error:
            return error
        except Exception as error:
            log.error("a request failed in a way that is not known", exc_info=error)
            return EngineFailure("the engine failed")

    async def check_health(self) -> None:
        """Called by Serve every two seconds. Raises EngineDead when the engine has failed, e.g. while idle."""
        if not self._engine.healthy:
            self._end()
            raise EngineDead("the engine has failed")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve for its autoscaler, see deployments/scaling.py."""
        return {QUEUED_TOKENS: self._engine.queued_tokens}

    async def vitals(self) -> Vitals:
        engine = self._engine
        replica = serve.get_replica_context().replica_id.unique_id
        steps = {"inputs": engine.step_inputs, "tokens": engine.step_tokens}
        return Vitals(replica, engine.healthy, engine.max_batch_tokens, dict(engine.stats()), steps, engine.places)

    def _end(self) -> None:
        """Ends this process: a replica that fails fast looks idle, so it would attract the traffic of the others.

        Serve sees the actor die and starts another at once, long before three
        health checks in a row have failed.
        """
        if not self._ending:
            self._ending = True
            log.error("%s; this replica ends so that another takes its place", self._engine.failure)
            asyncio.get_running_loop().call_later(_LAST_WORDS_S, os._exit, 1)

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()


def _load(spec: ModelSpec, threads: int) -> "Engine":
    # Read when torch is loaded. At the end of each operation a thread waits for the others, by default
    # spinning for a millisecond; where router and proxy want the same cores, those hold up the very thread
    # it waits for. Seen on two such cores: a text of 4 tokens took 64 ms instead of 6. So many rounds of
    # spinning, some 30 us, bridge the gap between two operations and no more.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    import torch  # not above: whoever builds the application imports this file, and needs no torch

    from pooling.engine import Engine

    # Ray sets OMP_NUM_THREADS to what the actor reserves, and to 1 for a fraction.
    torch.set_num_threads(threads)
    log.info(
        "%s: %d CPU threads%s", spec.served_name, threads, " over all ranks" if spec.tensor_parallel_size > 1 else ""
    )
    if spec.tensor_parallel_size == 1:
        return Engine.load(spec, yields=True)
    from cluster.shard_group import start_in_placement_group

    return Engine.load(spec, start_in_placement_group(), yields=True)
