"""Small requests travel together: who waits, what goes with what, and that each gets its own answer or error."""

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, cast

import numpy as np
import pytest

from deployments import parcels
from deployments.dispatch import EngineClient
from deployments.parcels import Parcels
from pooling.errors import EngineDead, EngineFailure, InputTooLong, Unavailable
from pooling.request import PackedBatch, PooledOutput
from tests.echo import POISON, batch, until


class Calls:
    """A replica whose calls are answered when the test says so."""

    def __init__(self) -> None:
        self.sent: list[list[PackedBatch]] = []
        self.answers: list[asyncio.Future[Sequence[PooledOutput | Exception]]] = []

    def __call__(self, batches: list[PackedBatch]) -> "asyncio.Future[Sequence[PooledOutput | Exception]]":
        self.sent.append(batches)
        self.answers.append(asyncio.get_running_loop().create_future())
        return self.answers[-1]

    def answer(self, number: int) -> None:
        self.answers[number].set_result([answer_to(each) for each in self.sent[number]])

    @property
    def names(self) -> list[list[int]]:
        return [[int(each.ids[0]) for each in batches] for batches in self.sent]


def answer_to(asked: PackedBatch) -> PooledOutput:
    return PooledOutput(np.array([[asked.ids[0]]], np.float32))


@pytest.fixture(autouse=True)
def _held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "_HOLD_S", 60.0)


@pytest.fixture
def calls() -> Calls:
    return Calls()


def over(send: Any, calls: int) -> Parcels:
    sending = Parcels(send)
    sending.fit(calls, tokens=1_024)
    return sending


async def in_one_call(sending: Parcels, calls: Calls, *numbers: int) -> "list[asyncio.Future[PooledOutput]]":
    """The answers to come of requests that travel together, in the second call of all."""
    sending.add(batch([99]))
    futures = [sending.add(batch([number])) for number in numbers]
    await settle()
    calls.answer(0)
    await settle()
    return futures


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_request_alone_is_sent_at_once_and_others_wait_until_a_call_returns(calls: Calls) -> None:
    sending = over(calls, 2)
    futures = [sending.add(batch([number])) for number in range(1, 6)]
    await settle()
    assert calls.names == [[1], [2]]
    calls.answer(1)
    await settle()
    assert calls.names == [[1], [2], [3, 4, 5]]
    calls.answer(2)
    calls.answer(0)
    assert [float((await future).data[0, 0]) for future in futures] == [1, 2, 3, 4, 5]
    await settle()
    sending.add(batch([6]))
    await settle()
    assert calls.names[3:] == [[6]]


async def test_nobody_waits_longer_than_the_hold_although_no_call_returns(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "_HOLD_S", 0.001)
    sending = over(calls, 1)
    for _ in range(1 + 3 * parcels.MOST_REQUESTS):
        sending.add(batch([1]))
    await until(lambda: len(calls.sent) > 1)
    await settle()
    assert len(calls.sent) == 4  # all that were due, and not one parcel a hold


async def test_requests_that_differ_much_in_length_do_not_wait_for_each_other(calls: Calls) -> None:
    sending = over(calls, 1)
    for length in (1, 200, 8, 250, 10, 9):
        sending.add(batch([length] + [1] * (length - 1)))
    await settle()
    for number in range(3):
        calls.answer(number)
        await settle()
    assert calls.names == [[1], [200, 250], [8, 10, 9]]


async def test_the_time_that_a_request_was_held_is_told_as_time_in_the_queue(calls: Calls) -> None:
    sending = over(calls, 1)
    now = sending.add(batch([1]))
    held = sending.add(batch([2]))
    await asyncio.sleep(0.02)
    for number in range(2):
        calls.answer(number)
        await settle()
    assert (await held).timing.queue_s >= 0.02
    assert (await now).timing.queue_s < (await held).timing.queue_s


async def test_a_call_with_too_few_answers_fails_all_its_requests(calls: Calls) -> None:
    futures = await in_one_call(over(calls, 1), calls, 1, 2)
    calls.answers[1].set_result([answer_to(batch([1]))])
    answers = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(answer) for answer in answers] == [EngineFailure, EngineFailure]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([600] * 3, [1, 1, 1]), ([500] * 3, [2, 1]), ([5] * 70, [32, 32, 6]), ([2_000, 5], [1, 1])],
)
async def test_a_parcel_has_at_most_so_many_tokens_and_requests(
    calls: Calls, lengths: list[int], expected: list[int]
) -> None:
    sending = over(calls, 1)
    for length in [1, *lengths]:
        sending.add(batch([1] * length))
    await settle()
    for number in range(len(expected)):
        calls.answer(number)
        await settle()
    assert [len(each) for each in calls.sent[1:]] == expected


async def test_the_error_of_one_is_not_that_of_the_others(calls: Calls) -> None:
    futures = await in_one_call(over(calls, 1), calls, 1, 2, 3)
    refused = InputTooLong("too long", "input")
    calls.answers[1].set_result([answer_to(batch([1])), refused, answer_to(batch([3]))])
    answers = await asyncio.gather(*futures, return_exceptions=True)
    assert answers[1] is refused
    assert [float(answers[place].data[0, 0]) for place in (0, 2)] == [1, 3]  # type: ignore[union-attr]


async def test_what_is_no_answer_fails_its_request_alone(calls: Calls) -> None:
    futures = await in_one_call(over(calls, 1), calls, 1, 2)
    calls.answers[1].set_result(cast(Any, [None, answer_to(batch([2]))]))
    answers = await asyncio.gather(*futures, return_exceptions=True)
    assert isinstance(answers[0], EngineFailure)
    assert float(answers[1].data[0, 0]) == 2  # type: ignore[union-attr]


async def test_when_the_loop_ends_nothing_more_is_sent(calls: Calls) -> None:
    sending = over(calls, 1)
    for number in (1, 2):
        sending.add(batch([number]))
    await settle()
    for task in list(sending._under_way):
        task.cancel()
    await settle()
    assert calls.names == [[1]]


async def test_a_call_that_fails_fails_its_own_requests_and_the_next_goes_on(calls: Calls) -> None:
    sending = over(calls, 1)
    first = sending.add(batch([1]))
    others = [sending.add(batch([number])) for number in (2, 3)]
    await settle()
    calls.answers[0].set_exception(ConnectionError("gone"))
    with pytest.raises(ConnectionError):
        await first
    await settle()
    calls.answer(1)
    assert [float((await future).data[0, 0]) for future in others] == [2, 3]


async def test_who_leaves_while_waiting_is_not_sent(calls: Calls) -> None:
    sending = over(calls, 1)
    sending.add(batch([1]))
    gone, stays = sending.add(batch([2])), sending.add(batch([3]))
    gone.cancel()
    await settle()
    calls.answer(0)
    await settle()
    assert calls.names == [[1], [3]]
    calls.answer(1)
    assert float((await stays).data[0, 0]) == 3


async def test_a_call_is_cancelled_when_all_who_are_in_it_have_left(calls: Calls) -> None:
    sending = over(calls, 1)
    two = await in_one_call(sending, calls, 2, 3)
    two[0].cancel()
    await settle()
    assert not calls.answers[1].cancelled()
    two[1].cancel()
    await settle()
    assert calls.answers[1].cancelled()
    sending.add(batch([4]))
    await settle()
    assert calls.names[2:] == [[4]]  # its place is free again


async def test_who_is_left_when_a_call_is_cancelled_is_to_be_sent_again(calls: Calls) -> None:
    sending = over(calls, 1)
    future = sending.add(batch([1]))
    await settle()
    calls.answers[0].cancel()
    with pytest.raises(EngineDead):
        await future


async def test_a_call_belongs_to_no_request(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve knows by the context which request made a call, and cancels the call when that request's client leaves."""
    monkeypatch.setattr(parcels, "_HOLD_S", 0.001)
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[str] = []

    def send(batches: list[PackedBatch]) -> "asyncio.Future[Sequence[PooledOutput | Exception]]":
        seen.append(request.get())
        return calls(batches)

    sending = over(send, 1)
    request.set("the first")
    for number in (1, 2, 100):
        sending.add(batch([1] * number))
    await settle()
    calls.answer(0)
    await until(lambda: len(seen) == 3)  # the last one is due
    assert seen == ["none", "none", "none"]


async def test_a_request_whose_call_another_one_brought_down_is_answered_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.dispatch._PAUSES_S", (0.0, 0.0))

    async def die_of_poison(batches: list[PackedBatch]) -> list[PooledOutput]:
        if any(POISON in each.ids for each in batches):
            raise EngineDead("the engine has stopped")
        return [answer_to(each) for each in batches]

    class Replica:
        def __init__(self) -> None:
            self.parcels = over(lambda batches: asyncio.ensure_future(die_of_poison(batches)), 1)

        async def _alone(self, asked: PackedBatch) -> PooledOutput:
            return (await die_of_poison([asked]))[0]

        def send(self, asked: PackedBatch, alone: bool = False) -> "asyncio.Future[PooledOutput]":
            return asyncio.ensure_future(self._alone(asked)) if alone else self.parcels.add(asked)

    client = EngineClient(cast(Any, Replica()), replicas=1)
    asked = [batch([1]), batch([POISON]), batch([2])]
    answers = await asyncio.gather(*map(client.pool, asked), return_exceptions=True)
    assert isinstance(answers[1], Unavailable)
    assert [float(answers[place].data[0, 0]) for place in (0, 2)] == [1, 2]  # type: ignore[union-attr]
    assert client.lost_slices == 3 + 1
