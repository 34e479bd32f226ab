"""ServeEngines: a model's engine replicas behind a Serve handle."""

import asyncio
from typing import Any, cast

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.broadcast import ask_all
from deployments.dispatch import Answer, Vitals
from deployments.parcels import MOST_REQUESTS, SMALL_TOKENS, ManyAnswers, Parcels
from pooling.loading.card import ModelCard
from pooling.request import PackedBatch
from pooling.tasks import TASKS, parts_of

# Serve's gRPC path refuses messages over 4 MiB, unless told otherwise on every node; larger ones
# go through Ray's object store, which takes any size and is as fast for them.
_LARGE_BYTES = 2 * 2**20
# As many of these as a parcel takes stay below that.
_SMALL_BYTES = _LARGE_BYTES // MOST_REQUESTS
# Calls with small requests that an engine has at once: its cores or streams each have one, and the next lies ready.
_CALLS = 4
_FLOAT32_BYTES = 4


class ServeEngines:
    """Sends batches to the replicas of one deployment; deployments/token_router.py chooses which."""

    def __init__(self, handle: "DeploymentHandle[Any]", card: ModelCard, replicas: int = 1) -> None:
        """replicas: how many there are at most."""
        self._handle = handle
        self._card = card
        # pickle is what cloudpickle falls back to for data; it is several times faster to start.
        by_value = handle.options(request_serialization="pickle", response_serialization="pickle")
        self._pool, pool_all = by_value.options(method_name="pool"), by_value.options(method_name="pool_all")
        self._parcels = Parcels(lambda batches: cast(ManyAnswers, pool_all.remote(batches)), replicas * _CALLS)
        self._pool_by_reference = handle.options(method_name="pool", _by_reference=True)

    def send(self, batch: PackedBatch, alone: bool = False) -> Answer:
        size = max(batch.ids.nbytes + image_bytes(batch), answer_bytes(batch, self._card))
        if not alone and batch.tokens <= SMALL_TOKENS and size <= _SMALL_BYTES:
            return self._parcels.add(batch)
        pool = self._pool_by_reference if size > _LARGE_BYTES else self._pool
        return cast(Answer, pool.remote(batch))

    async def vitals(self, timeout_s: float) -> list[Vitals]:
        try:
            answers: list[Vitals] = await ask_all(self._handle, "vitals", timeout_s / 2)
        except TimeoutError:
            return await self._any_vitals(timeout_s / 2)
        return answers

    async def _any_vitals(self, timeout_s: float) -> list[Vitals]:
        """Those of one replica that Serve finds responsive, when another hangs."""
        try:
            async with asyncio.timeout(timeout_s):
                return [cast(Vitals, await self._handle.vitals.remote())]
        except (RayError, RayServeException, TimeoutError):
            return []


def answer_bytes(batch: PackedBatch, card: ModelCard) -> int:
    """How large the answer to a batch is, as float32; at most, where only some tokens have rows."""
    numbers = 0
    for task in parts_of(batch.task):
        rows = batch.tokens if TASKS[task].rows == "token" else len(batch)
        numbers += rows * card.poolers[task].width
    return numbers * _FLOAT32_BYTES


def image_bytes(batch: PackedBatch) -> int:
    """How large the images of a batch are, each once, for that is how they travel."""
    distinct = {id(image): image.pixels.nbytes for images in batch.media or () for image in images}
    return sum(distinct.values())
