"""A server of images, good and bad, and names for it: what is fetched by URL in the tests."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from deployments.fetch import Fetcher
from deployments.media import MediaConfig
from tests.encoded import drawn, encoded

PNG = encoded(drawn())
# What 127.0.0.1 is to the tests, whose server can be nowhere else: the open internet.
OPEN, INNER = "127.0.0.1", "127.0.0.2"


class Names(AbstractResolver):
    """A name server of the tests; a name has one list of addresses after the other, the last for ever."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): lists for name, lists in answers.items()}
        self.asked: Counter[str] = Counter()

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        self.asked[host] += 1
        lists = self.answers.get(host)
        if lists is None:
            raise OSError("no such name")
        addresses = lists.pop(0) if len(lists) > 1 else lists[0]
        return [
            ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0)
            for address in addresses
        ]

    async def close(self) -> None:
        pass


class Site:
    """A server of images, good and bad, on a port of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.seen: list[str] = []
        self.at_once = self.most_at_once = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(f"{request.host.partition(':')[0]}{request.path}")
        answer: web.StreamResponse = await getattr(self, request.path.strip("/").replace("/", "_"))(request)
        return answer

    async def good(self, _: web.Request) -> web.Response:
        return web.Response(body=PNG, content_type="image/png")

    async def untyped(self, _: web.Request) -> web.Response:
        return web.Response(body=PNG, content_type="binary/octet-stream")

    async def page(self, _: web.Request) -> web.Response:
        return web.Response(text="<html>", content_type="text/html")

    async def missing(self, _: web.Request) -> web.Response:
        return web.Response(status=404, text="secret of the host")

    async def packed(self, _: web.Request) -> web.Response:
        return web.Response(body=PNG, content_type="image/png", headers={"content-encoding": "gzip"})

    async def endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "image/png"})
        await response.prepare(request)
        while True:
            await response.write(bytes(10_000))

    async def declared(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "image/png", "content-length": "1000000000"})
        await response.prepare(request)
        await asyncio.sleep(60)
        return response

    async def slow(self, _: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async def drip(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "image/png"})
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.01)

    async def together(self, _: web.Request) -> web.Response:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.02)
        self.at_once -= 1
        return web.Response(body=PNG, content_type="image/png")

    async def to(self, request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"location": request.query["url"]})

    async def nowhere(self, _: web.Request) -> web.Response:
        return web.Response(status=302)

    async def round(self, _: web.Request) -> web.Response:
        return web.Response(status=307, headers={"location": "/round"})


@asynccontextmanager
async def served_site() -> AsyncIterator[Site]:
    with socket.create_server((OPEN, 0)) as listening:
        site = Site(listening.getsockname()[1])
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", site.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        yield site
        await runner.cleanup()


def fetcher(site: Site, names: Names | None = None, **settings: Any) -> Fetcher:
    allowed = [f"images.test:{site.port}", f"*.cdn.test:{site.port}", f"rebound.test:{site.port}"]
    config = MediaConfig(**{"allowed_domains": allowed, "max_image_bytes": 100_000, **settings})
    names = names or Names(images_test=[[OPEN]], a_cdn_test=[[OPEN]], rebound_test=[[OPEN], [INNER]])
    return Fetcher(config, names, reaches=lambda address: address == OPEN)
