"""ServedModel: one model as the router has it; intake, admission and its engines."""

import asyncio
from concurrent.futures import Executor
from typing import TYPE_CHECKING, NamedTuple

from deployments.admission import Admission
from deployments.dispatch import EngineClient
from deployments.engines import answer_bytes
from pooling.errors import InvalidRequest, Overloaded, Unavailable
from pooling.loading.card import ModelCard
from pooling.request import PackedBatch, PooledOutput, PoolingRequest

if TYPE_CHECKING:
    from pooling.intake import Intake

# About a millisecond of tokenising: longer would hold up every other request, shorter is not worth a thread.
_INLINE_CHARS = 4_096


class Answered(NamedTuple):
    """An answer, and how many tokens the request had."""

    output: PooledOutput
    prompt_tokens: int


class ServedModel:
    """Takes requests for one model from their text to their vectors. For one event loop."""

    def __init__(
        self, intake: "Intake", engines: EngineClient, admission: Admission, threads: Executor, max_answer_bytes: int
    ) -> None:
        self.admission = admission
        self._max_answer_bytes = max_answer_bytes
        self.engines = engines
        self._intake = intake
        self._threads = threads

    @property
    def card(self) -> ModelCard:
        return self._intake.card

    @property
    def name(self) -> str:
        return self._intake.card.name

    async def answer(self, request: PoolingRequest) -> Answered:
        """The vectors of a request.

        Raises InvalidRequest of the fitting kind, Overloaded if too much waits
        already, Unavailable if nothing can work it off, and what the engine raises.
        """
        try:
            self.admission.check()
            batch = await self.tokenize(request)
            self._refuse_large_answer(batch)
            with self.admission.hold(batch.tokens):
                return Answered(await self.engines.pool(batch), batch.tokens)
        except Overloaded:
            if await self.engines.alive():
                raise
            raise Unavailable(f"no engine of the model `{self.name}` is running now") from None

    def _refuse_large_answer(self, batch: PackedBatch) -> None:
        size, most = answer_bytes(batch, self.card), self._max_answer_bytes
        if size > most and len(batch) > 1:
            raise InvalidRequest(
                f"the answer to these {len(batch)} inputs has {size} bytes, but at most {most} are allowed "
                "(max_answer_bytes); ask for fewer inputs at once",
                "input",
            )

    async def tokenize(self, request: PoolingRequest) -> PackedBatch:
        """The request as the engine reads it. Raises InvalidRequest of the fitting kind."""
        # What has no length is no input; intake says so better.
        if sum(len(item) for item in request.inputs if hasattr(item, "__len__")) <= _INLINE_CHARS:
            return self._intake.tokenize(request)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._intake.tokenize, request)
