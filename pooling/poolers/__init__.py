"""Reductions of token vectors to one row for each input: [tokens, dim] and lengths [inputs] -> [inputs, dim].

The token tasks' ALL and STEP reduce nothing: which tokens keep their rows is known before the forward pass.
"""

from typing import Protocol

from torch import Tensor

from pooling.poolers.cls import ClsPooler
from pooling.poolers.last import LastPooler
from pooling.poolers.max import MaxPooler
from pooling.poolers.mean import MeanPooler
from pooling.poolers.mean_sqrt_len import MeanSqrtLenPooler
from pooling.poolers.weighted_mean import WeightedMeanPooler


class Pooler(Protocol):
    """hidden [tokens, dim] of inputs laid end to end, lengths [inputs] -> float32 rows [inputs, dim]."""

    def __call__(self, hidden: Tensor, lengths: Tensor) -> Tensor: ...


POOLERS: dict[str, Pooler] = {
    "CLS": ClsPooler(),
    "LAST": LastPooler(),
    "MEAN": MeanPooler(),
    "MAX": MaxPooler(),
    "WEIGHTEDMEAN": WeightedMeanPooler(),
    "MEAN_SQRT_LEN": MeanSqrtLenPooler(),
}
