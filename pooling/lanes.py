"""Lanes: threads of a CPU that compute steps on a core each."""

import os
import queue
import threading
from collections.abc import Callable

import torch

# torch's number of threads is the whole process's; while lanes start, it is theirs.
_SETTING = threading.Lock()
_LAST = 19
# To a lane of the last niceness the system gives a seventh of the core that they share.
_EXPRESS = 10


def yield_to_others() -> None:
    """This thread, and those that it starts, compute when nobody else wants to.

    For an engine beside routers and proxies on the same cores: what these do takes
    microseconds, and a hop that waits for a core until a slice of computing has
    passed takes milliseconds.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LAST)


def count_lanes() -> int:
    """As many as threads that torch was given."""
    with _SETTING:
        return torch.get_num_threads()


class Lanes:
    """Threads that compute on one core each, at the same time.

    Operations that several cores share end with all waiting for the slowest,
    some hundred times in a forward pass; what else wants a core holds up all of
    them each time. Inputs are independent, so cores need not wait for each other.
    """

    def __init__(self, count: int, express: bool = False) -> None:
        """Raises RuntimeError where the system allows no more threads.

        express: they come before threads that yield to others, and after the rest.
        """
        self._express = express
        self._work: list[queue.SimpleQueue[Callable[[], object] | None]] = []
        self.threads: list[threading.Thread] = []
        with _SETTING:
            threads = torch.get_num_threads()
            try:
                for _ in range(count):
                    self._start()
            except RuntimeError:
                self.close()
                raise
            finally:
                # The last number set is also that of every thread which computes for the first time.
                torch.set_num_threads(threads)

    def _start(self) -> None:
        work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        ready = threading.Event()
        thread = threading.Thread(target=_compute, args=(work, ready, self._express), name="raypool-lane", daemon=True)
        thread.start()
        ready.wait()
        self._work.append(work)
        self.threads.append(thread)

    def run(self, lane: int, call: Callable[[], object]) -> None:
        """Queues a call, which must not raise, behind those that the lane has."""
        self._work[lane].put(call)

    def close(self) -> None:
        for work in self._work:
            work.put(None)
        for thread in self.threads:
            thread.join()


def _compute(work: "queue.SimpleQueue[Callable[[], object] | None]", ready: threading.Event, express: bool) -> None:
    torch.get_num_threads()  # once in each thread it takes the number from all, over what was set before
    torch.set_num_threads(1)
    if express:
        own = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, own, max(_EXPRESS, os.getpriority(os.PRIO_PROCESS, own)))
    ready.set()
    while (call := work.get()) is not None:
        call()
        del call  # holds a step
