"""Number formats on the wire: the bits that torch makes, and the bits that vLLM was seen to send."""

import base64
import json
from typing import Any

import numpy as np
import pytest
import torch

from deployments.http.encode import _MOST_METADATA_BYTES, Listing, Wire, encode
from deployments.http.numbers import as_numbers
from pooling.errors import InvalidRequest
from pooling.request import PooledOutput

TORCH = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
LISTING = Listing({"id": "embd-1", "object": "list", "created": 7, "model": "m"}, "embedding", "embedding", 9)
VLLM = np.array([0xBD0D5E8A], np.uint32).view(np.float32)  # "hello world" of MiniLM, its first number


def hard_numbers(most: float) -> np.ndarray:
    """Of every size, on every midpoint of the coarsest format and just beside it, both zeros, both ends."""
    draw = np.random.default_rng(0)
    spread = draw.standard_normal(20_000) * 10.0 ** draw.integers(-9, 3, 20_000)
    halves = np.array([bits << 20 for bits in range(1 << 11)], np.uint32).view(np.float32)
    halves = np.concatenate([halves, np.array([bits << 15 for bits in range(1 << 16)], np.uint32).view(np.float32)])
    halves = halves[np.isfinite(halves)]
    beside = np.concatenate([halves, np.nextafter(halves, np.float32(0)), np.nextafter(halves, np.float32(np.inf))])
    numbers = np.concatenate([spread.astype(np.float32), beside, [0.0, most]]).astype(np.float32)
    numbers = np.concatenate([numbers, -numbers])
    return numbers[np.abs(numbers) <= most]


@pytest.mark.parametrize("dtype", TORCH)
def test_every_number_is_rounded_as_torch_rounds_it(dtype: Any) -> None:
    most = torch.finfo(TORCH[dtype]).max
    numbers = hard_numbers(most)
    assert len(numbers) > 10_000
    theirs = torch.from_numpy(numbers).to(TORCH[dtype]).view(torch.uint8).numpy()
    ours = as_numbers(numbers[None], dtype, "little")
    np.testing.assert_array_equal(np.frombuffer(ours.tobytes(), np.uint8), theirs.reshape(-1))


@pytest.mark.parametrize("dtype", TORCH)
def test_a_number_too_large_for_the_format_is_refused_not_made_infinite(dtype: Any) -> None:
    most = np.float32(torch.finfo(TORCH[dtype]).max)
    assert as_numbers(np.array([[-most]], np.float32), dtype, "native").size == 1
    for sign in (1, -1):
        with pytest.raises(InvalidRequest, match=f"embed_dtype {dtype} holds numbers up to .* but the answer has"):
            as_numbers(np.array([[sign * np.nextafter(most, np.float32(np.inf))]], np.float32), dtype, "native")


@pytest.mark.parametrize(
    ("dtype", "endianness", "sent"),
    [
        ("float32", "little", "8a5e0dbd"),
        ("float32", "native", "8a5e0dbd"),
        ("float32", "big", "bd0d5e8a"),
        ("float16", "little", "6ba8"),
        ("float16", "big", "a86b"),
        ("bfloat16", "little", "0dbd"),
        ("bfloat16", "big", "bd0d"),
        ("fp8_e4m3", "little", "91"),
        ("fp8_e4m3", "big", "91"),
        ("fp8_e5m2", "big", "a8"),
    ],
)
async def test_the_bits_are_those_that_vllm_sends(dtype: Any, endianness: Any, sent: str) -> None:
    output = PooledOutput(VLLM[None])
    response = await encode(LISTING, output, Wire("bytes_only", dtype, endianness))
    assert response.body == bytes.fromhex(sent)
    as_text = json.loads((await encode(LISTING, output, Wire("base64", dtype, endianness))).body)
    assert base64.b64decode(as_text["data"][0]["embedding"]) == bytes.fromhex(sent)
    as_json = json.loads((await encode(LISTING, output, Wire("float", dtype, endianness))).body)
    assert np.float32(as_json["data"][0]["embedding"][0]) == VLLM[0]  # dtypes change bytes alone


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2), ("fp8_e5m2", 1)])
async def test_the_header_says_where_in_the_bytes_each_vector_is(dtype: Any, width: int) -> None:
    data = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    output = PooledOutput(data, np.array([2, 3], np.int32))
    response = await encode(LISTING, output, Wire("bytes", dtype, "big"))
    assert response.media_type == "application/octet-stream"
    told = json.loads(response.headers["metadata"])
    assert (told["id"], told["created"], told["model"]) == ("embd-1", 7, "m")
    assert told["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    for item, rows in zip(told["data"], output.rows(), strict=True):
        assert item["shape"] == list(rows.shape)
        assert (item["embed_dtype"], item["endianness"]) == (dtype, "big")
        assert response.body[item["start"] : item["end"]] == as_numbers(rows, dtype, "big").tobytes()
        assert item["end"] - item["start"] == rows.size * width
    assert [item["index"] for item in told["data"]] == [0, 1]


async def test_without_the_header_there_are_the_same_bytes() -> None:
    output = PooledOutput(np.ones((2, 4), np.float32))
    response = await encode(LISTING, output, Wire("bytes_only"))
    assert "metadata" not in response.headers
    assert response.body == (await encode(LISTING, output, Wire("bytes"))).body


async def test_a_header_that_no_proxy_would_pass_is_refused() -> None:
    output = PooledOutput(np.ones((500, 4), np.float32))
    with pytest.raises(InvalidRequest, match=f"where {_MOST_METADATA_BYTES} are allowed; send fewer inputs, or ask"):
        await encode(LISTING, output, Wire("bytes"))
    assert len((await encode(LISTING, output, Wire("bytes_only"))).body) == 8_000


async def test_a_name_beyond_ascii_fits_into_the_header() -> None:
    listing = Listing({**LISTING.head, "model": "größe-😀"}, "embedding", "embedding", 1)
    response = await encode(listing, PooledOutput(np.ones((1, 4), np.float32)), Wire("bytes"))
    assert json.loads(response.headers["metadata"])["model"] == "größe-😀"


async def test_a_large_answer_is_the_same_in_every_format() -> None:
    data = np.random.default_rng(0).standard_normal((3_000, 64)).astype(np.float32)
    for encoding in ("bytes_only", "base64"):
        response = await encode(LISTING, PooledOutput(data), Wire(encoding, "bfloat16"))
        body = response.body
        if encoding == "base64":
            body = b"".join(base64.b64decode(item["embedding"]) for item in json.loads(body)["data"])
        assert body == as_numbers(data, "bfloat16", "native").tobytes()
