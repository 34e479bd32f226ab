"""DeviceThread: runs prepared steps one after another, away from the event loop."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from pooling.lanes import Lanes
from pooling.request import PooledOutput
from pooling.runner import Pending, Prepared, Runner

_LAST_STEP_S = 10.0

Done = Callable[[int, "StepReport"], None]


@dataclass(frozen=True, slots=True)
class StepReport:
    """What came of a step: the answers of its parts in order, or the error; seconds the device had it."""

    outputs: list[PooledOutput]
    seconds: float
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class _Work:
    number: int
    parts: Sequence[Prepared]
    shared: bool
    loop: asyncio.AbstractEventLoop
    done: Done


class DeviceThread:
    """Builds a runner, launches its steps in order and reports each to its event loop.

    The runner is built on the thread that runs it: OpenMP keeps a team of
    threads for each thread that computes, and with two teams on the same cores
    it puts waiting threads to sleep at once, which costs a fifth of the speed.
    Lanes have none: each computes on one core.
    On a GPU launching only enqueues, so a second thread waits for the answers
    and the next step is enqueued behind the running one.
    Raises what building the runner raises.
    """

    def __init__(self, build: Callable[[], Runner]) -> None:
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._launched: queue.SimpleQueue[tuple[_Work, Pending, float] | None] = queue.SimpleQueue()
        self._freed, self._finishing = 0.0, threading.Lock()
        self._lanes: Lanes | None = None
        built: Future[Runner] = Future()
        self._threads = [
            threading.Thread(target=self._launch, args=(build, built), name="raypool-device", daemon=True),
            threading.Thread(target=self._collect, name="raypool-collect", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self.runner: Runner = built.result()

    def run(
        self, number: int, parts: Sequence[Prepared], shared: bool, loop: asyncio.AbstractEventLoop, done: Done
    ) -> None:
        """Queues a step; `done(number, report)` is called in the loop when it has ended.

        parts: at most as many as the runner has lanes. shared: all cores run the one
        part together.
        """
        self._work.put(_Work(number, parts, shared, loop, done))

    def close(self) -> None:
        """Ends the threads after the steps they have, and then the runner, waiting as long as a step should take.

        A thread that still computes while the interpreter ends takes the process down with it. One of these threads
        itself, which has dropped the last reference to an engine, cannot wait for them.
        """
        self._work.put(None)
        threads = [*self._threads, *([] if self._lanes is None else self._lanes.threads)]
        if threading.current_thread() in threads:
            return
        for thread in self._threads:
            thread.join(_LAST_STEP_S)
        self.runner.close()

    def _launch(self, build: Callable[[], Runner], built: "Future[Runner]") -> None:
        try:
            runner = build()
            lanes = self._lanes = _lanes_for(runner)
        except BaseException as error:
            self._launched.put(None)
            built.set_exception(error)
            return
        built.set_result(runner)
        del built
        # Each step in a call of its own: a name here would keep the last one, and its engine with it, while it waits.
        while self._launch_next(runner, lanes):
            pass
        if lanes is not None:
            lanes.close()
        self._launched.put(None)
        runner.close()

    def _launch_next(self, runner: Runner, lanes: Lanes | None) -> bool:
        work = self._work.get()
        if work is None:
            return False
        if lanes is not None and not work.shared:
            parts = _Parts(len(work.parts), partial(self._finish, work, start=time.monotonic()))
            for lane, part in enumerate(work.parts):
                lanes.run(lane, partial(parts.launch, lane, partial(runner.launch, part)))
            return True
        if lanes is not None:
            lanes.wait()
        start = time.monotonic()
        try:
            pending = runner.launch(work.parts[0])
            ready = pending.done()
        except BaseException as error:  # whatever it is, the engine must hear of it: nothing may hang
            self._report(work, StepReport([], time.monotonic() - start, error))
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
        with self._finishing:  # by any lane
            # A step that was enqueued behind another had the device only from the other's end on.
            seconds, self._freed = end - max(start, self._freed), end
        self._report(work, StepReport(outputs, seconds, error))

    @staticmethod
    def _report(work: _Work, report: StepReport) -> None:
        try:
            work.loop.call_soon_threadsafe(work.done, work.number, report)
        except RuntimeError:
            return  # the loop has closed: nobody waits any more


def _lanes_for(runner: Runner) -> Lanes | None:
    try:
        return Lanes(runner.lanes) if runner.lanes > 1 else None
    except BaseException:
        runner.close()
        raise


class _Parts:
    """The parts of a step that lanes run; the last one to end hands on their answers together."""

    def __init__(self, count: int, ended: Callable[[Pending], None]) -> None:
        self._launched: dict[int, Pending | BaseException] = {}
        self._left, self._ended, self._lock = count, ended, threading.Lock()

    def launch(self, place: int, launch: Callable[[], Pending]) -> None:
        try:
            self._launched[place] = launch()
        except BaseException as error:  # whatever it is, the engine must hear of it: nothing may hang
            self._launched[place] = error
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._ended(self)

    def done(self) -> bool:
        return True

    def wait(self) -> list[PooledOutput]:
        outputs: list[PooledOutput] = []
        for _, part in sorted(self._launched.items()):
            if isinstance(part, BaseException):
                raise part
            outputs += part.wait()
        return outputs
