"""DeviceThread: runs prepared steps, away from the event loop."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from pooling.lanes import Lanes
from pooling.request import PooledOutput
from pooling.runner import Pending, Prepared, Runner

_LAST_STEP_S = 10.0

Done = Callable[[int, "StepReport"], None]


@dataclass(frozen=True, slots=True)
class StepReport:
    """What came of a step: the answers of its parts in order, or the error; seconds it was computed."""

    outputs: list[PooledOutput]
    seconds: float
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class _Work:
    prepared: Prepared
    tell: Callable[[StepReport], object]
    ended: threading.Event

    def report(self, report: StepReport) -> None:
        self.ended.set()
        self.tell(report)


class DeviceThread:
    """Builds a runner, launches its steps and reports each to its event loop.

    The runner is built on the thread that runs it: OpenMP keeps a team of
    threads for each thread that computes, and with two teams on the same cores
    it puts waiting threads to sleep at once, which costs a fifth of the speed.
    Lanes have none: each computes on one core.
    On a GPU launching only enqueues, so a second thread waits for the answers
    and the next step is enqueued behind the running one.
    express: one lane more, as in Lanes. Raises what building the runner raises.
    """

    def __init__(self, build: Callable[[], Runner], express: bool = False) -> None:
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._launched: queue.SimpleQueue[tuple[_Work, Pending, float] | None] = queue.SimpleQueue()
        self._freed = 0.0
        self._lanes: Lanes | None = None
        self._express: Lanes | None = None
        self._together: threading.Event | None = None  # when the last step of all cores has ended
        built: Future[Runner] = Future()
        self._threads = [
            threading.Thread(target=self._launch, args=(build, built), name="raypool-device", daemon=True),
            threading.Thread(target=self._collect, name="raypool-collect", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self.runner: Runner = built.result()
        if express and self.runner.lanes > 1:
            try:
                # By this thread: one that yields cannot start another that does not.
                self._express = Lanes(1, express=True)
            except BaseException:
                self.close()
                raise

    @property
    def has_express(self) -> bool:
        return self._express is not None

    def run(
        self, number: int, prepared: Prepared, lane: int | None, loop: asyncio.AbstractEventLoop, done: Done
    ) -> None:
        """Queues a step; `done(number, report)` is called in the loop when it has ended.

        lane: which of the runner's lanes computes it; None: the device, or all
        cores together, before what lanes get from now on. The lane after the last
        is the express.
        """

        def tell(report: StepReport) -> None:
            with suppress(RuntimeError):  # the loop has closed: nobody waits any more
                loop.call_soon_threadsafe(done, number, report)

        self._run(prepared, lane, tell)

    def measure(self, prepared: Prepared, lane: int | None) -> float:
        """Runs a step before any other and waits for it; the seconds that it took. Raises what the step raises."""
        answer: Future[StepReport] = Future()
        self._run(prepared, lane, answer.set_result)
        report = answer.result()
        if report.error is not None:
            raise report.error
        return report.seconds

    def _run(self, prepared: Prepared, lane: int | None, tell: Callable[[StepReport], object]) -> None:
        work = _Work(prepared, tell, threading.Event())
        if lane is None:
            self._together = work.ended
            self._work.put(work)
            return
        assert self._lanes is not None
        if self._express is not None and lane == self.runner.lanes:
            self._express.run(0, partial(self._compute, work))
            return
        if self._together is not None and not self._together.is_set():
            self._lanes.run(lane, self._together.wait)
        self._lanes.run(lane, partial(self._compute, work))

    def close(self) -> None:
        """Ends the threads after the steps they have, and then the runner, waiting as long as a step should take.

        A thread that still computes while the interpreter ends takes the process down with it. One of these threads
        itself, which has dropped the last reference to an engine, cannot wait for them.
        """
        self._work.put(None)
        if threading.current_thread() in self.threads:
            return
        for thread in self._threads:
            thread.join(_LAST_STEP_S)
        self.runner.close()

    @property
    def threads(self) -> list[threading.Thread]:
        """All that it has started."""
        return [*self._threads, *(thread for lanes in self._all_lanes() for thread in lanes.threads)]

    def _all_lanes(self) -> list[Lanes]:
        return [lanes for lanes in (self._lanes, self._express) if lanes is not None]

    def _launch(self, build: Callable[[], Runner], built: "Future[Runner]") -> None:
        try:
            runner = build()
            self._lanes = _lanes_for(runner)
        except BaseException as error:
            self._launched.put(None)
            built.set_exception(error)
            return
        built.set_result(runner)
        del built
        # Each step in a call of its own: a name here would keep the last one, and its engine with it, while it waits.
        while self._launch_next(runner):
            pass
        for lanes in self._all_lanes():
            lanes.close()
        self._launched.put(None)
        runner.close()

    def _launch_next(self, runner: Runner) -> bool:
        work = self._work.get()
        if work is None:
            return False
        start = time.monotonic()
        try:
            pending = runner.launch(work.prepared)
            ready = pending.done()
        except BaseException as error:  # whatever it is, the engine must hear of it: nothing may hang
            work.report(StepReport([], time.monotonic() - start, error))
            return True
        if ready:
            self._finish(work, pending, start)
        else:
            self._launched.put((work, pending, start))
        return True

    def _collect(self) -> None:
        while self._collect_next():
            pass

    def _collect_next(self) -> bool:
        item = self._launched.get()
        if item is not None:
            self._finish(*item)
        return item is not None

    def _finish(self, work: _Work, pending: Pending, start: float) -> None:
        try:
            outputs, error = pending.wait(), None
        except BaseException as caught:  # as above
            outputs, error = [], caught
        end = time.monotonic()
        # A step that was enqueued behind another had the device only from the other's end on.
        seconds, self._freed = end - max(start, self._freed), end
        work.report(StepReport(outputs, seconds, error))

    def _compute(self, work: _Work) -> None:
        """On a lane."""
        start = time.monotonic()
        try:
            outputs, error = self.runner.launch(work.prepared).wait(), None
        except BaseException as caught:  # as above
            outputs, error = [], caught
        work.report(StepReport(outputs, time.monotonic() - start, error))


def _lanes_for(runner: Runner) -> Lanes | None:
    try:
        return Lanes(runner.lanes) if runner.lanes > 1 else None
    except BaseException:
        runner.close()
        raise
