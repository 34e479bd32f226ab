"""Router: picks the model, guards the door, and answers HTTP and Python callers alike."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from prometheus_client.core import Metric
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.admission import Admission
from deployments.broadcast import ask_all
from deployments.config import ServiceConfig
from deployments.dispatch import EngineClient, Engines, Vitals
from deployments.engines import ServeEngines
from deployments.http.app import build_http
from deployments.http.errors import status_of
from deployments.image_loader import MAX_PROCESSED_BYTES, ImageLoader
from deployments.logs import show_log
from deployments.metrics import RouterMetrics, page
from deployments.python_api import PythonApi
from deployments.served import Answered, ServedModel
from deployments.tracing import add_parts, tracer_of_environment
from pooling.errors import DeadlineExceeded, InvalidRequest, UnknownModel
from pooling.request import PackedBatch, PoolingRequest

if TYPE_CHECKING:
    from pooling.intake import Intake

# Tokenizers release the GIL; a few threads keep one bulk request from holding up the next.
_THREADS = 4
_PEERS_S = 2.0
_CLIENT_LEFT = 499


class Router(PythonApi):
    """The deployment that clients talk to, over HTTP and through the app's Serve handle."""

    async def __init__(self, config: ServiceConfig, engines: dict[str, "DeploymentHandle[Any]"]) -> None:  # type: ignore[misc]  # Serve awaits it
        """engines: by the name of their deployment."""
        show_log()
        self.limits = config.limits
        self.api_keys = config.all_api_keys()
        self.cors_allow_origins = config.cors_allow_origins
        self.access_log = config.access_log
        self.tracer = tracer_of_environment()
        self.metrics = RouterMetrics()
        self.under_way = 0
        self._routers = config.router.replicas
        self._threads = ThreadPoolExecutor(_THREADS, "raypool-tokenize")
        self._may_sleep = {model.served_name for model in config.models if model.may_sleep}
        intakes = await asyncio.to_thread(load_intakes, config)
        handles = [engines[model.deployment_name] for model in config.models]
        replicas = [ServeEngines(handle, intake.card) for handle, intake in zip(handles, intakes, strict=True)]
        self._serve(config, intakes, replicas)

    def _serve(self, config: ServiceConfig, intakes: Sequence["Intake"], engines: Sequence[Engines]) -> None:
        """Takes its models into service, each with its engines."""
        self.models: list[ServedModel] = []
        self._images = ImageLoader(config.media, config.limits)
        for model, intake, replicas in zip(config.models, intakes, engines, strict=True):
            client = EngineClient(replicas, model.most_replicas, model.max_batch_tokens)
            admission = Admission(max(1, config.queued_tokens(model) // self._routers))
            served = ServedModel(intake, client, admission, self._threads, self._images, self.limits, model.dtype)
            self.models.append(served)
        self._by_name = {model.name: model for model in self.models}

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_http(self)

    def pick(self, name: str | None, task: str | None) -> ServedModel:
        """The model of that name; without one, the first that does the task. Raises UnknownModel."""
        if name:
            if name not in self._by_name:
                raise UnknownModel(f"The model `{name}` does not exist.")
            return self._by_name[name]
        return next((model for model in self.models if task in model.card.tasks), self.models[0])

    async def answer(
        self,
        model: ServedModel,
        request: PoolingRequest,
        timeout_s: float | None,
        judge: Callable[[PackedBatch], None] | None = None,
    ) -> Answered:
        """A model's answer to a request, counted, within its time and the service's; judge as ServedModel.answer()."""
        started = time.monotonic()
        status, tokens, answer = 500, 0, None
        self.under_way += 1
        try:
            answer = await self._in_time(model, request, timeout_s, judge)
            status, tokens = 200, answer.prompt_tokens
            return answer
        except asyncio.CancelledError:
            status = _CLIENT_LEFT
            raise
        except Exception as error:
            status, _ = status_of(error)
            raise
        finally:
            self.under_way -= 1
            task = request.task if request.task in model.card.tasks else model.card.tasks[0]
            seconds = time.monotonic() - started
            self.metrics.answered(model.name, task, status, len(request.inputs), tokens, seconds)
            if answer is not None:
                self._tell_parts(model.name, task, answer)

    def _tell_parts(self, model: str, task: str, answer: Answered) -> None:
        timing = answer.output.timing
        parts = {"tokenise": answer.tokenise_s, "queue": timing.queue_s, "forward": timing.forward_s}
        self.metrics.spent(model, task, parts)
        if self.tracer is not None:
            add_parts(self.tracer, model, task, answer.prompt_tokens, parts)

    async def healthy(self) -> bool:
        """Whether every model has a replica that can serve; one that may sleep may also have none."""
        return all(
            any(one.healthy for one in replicas) or (not replicas and name in self._may_sleep)
            for name, replicas in (await self._vitals()).items()
        )

    async def metrics_page(self) -> bytes:
        """The counts of every router and engine replica that answers in time, as Prometheus text."""
        routers, engines = await asyncio.gather(self._of_all_routers("metric_families"), self._vitals())
        return page(dict(routers), engines)

    async def load(self) -> int:
        """How many requests all routers are answering now."""
        return sum(await self._of_all_routers("requests_under_way"))

    async def requests_under_way(self) -> int:
        return self.under_way

    async def metric_families(self) -> tuple[str, list[Metric]]:
        """This router's name and its own counts."""
        queued = {model.name: model.admission.tokens for model in self.models}
        lost = {model.name: model.engines.lost_slices for model in self.models}
        return serve.get_replica_context().replica_id.unique_id, self.metrics.families(queued, lost)

    async def _vitals(self) -> dict[str, list[Vitals]]:
        """What every model's replicas say of themselves."""
        answers = await asyncio.gather(*(model.engines.vitals() for model in self.models))
        return {model.name: vitals for model, vitals in zip(self.models, answers, strict=True)}

    async def _of_all_routers(self, method: str) -> list[Any]:
        """What each router answers to one of its methods; this one alone, if the others do not answer in time."""
        if self._routers == 1:
            return [await getattr(self, method)()]
        context = serve.get_replica_context()
        peers = serve.get_deployment_handle(context.deployment, context.app_name)
        try:
            return await ask_all(peers, method, _PEERS_S) or [await getattr(self, method)()]
        except TimeoutError:
            return [await getattr(self, method)()]

    async def _in_time(
        self,
        model: ServedModel,
        request: PoolingRequest,
        timeout_s: float | None,
        judge: Callable[[PackedBatch], None] | None,
    ) -> Answered:
        most = self.limits.max_inputs
        if len(request.inputs) > most:
            raise InvalidRequest(
                f"{len(request.inputs)} inputs in one request, but at most {most} are allowed (max_inputs)", "input"
            )
        seconds = min(self.limits.request_timeout_s, timeout_s or self.limits.request_timeout_s)
        try:
            async with asyncio.timeout(seconds) as deadline:
                return await model.answer(request, judge)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise DeadlineExceeded(f"the request was not answered within its {seconds:g} s") from None


def load_intakes(config: ServiceConfig) -> list["Intake"]:
    """Of each model, in order."""
    from pooling.intake import Intake  # not above: whoever builds the application imports this file, and needs it not

    return [Intake.load(model.spec, MAX_PROCESSED_BYTES) for model in config.models]
