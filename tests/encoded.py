"""Pictures as the bytes that a client would send, good and bad."""

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image as Pillow


def drawn(seed: int = 0, width: int = 40, height: int = 30) -> Pillow.Image:
    """A picture unlike those of other seeds, smooth enough that JPEG keeps it."""
    corners = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Pillow.fromarray(corners).resize((width, height), Pillow.Resampling.BILINEAR)


def encoded(picture: Pillow.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def data_uri(data: bytes, said: str = "image/png") -> str:
    return f"data:{said};base64,{base64.b64encode(data).decode()}"


def bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A PNG of a few kilobytes whose header promises 900 million pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def tiled_tiff(tile: int) -> bytes:
    """A TIFF of 4x4 grey pixels in one tile of tile x tile; of a large tile only a part is there."""
    compressed = zlib.compress(bytes(min(tile, 1_000) ** 2))
    sizes = {256: 4, 257: 4, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 0, 325: len(compressed)}
    sizes[324] = 8 + 2 + 12 * len(sizes) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sizes.items())
    return b"II*\0" + struct.pack("<IH", 8, len(sizes)) + entries + bytes(4) + compressed


def png_of_chunks(count: int) -> bytes:
    """A PNG of 40x30 with so many empty chunks before its pixels."""
    data = encoded(drawn())
    end_of_header = data.index(b"IHDR") + 4 + 13 + 4
    return data[:end_of_header] + _chunk(b"teSt", b"") * count + data[end_of_header:]


def jpeg_of(parts: bytes) -> bytes:
    """A JPEG of 40x30 with these bytes before its first segment."""
    data = encoded(drawn(), "JPEG")
    return data[:2] + parts + data[2:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
