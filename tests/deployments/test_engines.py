"""ServeEngines and EngineReplica over a Serve handle and an engine of this process: which requests travel together."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deployments.dispatch import Vitals
from deployments.engines import ServeEngines
from deployments.replica import EngineReplica
from pooling.errors import EngineDead, EngineFailure, NonFiniteResult
from pooling.request import PackedBatch
from tests.echo import CARD, POISON, EchoRunner, batch, engine_of


def replica_over(runner: EchoRunner) -> Any:
    replica = object.__new__(EngineReplica)
    replica._engine, replica._ending = engine_of(runner), True  # so that it does not end this process
    return replica


async def test_a_replica_answers_each_request_of_a_call_or_says_why_not() -> None:
    replica = replica_over(EchoRunner())
    good, bad = await replica.pool_all([batch([4, 6]), batch([POISON])])
    assert float(good.data[0, 0]) == 5
    assert isinstance(bad, NonFiniteResult)


async def test_a_request_that_fails_by_a_fault_of_ours_takes_no_other_along() -> None:
    replica = replica_over(EchoRunner())
    answers = await replica.pool_all([batch([4, 6]), None])
    assert float(answers[0].data[0, 0]) == 5
    assert isinstance(answers[1], EngineFailure)
    assert answers[1].detail == "the engine failed"


async def test_a_replica_whose_engine_fails_says_so_for_each_request() -> None:
    runner = EchoRunner()
    replica, ended = replica_over(runner), []
    replica._end = lambda: ended.append(1)
    runner.fault = ValueError("a broken kernel")
    answers = await replica.pool_all([batch([1]), batch([2])])
    assert [type(answer) for answer in answers] == [EngineDead, EngineDead]
    assert ended


class Handle:
    """A Serve handle that keeps what is sent, by method."""

    def __init__(self, sent: list[tuple[str, Any]], method: str = "", by_reference: bool = False) -> None:
        self._sent, self._method, self._by_reference = sent, method, by_reference

    def options(self, method_name: str | None = None, _by_reference: bool = False, **_: str) -> "Handle":
        return Handle(self._sent, method_name or self._method, _by_reference)

    def broadcast(self, method: str) -> Any:
        self._sent.append((f"{method} of all", None))

        async def answers(**_: Any) -> list[Vitals]:
            return [Vitals("a", True, 16_384, {}), Vitals("b", True, 8_192, {}, places=16)]

        return SimpleNamespace(results_async=answers)

    def remote(self, asked: Any) -> "asyncio.Future[Any]":
        self._sent.append((self._method + " by reference" * self._by_reference, asked))
        return asyncio.get_running_loop().create_future()


@pytest.mark.parametrize(
    ("asked", "way"),
    [
        (batch([1] * 256), "pool_all"),
        (batch([1] * 257), "pool"),
        (batch(*[[1]] * 200), "pool_all"),
        (batch([1] * 600_000), "pool by reference"),
    ],
)
async def test_only_small_requests_travel_in_parcels(asked: PackedBatch, way: str) -> None:
    sent: list[tuple[str, Any]] = []
    engines = ServeEngines(cast(Any, Handle(sent)), CARD)
    answer = engines.send(asked)
    await asyncio.sleep(0.01)
    assert [method for method, _ in sent if method.startswith("pool")] == [way]
    answer.cancel()


async def test_a_small_request_can_be_sent_alone() -> None:
    sent: list[tuple[str, Any]] = []
    ServeEngines(cast(Any, Handle(sent)), CARD).send(batch([1]), alone=True)
    assert [method for method, _ in sent] == ["pool"]


async def test_a_small_request_with_a_large_answer_travels_alone() -> None:
    wide = SimpleNamespace(poolers={"token_embed": SimpleNamespace(width=4_096)})
    sent: list[tuple[str, Any]] = []
    ServeEngines(cast(Any, Handle(sent)), cast(Any, wide)).send(batch([1] * 100, task="token_embed"))
    assert [method for method, _ in sent] == ["pool"]


async def test_it_knows_from_the_replicas_how_many_calls_they_have_room_for() -> None:
    """One with a single place and steps of 16,384 tokens, one with 16 cores and steps of 8,192."""
    sent: list[tuple[str, Any]] = []
    engines = ServeEngines(cast(Any, Handle(sent)), CARD)
    for _ in range(3):
        engines.send(batch([1]))
    await asyncio.sleep(0.01)
    assert [method for method, _ in sent].count("vitals of all") == 1
    assert (engines._parcels._calls, engines._parcels._tokens) == (4 + 32, 2 * 8_192 // 32)


async def test_replicas_that_do_not_say_what_they_can_take_stop_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Silent(Handle):
        def broadcast(self, method: str) -> Any:
            raise RuntimeError("no controller")

    sent: list[tuple[str, Any]] = []
    engines = ServeEngines(cast(Any, Silent(sent)), CARD)
    engines.send(batch([1]))
    await asyncio.sleep(0.01)
    assert [method for method, _ in sent] == ["pool_all"]
    assert "did not say what they can take: RuntimeError" in caplog.text
