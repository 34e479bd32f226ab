"""EngineClient against engine replicas in this process, which can be made to fail in each way that real ones do."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError

from deployments import dispatch
from deployments.dispatch import EngineClient, Vitals, translate
from pooling.config import ModelSpec
from pooling.engine import Engine
from pooling.errors import EngineDead, EngineFailure, InvalidRequest, Overloaded, Unavailable
from pooling.intake import Intake
from pooling.request import PackedBatch, PooledOutput, PoolingRequest
from tests.texts import words

Fault = Callable[[], None]


class LocalEngines:
    """A real engine in this process. `faults` are called instead of it, one a call, until none is left."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.faults: list[Fault] = []
        self.sent: list[PackedBatch] = []
        self.alone: list[bool] = []
        self.cancelled = 0

    def send(self, batch: PackedBatch, alone: bool = False) -> "asyncio.Task[PooledOutput]":
        self.sent.append(batch)
        self.alone.append(alone)
        return asyncio.ensure_future(self._answer(batch))

    async def vitals(self, timeout_s: float) -> list[Vitals]:
        return [Vitals("local", self.engine.healthy, self.engine.max_batch_tokens, {})]

    async def _answer(self, batch: PackedBatch) -> PooledOutput:
        try:
            await asyncio.sleep(0)
            if self.faults:
                self.faults.pop(0)()
                await asyncio.sleep(60)
            return await self.engine.pool(batch)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def fault(error: BaseException) -> Fault:
    def raise_it() -> None:
        raise error

    return raise_it


def hang() -> None:
    """A replica that does not answer."""


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_PAUSES_S", (0.0, 0.0))


@pytest.fixture(scope="module")
def spec(checkpoint: Callable[[str], Path]) -> ModelSpec:
    return ModelSpec(source=str(checkpoint("bert")), name="bert", dtype="float32", max_batch_tokens=1_024)


@pytest.fixture(scope="module")
def batch(spec: ModelSpec) -> PackedBatch:
    texts = [words(1 + 7 * index % 60, start=index) for index in range(200)]
    packed = Intake.load(spec).tokenize(PoolingRequest(texts))
    assert packed.tokens > 4 * 1_024
    return packed


@pytest.fixture
async def engines(spec: ModelSpec) -> AsyncIterator[LocalEngines]:
    engine = Engine.load(spec)
    yield LocalEngines(engine)
    engine.close()


async def test_slices_come_back_as_one_answer_in_order(engines: LocalEngines, batch: PackedBatch) -> None:
    output = await EngineClient(engines, replicas=2).pool(batch)
    assert len(engines.sent) == 4
    np.testing.assert_array_equal(np.concatenate([sent.ids for sent in engines.sent]), batch.ids)
    np.testing.assert_allclose(output.data, (await engines.engine.pool(batch)).data, atol=2e-6)


async def test_a_small_request_is_sent_whole(engines: LocalEngines, batch: PackedBatch) -> None:
    await EngineClient(engines, replicas=8).pool(batch.slice(0, 10))
    assert len(engines.sent) == 1


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        ActorUnavailableError("gone", None),
        TaskCancelledError(),
        EngineDead("the engine has stopped"),
        RayTaskError("pool", "traceback", EngineDead("the engine has stopped"), ip="127.0.0.1"),
        RayTaskError("pool", "traceback", EngineDead("x"), ip="127.0.0.1").as_instanceof_cause(),
        grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata()),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_slice_whose_replica_is_lost_is_sent_again(
    engines: LocalEngines, batch: PackedBatch, error: BaseException
) -> None:
    engines.faults = [fault(error), fault(error)]
    output = await EngineClient(engines, replicas=1).pool(batch)
    assert len(engines.sent) == 2 + 2  # two slices, of which one or both were lost, twice in all
    np.testing.assert_allclose(output.data, (await engines.engine.pool(batch)).data, atol=2e-6)


async def test_what_is_sent_again_shares_no_call(engines: LocalEngines, batch: PackedBatch) -> None:
    """Another request of its call may be what brought the replica down."""
    engines.faults = [fault(ActorDiedError())] * 2
    await EngineClient(engines, replicas=1).pool(batch.slice(0, 1))
    assert engines.alone == [False, True, True]


async def test_after_three_losses_the_caller_is_told(engines: LocalEngines, batch: PackedBatch) -> None:
    engines.faults = [fault(ActorDiedError())] * 3
    with pytest.raises(Unavailable, match="3 times under this request, the last time because: the replica") as caught:
        await EngineClient(engines, replicas=1).pool(batch.slice(0, 1))
    assert not isinstance(caught.value, EngineDead)
    assert len(engines.sent) == 3


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("bad", "input"), InvalidRequest),
        (RayTaskError("pool", "traceback", InvalidRequest("bad", "input"), ip="127.0.0.1"), InvalidRequest),
        (Overloaded("too many tokens are queued"), Overloaded),
        (BackPressureError(1, 1), Unavailable),
        (RuntimeError("nobody knows, see /secret/path"), EngineFailure),
    ],
)
async def test_what_another_replica_would_refuse_too_is_not_sent_again(
    engines: LocalEngines, batch: PackedBatch, error: BaseException, kind: type[Exception]
) -> None:
    engines.faults = [fault(error)]
    with pytest.raises(kind) as caught:
        await EngineClient(engines, replicas=1).pool(batch.slice(0, 1))
    assert "secret" not in str(caught.value)
    assert len(engines.sent) == 1


async def test_nothing_is_sent_again_once_the_deadline_has_passed(
    engines: LocalEngines, batch: PackedBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_PAUSES_S", (0.05, 60.0))
    engines.faults = [fault(ActorDiedError())] * 3
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await EngineClient(engines, replicas=1).pool(batch.slice(0, 1))
    await asyncio.sleep(0.1)
    assert len(engines.sent) == 2


async def test_one_failed_slice_cancels_the_others(engines: LocalEngines, batch: PackedBatch) -> None:
    engines.faults = [hang, fault(InvalidRequest("bad")), hang, hang]
    with pytest.raises(InvalidRequest):
        await EngineClient(engines, replicas=2).pool(batch)
    await asyncio.sleep(0.01)
    assert len(engines.sent) == 4
    assert engines.cancelled == 3


async def test_a_caller_that_leaves_cancels_all_slices(engines: LocalEngines, batch: PackedBatch) -> None:
    engines.faults = [hang] * 4
    task = asyncio.ensure_future(EngineClient(engines, replicas=2).pool(batch))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.01)
    assert engines.cancelled == 4


async def test_all_who_ask_at_once_share_one_probe(engines: LocalEngines, monkeypatch: pytest.MonkeyPatch) -> None:
    probes = 0
    vitals = engines.vitals

    async def counted(timeout_s: float) -> list[Vitals]:
        nonlocal probes
        probes += 1
        return await vitals(timeout_s)

    monkeypatch.setattr(engines, "vitals", counted)
    client = EngineClient(engines, replicas=1)
    assert await asyncio.gather(*(client.alive() for _ in range(20))) == [True] * 20
    assert probes == 1


def test_our_own_errors_come_out_of_rays_as_they_went_in() -> None:
    error = InvalidRequest("bad", "input")
    wrapped = RayTaskError("outer", "t", RayTaskError("inner", "t", error, ip="127.0.0.1"), ip="127.0.0.1")
    assert translate(wrapped) is error
