"""A runner whose model answers the mean of an input's ids, and what tests ask an engine over it."""

import asyncio
import threading
from collections.abc import Callable, Sequence

import numpy as np

from pooling.device_thread import DeviceThread
from pooling.engine import Engine
from pooling.loading.card import ModelCard, ResolvedPooler
from pooling.request import PackedBatch, PooledOutput

POOLERS = {"embed": ResolvedPooler("MEAN", 1), "token_embed": ResolvedPooler("ALL", 1)}
CARD = ModelCard("echo", "echo", "Echo", "echo", 1, 512, 1_000, POOLERS)
POISON = 666
BULK = [[1] * 7 + [number] for number in range(3, 203)]


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
        self.shares_prefixes = False
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
