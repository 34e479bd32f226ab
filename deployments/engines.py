"""ServeEngines: a model's engine replicas behind a Serve handle."""

import asyncio
import logging
import math
import time
from contextvars import Context
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

log = logging.getLogger("raypool")

# Serve's gRPC path refuses messages over 4 MiB, unless told otherwise on every node; larger ones
# go through Ray's object store, which takes any size and is as fast for them.
_LARGE_BYTES = 2 * 2**20
# As many of these as a parcel takes stay below that.
_SMALL_BYTES = _LARGE_BYTES // MOST_REQUESTS
# Of the calls with small requests that a replica has, one computes in each place and the next lies ready.
_CALLS_PER_PLACE = 2
_FEWEST_CALLS = 4
# How often replicas are asked what they can take, while small requests come.
_ASK_S = 10.0
_FLOAT32_BYTES = 4


class ServeEngines:
    """Sends batches to the replicas of one deployment; deployments/token_router.py chooses which."""

    def __init__(self, handle: "DeploymentHandle[Any]", card: ModelCard) -> None:
        self._handle = handle
        self._card = card
        # pickle is what cloudpickle falls back to for data; it is several times faster to start.
        by_value = handle.options(request_serialization="pickle", response_serialization="pickle")
        self._pool, pool_all = by_value.options(method_name="pool"), by_value.options(method_name="pool_all")
        self._parcels = Parcels(lambda batches: cast(ManyAnswers, pool_all.remote(batches)))
        self._asking: asyncio.Task[None] | None = None
        self._asked = -math.inf
        self._pool_by_reference = handle.options(method_name="pool", _by_reference=True)

    def send(self, batch: PackedBatch, alone: bool = False) -> Answer:
        size = max(batch.ids.nbytes + image_bytes(batch), answer_bytes(batch, self._card))
        small = batch.tokens <= SMALL_TOKENS and size <= _SMALL_BYTES and batch.media is None
        if small and not alone:
            self._ask_now_and_then()
            return self._parcels.add(batch)
        pool = self._pool_by_reference if size > _LARGE_BYTES else self._pool
        return cast(Answer, pool.remote(batch))

    async def vitals(self, timeout_s: float) -> list[Vitals]:
        try:
            answers: list[Vitals] = await ask_all(self._handle, "vitals", timeout_s / 2)
        except TimeoutError:
            return await self._any_vitals(timeout_s / 2)
        self._fit(answers)
        return answers

    def _ask_now_and_then(self) -> None:
        """In a context of its own, for the same reason as a parcel."""
        if time.monotonic() - self._asked > _ASK_S:
            self._asked = time.monotonic()
            self._asking = asyncio.get_running_loop().create_task(self._ask(), context=Context())

    async def _ask(self) -> None:
        try:
            await self.vitals(_ASK_S / 2)
        except Exception as error:  # nobody waits for it
            log.warning("engine replicas did not say what they can take: %s", type(error).__name__)

    def _fit(self, replicas: list[Vitals]) -> None:
        """As many calls as all replicas have room for; together they hold about two steps of each."""
        if replicas:
            calls = [max(_FEWEST_CALLS, _CALLS_PER_PLACE * one.places) for one in replicas]
            tokens = [2 * one.max_batch_tokens // each for one, each in zip(replicas, calls, strict=True)]
            self._parcels.fit(sum(calls), min(tokens))

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
