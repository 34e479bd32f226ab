"""Reductions of token vectors to an input's rows: [tokens, dim] and lengths [inputs] -> rows."""

from typing import Protocol

from torch import Tensor

from pooling.config import PoolingType
from pooling.poolers.all import AllPooler
from pooling.poolers.cls import ClsPooler
from pooling.poolers.last import LastPooler
from pooling.poolers.max import MaxPooler
from pooling.poolers.mean import MeanPooler


class Pooler(Protocol):
    """hidden [tokens, dim] of inputs laid end to end, lengths [inputs] -> float32 rows."""

    def __call__(self, hidden: Tensor, lengths: Tensor) -> Tensor: ...


POOLERS: dict[PoolingType, Pooler] = {
    "CLS": ClsPooler(),
    "LAST": LastPooler(),
    "MEAN": MeanPooler(),
    "MAX": MaxPooler(),
    "ALL": AllPooler(),
}
