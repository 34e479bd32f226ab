"""ImageRows: a column of pictures -> images, a few at a time, and why a row has none."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.fs as arrow_fs

from cluster.files import locate
from cluster.row_engine import Reasons
from pooling.errors import ConfigError, InvalidRequest
from pooling.images import ImageLimits, decode_data_uri, decode_image, is_data_uri
from pooling.media import Image

# A photo is 36 MB decoded, and an engine works two parts at once: so many of both are 5 GB at the most common sizes.
_AT_ONCE = 64
# Decoding leaves Python's lock; more threads would wait for the engine that they decode for.
_THREADS = 4
# Those of a request guard a service against strangers; the files of a job are its owner's.
_LIMITS = ImageLimits(max_image_bytes=1 << 28)


class ImageRows:
    """Decodes the pictures of an engine's rows on threads of its own. Safe to call from several threads."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, "raypool-images")

    def pieces(self, values: Sequence[Any], reasons: Reasons) -> Iterator[tuple[int, list[Image | None]]]:
        """The number of the first row of each piece and the images of its rows.

        A row in `reasons` is passed over, and one without an image is added.
        """
        for start in range(0, len(values), _AT_ONCE):
            rows = range(start, min(start + _AT_ONCE, len(values)))
            found = self._threads.map(lambda row: None if row in reasons else _image_or_reason(values[row]), rows)
            images: list[Image | None] = []
            for row, one in zip(rows, found, strict=True):
                if isinstance(one, str):
                    reasons[row] = one
                images.append(one if isinstance(one, Image) else None)
            yield start, images

    def close(self) -> None:
        self._threads.shutdown()


def _image_or_reason(value: Any) -> Image | str:
    try:
        return image_of(value)
    except (InvalidRequest, ConfigError) as error:
        return error.detail


def image_of(value: Any) -> Image:
    """A picture as datasets hold one: its bytes, a path or a data URI, a struct of bytes and path, or its pixels.

    Of a struct, as Hugging Face's datasets store pictures, the path counts where
    there are no bytes. Raises InvalidRequest or ConfigError for what is none of them.
    """
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if value is None:
        raise InvalidRequest("the row is null")
    if isinstance(value, bytes):
        return decode_image(value, _LIMITS)
    if isinstance(value, str):
        return decode_data_uri(value, _LIMITS) if is_data_uri(value) else decode_image(_read(value), _LIMITS)
    if isinstance(value, np.ndarray):
        return Image.of(value)
    raise InvalidRequest(f"the row holds {type(value).__name__}, not a picture: allowed are bytes, a path or a struct")


def _read(path: str) -> bytes:
    files, place = locate(path)
    try:
        info = files.get_file_info(place)
        if info.type != arrow_fs.FileType.File:
            raise InvalidRequest(f"there is no file {path[:500]!r}")
        if info.size > _LIMITS.max_image_bytes:
            raise InvalidRequest(
                f"the file {path[:500]!r} has {info.size} bytes; allowed are {_LIMITS.max_image_bytes}"
            )
        with files.open_input_stream(place) as stream:
            data: bytes = stream.read()
    except OSError as error:
        raise InvalidRequest(f"the file {path[:500]!r} cannot be read: {str(error).splitlines()[0]}") from None
    return data
