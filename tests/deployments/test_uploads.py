"""Many large bodies at once are bounded: what is too much gets 429, and nobody else loses by it."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import httpx
import orjson
import pytest

from deployments.http.app import build_http
from deployments.http.uploads import Uploads
from pooling.errors import Overloaded

if TYPE_CHECKING:
    from tests.deployments.local import LocalRouter


def test_one_body_alone_is_never_too_much() -> None:
    uploads = Uploads(10, small=0)
    with uploads.one() as upload:
        upload.add(8)
        upload.add(8)
        assert uploads.bytes == 16
    assert uploads.bytes == 0


def test_bodies_together_are_too_much_until_one_is_read() -> None:
    uploads = Uploads(10, small=0)
    with uploads.one() as first:
        first.add(8)
        with uploads.one() as second:
            second.add(2)
            with pytest.raises(Overloaded, match="bodies of 8 bytes are being read, and the limit is 10"):
                second.add(1)
        assert uploads.bytes == 8
    with uploads.one() as third:
        third.add(10)


def test_small_bodies_pass_however_much_is_held() -> None:
    uploads = Uploads(10, small=4)
    with uploads.one() as large, uploads.one() as small:
        large.add(10)
        small.add(4)
        with pytest.raises(Overloaded):
            small.add(1)


async def test_a_client_beside_a_large_upload_is_told_to_come_again(local: "LocalRouter") -> None:
    served = build_http(local)
    served.state.uploads = Uploads(300, small=100)
    transport = httpx.ASGITransport(served, raise_app_exceptions=False)
    body, sent, over = orjson.dumps({"input": "a text", "user": "u" * 250}), asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield body[:200]
        sent.set()
        await over.wait()
        yield body[200:]

    async with httpx.AsyncClient(transport=transport, base_url="http://local") as client:
        kind = {"content-type": "application/json"}
        slow = asyncio.create_task(client.post("/v1/embeddings", content=slowly(), headers=kind))
        await sent.wait()
        refused = await client.post("/v1/embeddings", content=body, headers=kind)
        small = await client.post("/v1/embeddings", json={"input": "a text"})
        over.set()
        assert [refused.status_code, small.status_code, (await slow).status_code] == [429, 200, 200]
        assert refused.headers["retry-after"] == "1"
        assert (await client.post("/v1/embeddings", content=body, headers=kind)).status_code == 200
