"""read_embeds(): an image that a client has embedded itself, as torch or numpy saves it -> ImageEmbeds."""

import base64
import io
import math
import zipfile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pooling.errors import ImageTooLarge, InvalidRequest
from pooling.images import ImageLimits
from pooling.media import ImageEmbeds

_PARAM = "image_embeds"
_NPY = b"\x93NUMPY"
_ZIP = b"PK\x03\x04"


def read_embeds(text: str, grid: str | None, limits: ImageLimits) -> ImageEmbeds:
    """Base64 of rows [tokens, dim] or [1, tokens, dim] and of a grid [3] or [1, 3], as vLLM takes them.

    Nothing of what torch pickles is run, and what it would take in memory is
    judged before it is made, as max_image_bytes.
    Raises InvalidRequest or ImageTooLarge.
    """
    rows = _array(text, limits)
    if rows.dtype.kind != "f":
        raise InvalidRequest(f"image_embeds is of {rows.dtype}; allowed are floating-point numbers", _PARAM)
    if rows.ndim == 3 and len(rows) == 1:
        rows = rows[0]
    return ImageEmbeds(rows, None if grid is None else _grid(_array(grid, limits)))


def _grid(array: NDArray[Any]) -> tuple[int, int, int]:
    if array.dtype.kind not in "iu" or array.size != 3 or not (array > 0).all():
        raise InvalidRequest(
            f"image_grid_thw is {array.dtype} {list(array.shape)}; allowed are three whole numbers above zero", _PARAM
        )
    time, height, width = (int(one) for one in array.reshape(-1))
    return time, height, width


def _array(text: str, limits: ImageLimits) -> NDArray[Any]:
    if 3 * len(text) // 4 > limits.max_image_bytes:
        raise _too_large(limits)
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidRequest(f"image_embeds is not base64: {error}", _PARAM) from None
    if data.startswith(_NPY):
        return _of_numpy(data, limits)
    if data.startswith(_ZIP):
        return _of_torch(data, limits)
    raise InvalidRequest(
        "image_embeds is neither a tensor as torch.save() writes it nor an array as numpy.save() does", _PARAM
    )


def _of_numpy(data: bytes, limits: ImageLimits) -> NDArray[Any]:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        # numpy makes room for what the header promises, before it finds that the data is shorter.
        if math.prod(shape) * dtype.itemsize > len(data):
            raise ValueError("it is shorter than its header says")
        stream.seek(0)
        array: NDArray[Any] = np.load(stream, allow_pickle=False)
    except Exception as error:  # whatever numpy makes of hostile bytes
        raise _unreadable(error) from None
    return _small(array, limits)


def _of_torch(data: bytes, limits: ImageLimits) -> NDArray[Any]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in packed.infolist()):
                raise ValueError("it is compressed, which torch.save() does not do")
        tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch makes of hostile bytes
        raise _unreadable(error) from None
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise InvalidRequest("image_embeds holds something other than one dense tensor", _PARAM)
    # A tensor may repeat a few numbers a billion times without having them.
    if tensor.numel() * tensor.element_size() > limits.max_image_bytes:
        raise _too_large(limits)
    tensor = tensor.detach()
    try:
        return (tensor.float() if tensor.is_floating_point() else tensor).contiguous().numpy()
    except Exception as error:  # of types that numpy has not
        raise _unreadable(error) from None


def _small(array: NDArray[Any], limits: ImageLimits) -> NDArray[Any]:
    if array.nbytes > limits.max_image_bytes:
        raise _too_large(limits)
    return array


def _too_large(limits: ImageLimits) -> ImageTooLarge:
    return ImageTooLarge(
        f"image_embeds has more than {limits.max_image_bytes} bytes, which is the most allowed (max_image_bytes)",
        _PARAM,
    )


def _unreadable(error: Exception) -> InvalidRequest:
    lines = str(error).splitlines()
    reason = f": {lines[0][:200]}" if isinstance(error, ValueError) and lines else ""
    return InvalidRequest(f"image_embeds cannot be read{reason}", _PARAM)
