"""What callers give as input, in the one shape that intake takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pooling.errors import InvalidRequest
from pooling.request import Prompt


def as_inputs(given: Any) -> Sequence[Prompt]:
    """One item for each input: a text alone, or a flat list of token ids, is one input.

    Raises InvalidRequest for what is neither text nor a list; intake judges the items.
    """
    if isinstance(given, str):
        return [given]
    if not isinstance(given, Sequence | np.ndarray):
        raise InvalidRequest(
            f"input is {type(given).__name__}; allowed are text, token ids, or a list of either", "input"
        )
    if isinstance(given, np.ndarray):
        return [given] if given.ndim == 1 and given.dtype.kind in "iu" else list(given)
    if len(given) and isinstance(given[0], int | np.integer):
        return [given]
    return list(given)
