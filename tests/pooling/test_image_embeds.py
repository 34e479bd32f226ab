"""Images that a client has embedded itself: read as torch and numpy write them, and never run, unpacked or blown up."""

import base64
import io
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pooling.errors import ImageTooLarge, InvalidRequest
from pooling.image_embeds import read_embeds
from pooling.images import ImageLimits

LIMITS = ImageLimits(max_image_bytes=100_000)


def as_torch(value: Any) -> str:
    stream = io.BytesIO()
    torch.save(value, stream)
    return base64.b64encode(stream.getvalue()).decode()


def as_npy(array: np.ndarray, **options: Any) -> str:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return base64.b64encode(stream.getvalue()).decode()


@pytest.mark.parametrize("shape", [(5, 3), (1, 5, 3)])
@pytest.mark.parametrize(
    "written",
    [lambda rows: as_torch(torch.tensor(rows)), lambda rows: as_torch(torch.tensor(rows).bfloat16()), as_npy],
    ids=["torch", "bfloat16", "numpy"],
)
def test_rows_are_read(written: Callable[[Any], str], shape: tuple[int, ...]) -> None:
    rows = np.arange(15, dtype=np.float32).reshape(shape)
    embeds = read_embeds(written(rows), None, LIMITS)
    np.testing.assert_array_equal(embeds.rows, rows.reshape(5, 3))
    assert embeds.grid is None


@pytest.mark.parametrize("grid", [[1, 4, 6], [[1, 4, 6]]])
def test_a_grid_is_read(grid: Any) -> None:
    rows = as_npy(np.zeros((6, 3), np.float16))
    assert read_embeds(rows, as_torch(torch.tensor(grid)), LIMITS).grid == (1, 4, 6)


class Harmful:
    def __reduce__(self) -> Any:
        return (print, ("I ran",))


def _unpacking(count: int) -> str:
    """A tensor in a ZIP file that unpacks to far more than it is."""
    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save(torch.zeros(count, 4), plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    return base64.b64encode(packed.getvalue()).decode()


def _lying_npy() -> str:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**3)})
    return base64.b64encode(stream.getvalue()).decode()


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", InvalidRequest, "neither a tensor"),
        ("****", InvalidRequest, "is not base64"),
        (base64.b64encode(b"hello").decode(), InvalidRequest, "neither a tensor"),
        (base64.b64encode(pickle.dumps(Harmful())).decode(), InvalidRequest, "neither a tensor"),
        (as_torch(Harmful()), InvalidRequest, "image_embeds cannot be read"),
        (as_torch({"a": torch.zeros(2, 2)}), InvalidRequest, "other than one dense tensor"),
        (as_torch(torch.eye(3).to_sparse()), InvalidRequest, "other than one dense tensor"),
        (as_torch(torch.zeros(3, 2, dtype=torch.int64)), InvalidRequest, "of int64; allowed are floating-point"),
        (as_torch(torch.zeros(3)), InvalidRequest, "allowed is a float array of [tokens, components]"),
        (as_torch(torch.full((2, 2), torch.nan)), InvalidRequest, "NaN or infinity"),
        (as_torch(torch.zeros(1).expand(10**7, 10**4)), ImageTooLarge, "more than 100000 bytes"),
        (as_torch(torch.zeros(40_000)), ImageTooLarge, "more than 100000 bytes"),
        (_unpacking(10**6), InvalidRequest, "it is compressed, which torch.save() does not do"),
        (_lying_npy(), InvalidRequest, "it is shorter than its header says"),
        (as_npy(np.array([Harmful()], dtype=object), allow_pickle=True), InvalidRequest, "cannot be read"),
        (as_npy(np.zeros((2, 2), np.complex64)), InvalidRequest, "of complex64; allowed are floating-point"),
    ],
)
def test_what_is_no_tensor_is_refused(
    text: str, error: type[InvalidRequest], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error) as refusal:
        read_embeds(text, None, LIMITS)
    assert said in refusal.value.detail
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("grid", [[1, 4], [0, 4, 6], [1.0, 4.0, 6.0]])
def test_a_grid_is_three_whole_numbers(grid: Any) -> None:
    with pytest.raises(InvalidRequest, match="allowed are three whole numbers above zero"):
        read_embeds(as_npy(np.zeros((6, 3), np.float32)), as_torch(torch.tensor(grid)), LIMITS)
