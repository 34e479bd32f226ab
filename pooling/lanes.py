"""Lanes: the parts of a step on a CPU, each run by one core for itself."""

import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from pooling.batcher import Share

# A step goes over all cores together where a lane would have more than so many times its fair part of it.
_UNEVEN = 1.5
# Attention costs an input of so many tokens as much again as all its other products (MiniLM: 12 heads of 32).
_QUADRATIC_TOKENS = 2_048


# torch's number of threads is the whole process's; while lanes start, it is theirs.
_SETTING = threading.Lock()


def yield_to_others() -> None:
    """This thread, and those that it starts, compute when nobody else wants to.

    For an engine beside routers and proxies on the same cores: what these do takes
    microseconds, and a hop that waits for a core until a slice of computing has
    passed takes milliseconds.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def count_lanes() -> int:
    """As many as threads that torch was given."""
    with _SETTING:
        return torch.get_num_threads()


class Lanes:
    """Threads that compute on one core each, at the same time.

    Operations that several cores share end with all waiting for the slowest,
    some hundred times in a forward pass; what else wants a core holds up all of
    them each time. Inputs are independent, so a step falls into parts that need
    not wait for each other.
    """

    def __init__(self, count: int) -> None:
        """Raises RuntimeError where the system allows no more threads."""
        self.count = count
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
        thread = threading.Thread(target=_compute, args=(work, ready), name="raypool-lane", daemon=True)
        thread.start()
        ready.wait()
        self._work.append(work)
        self.threads.append(thread)

    def run(self, lane: int, call: Callable[[], object]) -> None:
        """Queues a call, which must not raise, behind those that the lane has."""
        self._work[lane].put(call)

    def wait(self) -> None:
        """Returns when the lanes have done what they have."""
        reached = threading.Barrier(self.count + 1)
        for work in self._work:
            work.put(reached.wait)
        reached.wait()

    def close(self) -> None:
        for work in self._work:
            work.put(None)
        for thread in self.threads:
            thread.join()


def _compute(work: "queue.SimpleQueue[Callable[[], object] | None]", ready: threading.Event) -> None:
    torch.get_num_threads()  # once in each thread it takes the number from all, over what was set before
    torch.set_num_threads(1)
    ready.set()
    while (call := work.get()) is not None:
        call()
        del call  # holds a step


def divide(shares: Sequence[Share], lengths: Sequence[NDArray[np.int32]], lanes: int) -> list[list[Share]]:
    """The shares of a step in as many groups as lanes, of about the same work; in one where that cannot be.

    lengths: of each share's inputs, in tokens. Neighbours in length stay
    together, longest first, for those are computed in one product.
    """
    inputs = sum(len(share.inputs) for share in shares)
    if lanes == 1 or inputs == 1:
        return [list(shares)]
    owners = np.repeat(np.arange(len(shares)), [len(share.inputs) for share in shares])
    tokens = np.concatenate(lengths).astype(np.int64)
    order = np.argsort(-tokens, kind="stable")
    work = tokens * (1 + tokens / _QUADRATIC_TOKENS)
    middles = np.cumsum(work[order]) - work[order] / 2
    lane_of = np.empty(inputs, np.int64)
    lane_of[order] = np.minimum(middles * lanes / work.sum(), lanes - 1)
    if np.bincount(lane_of, work).max() > _UNEVEN * work.sum() / lanes:
        return [list(shares)]
    places = np.arange(inputs) - np.repeat(np.cumsum([0, *map(len, lengths[:-1])]), [len(one) for one in lengths])
    groups = []
    for lane in range(lanes):
        mine = lane_of == lane
        group = []
        for owner in np.unique(owners[mine]):
            chosen = mine & (owners == owner)
            share = shares[owner]
            group.append(replace(share, inputs=share.inputs[places[chosen]], tokens=int(tokens[chosen].sum())))
        if group:
            groups.append(group)
    return groups
