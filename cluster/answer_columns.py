"""An answer to some of the rows as an Arrow column of all of them: null where a row has none."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.row_engine import Places
from pooling.request import PooledOutput, Rows


def vectors(count: int, width: int, rows: Places, output: PooledOutput | None) -> pa.Array:
    """[rows, width] as fixed-size lists of float32."""
    data = np.zeros((count, width), np.float32)
    if output is not None:
        data[rows] = output.data
    return pa.FixedSizeListArray.from_arrays(pa.array(data.reshape(-1)), width, mask=pa.array(_without(count, rows)))


def numbers(count: int, rows: Places, values: Rows | None) -> pa.Array:
    """[rows] as float32."""
    data = np.zeros(count, np.float32)
    if values is not None:
        data[rows] = values
    return pa.array(data, mask=_without(count, rows))


def vectors_of_tokens(count: int, width: int, rows: Places, output: PooledOutput | None) -> pa.Array:
    """[tokens, width] for each row, as lists of fixed-size lists of float32."""
    lengths, flat = np.zeros(count, np.int64), np.zeros(0, np.float32)
    if output is not None and output.lengths is not None:
        lengths[rows], flat = output.lengths, output.data.reshape(-1)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens = pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
    return pa.ListArray.from_arrays(pa.array(offsets), tokens, mask=pa.array(_without(count, rows)))


def _without(count: int, rows: Places) -> NDArray[np.bool_]:
    missing = np.ones(count, bool)
    missing[rows] = False
    return missing
