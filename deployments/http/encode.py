"""Vectors on the wire: JSON numbers straight from numpy, base64 of their bytes, or the bytes alone."""

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.responses import Response

from deployments.http.numbers import EmbedDtype, Endianness, as_numbers
from deployments.http.packing import Packing
from pooling.errors import InvalidRequest
from pooling.request import PooledOutput

Encoding = Literal["float", "base64", "bytes", "bytes_only"]

# Over this the event loop would stand still for too long; in pieces, a thread lets it take turns.
_LARGE_BYTES = 1_000_000
_PIECE_BYTES = 64_000
_CHARS_PER_VALUE = {"float": 11, "base64": 6, "bytes": 4, "bytes_only": 4}
# HAProxy keeps 15,360 bytes for all headers of an answer as Serve starts it; what is longer would be a 502.
_MOST_METADATA_BYTES = 12_000


@dataclass(frozen=True, slots=True)
class Wire:
    """How a client wants its numbers; dtype and endianness mean nothing to `float`."""

    encoding: Encoding = "float"
    dtype: EmbedDtype = "float32"
    endianness: Endianness = "native"


@dataclass(frozen=True, slots=True)
class Listing:
    """A list of vectors as clients know it: `head` first, then the data, then the usage.

    kind is the `object` of an item, field the name under which it has its vector.
    """

    head: dict[str, Any]
    kind: str
    field: str
    prompt_tokens: int


def usage(prompt_tokens: int) -> dict[str, Any]:
    """What an answer cost, in vLLM's words."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }


async def encode(listing: Listing, output: PooledOutput, wire: Wire, pack: Packing | None = None) -> Response:
    """The response with every vector of `output`, in order; pack: what is written instead of the numbers of each.

    Raises InvalidRequest if it cannot be written so.
    """
    if pack is not None:
        build: Callable[[Listing, PooledOutput, Wire], Response] = partial(_packed, pack)
    else:
        build = _json if wire.encoding in ("float", "base64") else _bytes
    if output.data.size * _CHARS_PER_VALUE[wire.encoding] > _LARGE_BYTES:
        return await asyncio.to_thread(build, listing, output, wire)
    return build(listing, output, wire)


def _packed(pack: Packing, listing: Listing, output: PooledOutput, _: Wire) -> Response:
    items = [
        {"index": index, "object": listing.kind, listing.field: one} for index, one in enumerate(pack(output.data))
    ]
    return _listed(listing, orjson.dumps(items, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1])


def _json(listing: Listing, output: PooledOutput, wire: Wire) -> Response:
    numbers = output.data if wire.encoding == "float" else as_numbers(output.data, wire.dtype, wire.endianness)
    return _listed(listing, b",".join(_pieces(listing, output.split(numbers), wire.encoding)))


def _listed(listing: Listing, data: bytes) -> Response:
    head, last = orjson.dumps(listing.head)[:-1], orjson.dumps(usage(listing.prompt_tokens))
    return Response(b'%b,"data":[%b],"usage":%b}' % (head, data, last), media_type="application/json")


def _pieces(listing: Listing, rows: list[NDArray[Any]], encoding: Encoding) -> Iterator[bytes]:
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


def _bytes(listing: Listing, output: PooledOutput, wire: Wire) -> Response:
    numbers = as_numbers(output.data, wire.dtype, wire.endianness)
    headers = {}
    if wire.encoding == "bytes":
        headers["metadata"] = _metadata(listing, output.split(numbers), wire)
    return Response(numbers.tobytes(), headers=headers, media_type="application/octet-stream")


def _metadata(listing: Listing, rows: list[NDArray[Any]], wire: Wire) -> str:
    """Where in the body each vector is, as JSON for a header."""
    ends = np.cumsum([row.nbytes for row in rows]).tolist()
    items = [
        {
            "index": index,
            "embed_dtype": wire.dtype,
            "endianness": wire.endianness,
            "start": end - row.nbytes,
            "end": end,
            "shape": list(row.shape),
        }
        for index, (row, end) in enumerate(zip(rows, ends, strict=True))
    ]
    head = {name: listing.head[name] for name in ("id", "created", "model")}
    counted = {"prompt_tokens": listing.prompt_tokens, "total_tokens": listing.prompt_tokens}
    # json, not orjson: a header is ASCII, and a model's name or a request's id need not be.
    text = json.dumps({**head, "data": items, "usage": counted}, separators=(",", ":"))
    if len(text) > _MOST_METADATA_BYTES:
        raise InvalidRequest(
            f"encoding_format bytes describes every input in the header `metadata`, and {len(rows)} inputs need "
            f"{len(text)} bytes where {_MOST_METADATA_BYTES} are allowed; send fewer inputs, or ask for bytes_only",
            "encoding_format",
        )
    return text
