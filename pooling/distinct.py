"""distinct(): inputs that a batch repeats are computed once."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pooling.request import PackedBatch, PooledOutput


@dataclass(frozen=True, slots=True)
class Distinct:
    """A batch without its repeats.

    firsts: where each of its inputs first stands in the batch as given. answer_of
    [inputs as given]: which of its inputs answers each.
    """

    batch: PackedBatch
    firsts: NDArray[np.int64]
    answer_of: NDArray[np.int64]

    def repeat(self, output: PooledOutput) -> PooledOutput:
        """The answers to the batch as given."""
        if output.lengths is None:
            return PooledOutput(output.data[self.answer_of], None, output.timing)
        rows = output.rows()
        data = np.concatenate([rows[index] for index in self.answer_of])
        return PooledOutput(data, output.lengths[self.answer_of], output.timing)


def distinct(batch: PackedBatch) -> Distinct | None:
    """None if no input is repeated; images and texts in segments are not compared."""
    if len(batch) == 1 or batch.media is not None or batch.segments is not None:
        return None
    bounds = batch.offsets().tolist()
    raw, size = batch.ids.tobytes(), batch.ids.itemsize
    texts = [raw[start * size : stop * size] for start, stop in pairwise(bounds)]
    marks = [(0, 0)] * len(batch)  # of two inputs with the same ids, what tells them apart
    if batch.second is not None or batch.attended is not None:
        sides = (batch.lengths if given is None else given for given in (batch.second, batch.attended))
        marks = list(zip(*(side.tolist() for side in sides), strict=True))
    known: dict[tuple[bytes, tuple[int, int]], int] = {}
    answer_of = np.fromiter(
        (known.setdefault(one, len(known)) for one in zip(texts, marks, strict=True)), np.int64, len(batch)
    )
    if len(known) == len(batch):
        return None
    firsts = np.unique(answer_of, return_index=True)[1]
    return Distinct(batch.take(firsts, batch.offsets()), firsts, answer_of)
