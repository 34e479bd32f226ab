"""START HERE. Engine.pool(): batcher -> runner, on a thread of its own -> results.

All state belongs to the event loop that calls pool(): no lock is needed. The
device thread and its lanes only run steps that the loop prepared. Two steps
are under way in a place at most: one runs, the next is ready behind it. The
next one is closed as late as possible, when its place is about to be free, so
that a request which arrives meanwhile is still in it.
"""

import asyncio
import itertools
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np

from pooling.batcher import Batcher, Share
from pooling.config import STEP_TIMEOUT_S, ModelSpec
from pooling.device_thread import DeviceThread, StepReport
from pooling.distinct import distinct
from pooling.engine_job import Job
from pooling.errors import EngineDead, EngineFailure, PoolingError, StartupError
from pooling.judge import check_batch
from pooling.lanes import yield_to_others
from pooling.loading.card import ModelCard
from pooling.loading.dtype import choose_device
from pooling.long_text import Chunked, chunk
from pooling.parallel.group import StartRanks
from pooling.parallel.local import start_local
from pooling.request import PackedBatch, PooledOutput
from pooling.runner import LocalRunner
from pooling.schedule import Place, Schedule, Turn
from pooling.shared_prefixes import Alike
from pooling.step_sizes import StepSizes

log = logging.getLogger("raypool")

# Steps to begin with: small ones show what a step costs beside its tokens.
_WARM_TOKENS = (8, 64)
_WARM_S = 0.1
_WARM_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class _Step:
    """A step under way: where, whose inputs it holds, and how many tokens."""

    place: Place
    shares: tuple[Share, ...]
    tokens: int


class Engine:
    """Answers batches of one model; shares the device fairly among callers.

    Not thread-safe: call pool() from one event loop. `healthy` turns false for
    good when a forward pass fails or hangs; every caller that waits then gets
    EngineDead, as does every later one.
    """

    def __init__(self, device: DeviceThread, step_timeout_s: float = STEP_TIMEOUT_S) -> None:
        runner = device.runner
        self.card: ModelCard = runner.card
        self.max_batch_tokens = runner.max_batch_tokens
        self.places = runner.lanes  # how many steps it computes at the same time
        self.failure: str | None = None
        self.lost = threading.Event()  # the process of a part of the runner has ended
        self._runner, self._step_timeout_s = runner, step_timeout_s
        self._batcher = Batcher()
        self._schedule = Schedule(runner.lanes, runner.max_batch_tokens, runner.least_batch_tokens, device.has_express)
        self._jobs: dict[int, Job] = {}
        self._steps: dict[int, _Step] = {}
        self._numbers = itertools.count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watchdogs: dict[Place, asyncio.TimerHandle] = {}
        self._done_steps = self._done_inputs = self._done_tokens = 0
        self._busy_s = 0.0
        self.step_inputs, self.step_tokens = StepSizes(), StepSizes()
        self._device = device
        # Also at the interpreter's end, for those who never close.
        self._end_device = weakref.finalize(self, device.close)
        self.on_failure: Callable[[], object] | None = None  # called once, on any thread
        runner.watch(partial(_tell, weakref.ref(self)))

    @classmethod
    def load(cls, spec: ModelSpec, start_ranks: StartRanks = start_local, yields: bool = False) -> Self:
        """Reads the model and proves its forward pass. Raises StartupError of the fitting kind.

        start_ranks: how the other ranks are started of a model that is split over several. yields: on CPUs, the
        threads that compute give way to all others of the machine, and small requests need not wait for bulk.
        """
        start = time.monotonic()

        def build() -> LocalRunner:
            if yields and choose_device(spec.device).type == "cpu":
                yield_to_others()
            return LocalRunner(spec, start_ranks)

        try:
            device = DeviceThread(build, express=yields)
        except PoolingError:
            raise
        except Exception as error:  # of transformers or torch, for a configuration that describes no model
            reason = (str(error).strip().splitlines() or [""])[0]
            raise StartupError(
                f"{spec.served_name}: the model cannot be loaded: {type(error).__name__}: {reason}"
            ) from error
        runner = device.runner
        facts = runner.describe()
        log.info(
            "%s: %s, %s, max_model_len %d, max_batch_tokens %d, %s, ready in %.1f s",
            runner.card.name,
            runner.card.architecture,
            "; ".join(f"{task}: {pooler}" for task, pooler in runner.card.poolers.items()),
            runner.card.max_model_len,
            runner.max_batch_tokens,
            ", ".join(f"{name} {value}" for name, value in facts.items() if value),
            time.monotonic() - start,
        )
        engine = cls(device, spec.limits.step_timeout_s)
        try:
            engine._warm_up()
        except Exception as error:
            engine.close()
            raise StartupError(f"{spec.served_name}: the first forward pass failed: {type(error).__name__}") from error
        return engine

    def _warm_up(self) -> None:
        """Lanes compute something small: the first step of a thread takes several times as long, and tells nothing."""
        places = self._schedule.places
        if len(places) == 1 or self.card.vision is not None:
            return
        for tokens in (size for size in _WARM_TOKENS if size <= self.card.max_model_len):
            ids = np.ones(tokens, np.int32)
            prepared = self._runner.prepare([PackedBatch(ids, np.array([tokens], np.int32), self.card.tasks[0])])
            for place in places:
                # The least of some: while a service starts, others take the cores as well.
                self._device.measure(prepared, place.lane)
                seconds = min(self._device.measure(prepared, place.lane) for _ in range(_WARM_ROUNDS))
                place.times.learn(tokens, seconds)
                if place.lane is not None and seconds > _WARM_S:
                    return  # it is a large model, and its first users wait for this

    @property
    def healthy(self) -> bool:
        return self.failure is None

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait or run."""
        return self._batcher.tokens + sum(step.tokens for step in self._steps.values())

    def stats(self) -> dict[str, float]:
        """Counts since the start, and what waits now."""
        return {
            "steps": self._done_steps,
            "inputs": self._done_inputs,
            "tokens": self._done_tokens,
            "busy_s": self._busy_s,
            "waiting_requests": len(self._batcher),
            "waiting_inputs": self._batcher.inputs,
            "waiting_tokens": self._batcher.tokens,
        }

    async def pool(self, batch: PackedBatch) -> PooledOutput:
        """The answers to a batch, in its order.

        Raises InvalidRequest for a batch this model cannot take,
        NonFiniteResult if the model answers NaN or infinity for an input of it,
        EngineDead if the engine has failed. Cancelling drops what still waits.
        """
        if self.failure is not None:
            raise EngineDead(self.failure)
        check_batch(batch, self.card)
        once = distinct(batch)
        if once is None:
            return await self._pool_long(batch)
        return once.repeat(await self._pool_long(once.batch, once.firsts))

    async def _pool_long(self, batch: PackedBatch, owners: np.ndarray | None = None) -> PooledOutput:
        """owners: what the caller calls each input, where that is not its place."""
        chunked = self._chunked(batch)
        if chunked is None:
            return await self._pool(batch, owners)
        output = await self._pool(chunked.batch, chunked.owners if owners is None else owners[chunked.owners])
        normalise = self.card.normalises(batch.task, batch.params.use_activation)
        return replace(output, data=chunked.merge(output.data, normalise))

    def _chunked(self, batch: PackedBatch) -> Chunked | None:
        """The batch with its long texts in chunks; None if it has none or the model takes none."""
        return chunk(batch, self.card.max_model_len, self.card.chunk_overlap) if self.card.chunked else None

    async def _pool(self, batch: PackedBatch, owners: np.ndarray | None = None) -> PooledOutput:
        loop = self._bind()
        key = next(self._numbers)
        job = Job(batch, loop.create_future(), time.monotonic(), len(batch), batch.offsets(), owners)
        self._jobs[key] = job
        self._add(key, batch)
        self._pump()
        try:
            return await job.future
        finally:
            self._jobs.pop(key, None)
            if self._batcher.drop(key) and loop.is_running():
                self._pump()  # others may have waited for its turn

    def _add(self, key: int, batch: PackedBatch) -> None:
        # Of inputs in two segments or seen in part nothing is shared, nor of others in a step with such.
        plain = not self.card.token_types and not self.card.sides and batch.media is None
        alike = Alike.of(batch.ids, batch.lengths) if plain and self._runner.shares_prefixes else None
        if alike is None:
            self._batcher.add(key, batch.lengths)
        else:
            self._batcher.add(key, alike.costs, alike.order, alike.again)

    def close(self) -> None:
        """Ends the device thread after the step it has; callers that wait get EngineDead.

        Call it from the loop of pool(), or without one.
        """
        self.on_failure = None
        if self.failure is None:
            self._fail("the engine was closed")
        self._end_device()

    def _bind(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is not loop and self._loop is not None and self._loop.is_closed():
            # Whoever waited there is gone, and of the steps under way nobody will hear.
            for key in self._jobs:
                self._batcher.drop(key)
            self._jobs.clear()
            self._steps.clear()
            self._schedule.forget()
            self._timer = None
            self._watchdogs.clear()
        if self._loop is not loop and (self._jobs or self._steps):
            raise EngineFailure("the engine serves another event loop; call pool() from one loop only")
        self._loop = loop
        return loop

    def _pump(self) -> None:
        """Gives every place its next step that is free or about to be; otherwise looks again when one is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self.failure is None:
            start = time.monotonic()
            try:
                turn = self._schedule.turn(self._batcher, start)
                shares = self._batcher.take(turn.room, turn.over, turn.upto) if isinstance(turn, Turn) else []
            except Exception as error:  # a fault of ours: nobody may wait for ever
                self._fail(f"forming a step failed: {type(error).__name__}", error)
                return
            if isinstance(turn, Turn):
                self._start_step(turn.place, tuple(shares), start)
                continue
            if turn < math.inf:
                assert self._loop is not None
                self._timer = self._loop.call_later(turn, self._pump)
            return

    def _start_step(self, place: Place, shares: tuple[Share, ...], start: float) -> None:
        assert self._loop is not None
        jobs = [self._jobs[share.key] for share in shares]
        step = _Step(place, shares, sum(share.tokens for share in shares))
        number = next(self._numbers)
        self._steps[number] = step
        for job in jobs:
            job.started = job.started if job.started is not None else start
        try:
            prepared = self._runner.prepare([job.take(share.inputs) for job, share in zip(jobs, shares, strict=True)])
        except Exception as error:  # a fault of ours, not of an input: those were checked at the door
            self._fail(f"preparing a step failed: {type(error).__name__}", error)
            return
        now = time.monotonic()
        largest = max(job.batch.tokens for job in jobs)
        self._schedule.started(number, step.place, step.tokens, largest, now - start, now)
        if self._schedule.begins(step.place):
            self._watch(step.place)
        self._device.run(number, prepared, step.place.lane, self._loop, self._finished)

    def _finished(self, number: int, report: StepReport) -> None:
        """Called in the loop by the device thread when a step has ended."""
        if number not in self._steps or self.failure is not None:
            return  # the engine failed meanwhile; every caller knows already
        step = self._steps.pop(number)
        now = time.monotonic()
        self._schedule.ended(number, step.place, report.seconds, now)
        for place in self._schedule.begun_by(step.place):
            self._watch(place)
        if report.error is not None:
            self._fail(f"the forward pass failed: {type(report.error).__name__}", report.error)
            return
        self._done_steps += 1
        self._done_tokens += step.tokens
        self.step_tokens.add(step.tokens)
        self.step_inputs.add(sum(len(share.inputs) for share in step.shares))
        self._busy_s += report.seconds * self._schedule.share_of(step.place)
        self._pump()  # the device first: callers can wait the microseconds this takes
        try:
            self._hand_out(step, report, now)
        except Exception as error:  # a fault of ours: nobody may wait for ever
            self._fail(f"handing out the answers of a step failed: {type(error).__name__}", error)

    def _hand_out(self, step: _Step, report: StepReport, now: float) -> None:
        for key in {share.key for share in step.shares} & self._jobs.keys():
            self._jobs[key].count(now - report.seconds, now)
        for share, output in zip(step.shares, report.outputs, strict=True):
            self._done_inputs += len(share.inputs)
            job = self._jobs.get(share.key)
            if job is not None:  # else its caller went away
                job.deliver(share.inputs, output)

    def _watch(self, place: Place) -> None:
        """Gives the step that runs in a place its time; that of the one behind it begins when it has the place."""
        watchdog = self._watchdogs.pop(place, None)
        if watchdog is not None:
            watchdog.cancel()
        if place.steps:
            assert self._loop is not None
            self._watchdogs[place] = self._loop.call_later(self._step_timeout_s, self._hung)

    def _hung(self) -> None:
        self._fail(f"a forward pass did not end within {self._step_timeout_s:g} s")

    def lose(self, reason: str, ended: bool) -> None:
        """A part of the runner in another process is gone, as in Runner.watch(); may be called on any thread."""
        if ended:
            self.lost.set()
        loop = self._loop
        if loop is not None and loop.is_running():
            loop.call_soon_threadsafe(self._fail, reason)
        else:
            self._fail(reason)

    def _fail(self, reason: str, error: BaseException | None = None) -> None:
        """Fails every caller that waits, and the engine for good."""
        if self.failure is not None:
            return
        self.failure = f"the engine has stopped: {reason}"
        if error is not None:
            log.error("%s: %s", self.card.name, self.failure, exc_info=error)
        for timer in (*self._watchdogs.values(), self._timer):
            if timer is not None:
                timer.cancel()
        for job in self._jobs.values():
            if not job.future.done():
                job.future.set_exception(EngineDead(self.failure))
        if self.on_failure is not None:
            self.on_failure()


def _tell(engine: "weakref.ref[Engine]", reason: str, ended: bool) -> None:
    """Whoever watches an engine's ranks must not keep it."""
    alive = engine()
    if alive is not None:
        alive.lose(reason, ended)
