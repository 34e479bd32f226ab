"""Engine replicas whose device fails, hangs or is slow on purpose. Only the tests of this directory deploy them.

`deployed_with` puts one in the place of EngineReplica while an application is
built; the rest of the service is what ships.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from deployments import app
from deployments.replica import EngineReplica
from pooling.config import ModelSpec
from pooling.request import PackedBatch
from pooling.runner import Pending, Prepared, Runner

# An input of ids that begins with one of these does that to the forward pass it is in.
RAISES, RUNS_OUT_OF_MEMORY, HANGS = 401, 402, 403
# A device of 1,000 tokens a second, which computes nothing: it is the bottleneck, not this machine's cores.
SLOW_TOKEN_S = 0.001


@contextmanager
def deployed_with(replica: type[EngineReplica]) -> Iterator[None]:
    """Whatever is built inside runs its engines in such replicas."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "EngineReplica", replica)
        yield


class FaultyReplica(EngineReplica):
    """Its device does to a step what an input of it asks for."""

    async def __init__(self, spec: ModelSpec, threads: int) -> None:
        await super().__init__(spec, threads)
        _before_each_step(self._engine._runner, _fail_as_asked)


class SlowReplica(EngineReplica):
    """Its device needs a millisecond for each token."""

    async def __init__(self, spec: ModelSpec, threads: int) -> None:
        await super().__init__(spec, threads)
        _before_each_step(self._engine._runner, _take_long)


def _before_each_step(runner: Runner, does: Callable[[Sequence[PackedBatch]], None]) -> None:
    """Has the device thread call `does` with the parts of a step before it runs them."""
    prepare, launch = runner.prepare, runner.launch
    parts_of: dict[int, Sequence[PackedBatch]] = {}

    def keep(parts: Sequence[PackedBatch]) -> Prepared:
        prepared = prepare(parts)
        parts_of[id(prepared)] = parts
        return prepared

    def run(prepared: Prepared) -> Pending:
        does(parts_of.pop(id(prepared)))
        return launch(prepared)

    runner.prepare, runner.launch = keep, run  # type: ignore[method-assign]


def _fail_as_asked(parts: Sequence[PackedBatch]) -> None:
    first = {int(part.ids[start]) for part in parts for start in np.cumsum(part.lengths) - part.lengths}
    if RAISES in first:
        raise RuntimeError("a kernel has failed")
    if RUNS_OUT_OF_MEMORY in first:
        torch.empty(1 << 60, dtype=torch.uint8)  # an exbibyte: the allocator itself says no
    if HANGS in first:
        threading.Event().wait()


def _take_long(parts: Sequence[PackedBatch]) -> None:
    time.sleep(sum(part.tokens for part in parts) * SLOW_TOKEN_S)
