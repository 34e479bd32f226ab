"""A router without Ray: the real one over real engines, in this process."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from deployments.config import ServiceConfig
from deployments.dispatch import Vitals
from deployments.metrics import RouterMetrics
from deployments.router import Router, load_intakes
from pooling.engine import Engine
from pooling.request import PackedBatch, PooledOutput


class LocalEngines:
    """One engine in this process as all the replicas of its model."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sent: list[PackedBatch] = []

    def send(self, batch: PackedBatch, alone: bool = False) -> "asyncio.Task[PooledOutput]":
        self.sent.append(batch)
        return asyncio.ensure_future(self.engine.pool(batch))

    async def vitals(self, timeout_s: float) -> list[Vitals]:
        engine = self.engine
        steps = {"inputs": engine.step_inputs, "tokens": engine.step_tokens}
        return [Vitals("local", engine.healthy, engine.max_batch_tokens, dict(engine.stats()), steps)]


class LocalRouter(Router):
    """`engines` has those of each model by name."""

    def __init__(self, config: ServiceConfig) -> None:
        self.limits = config.limits
        self.api_keys = config.all_api_keys()
        self.cors_allow_origins = config.cors_allow_origins
        self.access_log = config.access_log
        self.tracer = None
        self.metrics = RouterMetrics()
        self.under_way = 0
        self._routers = 1
        self._threads = ThreadPoolExecutor(2)
        self._may_sleep = set()
        specs = [model.spec for model in config.models]
        self.engines = {spec.served_name: LocalEngines(Engine.load(spec)) for spec in specs}
        self._serve(config, load_intakes(config), list(self.engines.values()))

    async def metric_families(self) -> tuple[str, list[Any]]:
        return "local", self.metrics.families({}, {})

    def close(self) -> None:
        for one in self.engines.values():
            one.engine.close()
        self._threads.shutdown()
        self._images.close()
