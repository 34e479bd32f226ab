"""Vectors to JSON: float32 rows straight from numpy, or base64 of their bytes."""

import asyncio
import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from starlette.responses import Response

from pooling.request import PooledOutput, Rows

Encoding = Literal["float", "base64"]

# Over this the event loop would stand still for too long; in pieces, a thread lets it take turns.
_LARGE_BYTES = 1_000_000
_PIECE_BYTES = 64_000
_CHARS_PER_VALUE = {"float": 11, "base64": 6}


@dataclass(frozen=True, slots=True)
class Listing:
    """A list of vectors as clients know it: `head` first, then the data, then the usage.

    kind is the `object` of an item, field the name under which it has its vector.
    """

    head: dict[str, Any]
    kind: str
    field: str
    prompt_tokens: int


async def encode(listing: Listing, output: PooledOutput, encoding: Encoding) -> Response:
    """The response with every vector of `output`, in order."""
    if output.data.size * _CHARS_PER_VALUE[encoding] > _LARGE_BYTES:
        body = await asyncio.to_thread(_body, listing, output, encoding)
    else:
        body = _body(listing, output, encoding)
    return Response(body, media_type="application/json")


def _body(listing: Listing, output: PooledOutput, encoding: Encoding) -> bytes:
    usage = {
        "prompt_tokens": listing.prompt_tokens,
        "total_tokens": listing.prompt_tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }
    data = b",".join(_pieces(listing, output.rows(), encoding))
    return b'%b,"data":[%b],"usage":%b}' % (orjson.dumps(listing.head)[:-1], data, orjson.dumps(usage))


def _pieces(listing: Listing, rows: list[Rows], encoding: Encoding) -> Iterator[bytes]:
    """The items of the list, several at a time; between two pieces other threads get their turn."""
    largest = max((row.nbytes for row in rows), default=1)
    count = max(1, _PIECE_BYTES // max(largest, 1))
    for start in range(0, len(rows), count):
        items = [
            {
                "index": index,
                "object": listing.kind,
                listing.field: row if encoding == "float" else base64.b64encode(row.data).decode("ascii"),
            }
            for index, row in enumerate(rows[start : start + count], start)
        ]
        yield orjson.dumps(items, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
