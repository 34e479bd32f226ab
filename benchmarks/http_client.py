"""One HTTP client for every server that is compared: connections that each send one request at a time."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson


@dataclass
class Seen:
    """What one kind of request met: the seconds of each, and the texts that were answered meanwhile."""

    seconds: list[float] = field(default_factory=list)
    texts: int = 0
    elapsed: float = 0.0

    @property
    def requests_per_s(self) -> float:
        return len(self.seconds) / self.elapsed

    @property
    def texts_per_s(self) -> float:
        return self.texts / self.elapsed

    def quantile_ms(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3


class Client:
    """Asks one server for embeddings in base64, over connections that stay open."""

    def __init__(self, url: str, model: str) -> None:
        self._url, self._model = url, model

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=600)
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        await self._session.close()

    async def answers(self) -> bool:
        """Whether the server takes requests by now."""
        try:
            await self._post(self._body(["ready?"]))
        except (aiohttp.ClientError, TimeoutError, RuntimeError):
            return False
        return True

    async def load(
        self, batches: list[list[str]], clients: int, seconds: float, until: "asyncio.Event | None" = None
    ) -> Seen:
        """Sends the batches over and over for so long, and until the event where one is given.

        Every client starts elsewhere in them. Requests under way at the end are
        not counted, nor is the time after it, but for each client's first one.
        """
        seen, bodies = Seen(), [self._body(batch) for batch in batches]
        start = time.perf_counter()
        over = _after(start + seconds) if until is None else until.is_set

        async def one(first: int) -> None:
            for number, place in enumerate(_from(first, len(bodies))):
                began = time.perf_counter()
                await self._post(bodies[place])
                if number and over():
                    return
                seen.seconds.append(time.perf_counter() - began)
                seen.texts += len(batches[place])
                seen.elapsed = time.perf_counter() - start

        await asyncio.gather(*(one(number * len(bodies) // clients) for number in range(clients)))
        return seen

    def _body(self, texts: list[str]) -> bytes:
        given = texts[0] if len(texts) == 1 else texts
        return orjson.dumps({"model": self._model, "input": given, "encoding_format": "base64"})

    async def _post(self, body: bytes) -> None:
        headers = {"content-type": "application/json"}
        async with self._session.post(f"{self._url}/v1/embeddings", data=body, headers=headers) as response:
            content = await response.read()
            if response.status != 200:
                raise RuntimeError(f"{self._url} answered {response.status}: {content[:300]!r}")


def _after(end: float) -> Callable[[], bool]:
    return lambda: time.perf_counter() > end


def _from(first: int, count: int) -> Iterator[int]:
    places = cycle(range(count))
    for _ in range(first):
        next(places)
    return places
