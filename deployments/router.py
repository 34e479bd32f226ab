"""Router: picks the model, guards the door, and answers HTTP and Python callers alike."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI
from prometheus_client.core import Metric
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.admission import Admission
from deployments.broadcast import ask_all
from deployments.config import ServiceConfig
from deployments.dispatch import EngineClient, Vitals
from deployments.engines import ServeEngines
from deployments.http.app import build_http
from deployments.http.errors import status_of
from deployments.inputs import as_inputs
from deployments.logs import show_log
from deployments.metrics import RouterMetrics, page
from deployments.served import Answered, ServedModel
from pooling.errors import DeadlineExceeded, InvalidRequest, UnknownModel
from pooling.request import Ids, PackedBatch, PooledOutput, PoolingParams, PoolingRequest, Prompt, Rows

if TYPE_CHECKING:
    from pooling.intake import Intake

# Tokenizers release the GIL; a few threads keep one bulk request from holding up the next.
_THREADS = 4
_PEERS_S = 2.0
_CLIENT_LEFT = 499

Inputs = str | Ids | Sequence[Prompt] | Sequence[int]


class Router:
    """The deployment that clients talk to; its Python API is called through the app's Serve handle.

    Arguments that the methods share: `model`, None for the default one;
    `prompt_name`, a prompt of the model to put before every text;
    `truncate_prompt_tokens`, None to refuse an input that is too long, -1 to
    cut it to what the model takes, k to cut it to k tokens; `timeout_s`, None
    for the service's own limit.
    They raise PoolingError of the fitting kind.
    """

    async def __init__(self, config: ServiceConfig, *engines: "DeploymentHandle[Any]") -> None:  # type: ignore[misc]  # Serve awaits it
        show_log()
        self.limits = config.limits
        self.api_keys = config.api_keys
        self.metrics = RouterMetrics()
        self._routers = config.router.replicas
        self._threads = ThreadPoolExecutor(_THREADS, "raypool-tokenize")
        self._may_sleep = {model.served_name for model in config.models if model.may_sleep}
        intakes = await asyncio.to_thread(_load_intakes, config)
        self.models: list[ServedModel] = []
        for model, intake, handle in zip(config.models, intakes, engines, strict=True):
            client = EngineClient(ServeEngines(handle, intake.card), model.most_replicas, model.max_batch_tokens)
            admission = Admission(max(1, config.queued_tokens(model) // self._routers))
            self.models.append(ServedModel(intake, client, admission, self._threads, config.limits.max_answer_bytes))
        self._by_name = {model.name: model for model in self.models}

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_http(self)

    async def embed(
        self,
        inputs: Inputs,
        *,
        model: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        prompt_name: str | None = None,
        truncate_prompt_tokens: int | None = None,
        timeout_s: float | None = None,
    ) -> Rows:
        """One vector for each input: [inputs, dim] float32. A text, token ids, or a list of either."""
        output = await self.pool(
            inputs,
            task="embed",
            model=model,
            dimensions=dimensions,
            normalize=normalize,
            prompt_name=prompt_name,
            truncate_prompt_tokens=truncate_prompt_tokens,
            timeout_s=timeout_s,
        )
        return output.data

    async def pool(
        self,
        inputs: Inputs,
        *,
        task: str | None = None,
        model: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        prompt_name: str | None = None,
        truncate_prompt_tokens: int | None = None,
        truncation_side: Literal["left", "right"] | None = None,
        add_special_tokens: bool = True,
        timeout_s: float | None = None,
    ) -> PooledOutput:
        """What any task of any model answers; `rows()` has it by input."""
        request = PoolingRequest(
            as_inputs(inputs),
            task,
            PoolingParams(normalize, dimensions),
            truncate_prompt_tokens,
            truncation_side,
            add_special_tokens,
            prompt_name,
        )
        return (await self.answer(self.pick(model, task), request, timeout_s)).output

    async def tokenize(
        self,
        inputs: Inputs,
        *,
        model: str | None = None,
        prompt_name: str | None = None,
        truncate_prompt_tokens: int | None = None,
        add_special_tokens: bool = True,
    ) -> PackedBatch:
        """The token ids of each input as the engine would read them, laid end to end with their lengths."""
        request = PoolingRequest(
            as_inputs(inputs),
            truncate_prompt_tokens=truncate_prompt_tokens,
            add_special_tokens=add_special_tokens,
            prompt_name=prompt_name,
        )
        return await self.pick(model, None).tokenize(request)

    def pick(self, name: str | None, task: str | None) -> ServedModel:
        """The model of that name; without one, the first that does the task. Raises UnknownModel."""
        if name:
            if name not in self._by_name:
                raise UnknownModel(f"The model `{name}` does not exist.")
            return self._by_name[name]
        return next((model for model in self.models if task in model.card.tasks), self.models[0])

    async def answer(self, model: ServedModel, request: PoolingRequest, timeout_s: float | None) -> Answered:
        """A model's answer to a request, counted, within its time and the service's."""
        started = time.monotonic()
        status, tokens = 500, 0
        try:
            answer = await self._in_time(model, request, timeout_s)
            status, tokens = 200, answer.prompt_tokens
            return answer
        except asyncio.CancelledError:
            status = _CLIENT_LEFT
            raise
        except Exception as error:
            status, _ = status_of(error)
            raise
        finally:
            task = request.task if request.task in model.card.tasks else model.card.tasks[0]
            seconds = time.monotonic() - started
            self.metrics.answered(model.name, task or "", status, len(request.inputs), tokens, seconds)

    async def healthy(self) -> bool:
        """Whether every model has a replica that can serve; one that may sleep may also have none."""
        return all(
            any(one.healthy for one in replicas) or (not replicas and name in self._may_sleep)
            for name, replicas in (await self._vitals()).items()
        )

    async def metrics_page(self) -> bytes:
        """The counts of every router and engine replica that answers in time, as Prometheus text."""
        routers, engines = await asyncio.gather(self._all_families(), self._vitals())
        return page(dict(routers), engines)

    async def metric_families(self) -> tuple[str, list[Metric]]:
        """This router's name and its own counts."""
        queued = {model.name: model.admission.tokens for model in self.models}
        lost = {model.name: model.engines.lost_slices for model in self.models}
        return serve.get_replica_context().replica_id.unique_id, self.metrics.families(queued, lost)

    async def _vitals(self) -> dict[str, list[Vitals]]:
        """What every model's replicas say of themselves."""
        answers = await asyncio.gather(*(model.engines.vitals() for model in self.models))
        return {model.name: vitals for model, vitals in zip(self.models, answers, strict=True)}

    async def _all_families(self) -> list[tuple[str, list[Metric]]]:
        if self._routers == 1:
            return [await self.metric_families()]
        context = serve.get_replica_context()
        peers = serve.get_deployment_handle(context.deployment, context.app_name)
        try:
            return await ask_all(peers, "metric_families", _PEERS_S) or [await self.metric_families()]
        except TimeoutError:
            return [await self.metric_families()]

    async def _in_time(self, model: ServedModel, request: PoolingRequest, timeout_s: float | None) -> Answered:
        most = self.limits.max_inputs
        if len(request.inputs) > most:
            raise InvalidRequest(
                f"{len(request.inputs)} inputs in one request, but at most {most} are allowed (max_inputs)", "input"
            )
        seconds = min(self.limits.request_timeout_s, timeout_s or self.limits.request_timeout_s)
        try:
            async with asyncio.timeout(seconds) as deadline:
                return await model.answer(request)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise DeadlineExceeded(f"the request was not answered within its {seconds:g} s") from None


def _load_intakes(config: ServiceConfig) -> list["Intake"]:
    from pooling.intake import Intake  # not above: whoever builds the application imports this file, and needs it not

    return [Intake.load(model.spec) for model in config.models]
