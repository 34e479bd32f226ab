"""How many operations a model needs for an input: counted on a model without weights, attention included."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, PreTrainedConfig

_LENGTHS = (32, 64, 128)


@dataclass(frozen=True)
class ModelFlops:
    """An input of n tokens takes `a_token * n + a_pair * n**2` operations, a multiply-add counted as two.

    A sliding window is not taken off, nor what a causal model does not look at:
    such a model needs less than is counted.
    """

    a_token: float
    a_pair: float

    @classmethod
    def count(cls, config: PreTrainedConfig) -> Self:
        """Counts at three lengths and solves; what does not grow with length is a pooler of one row, not ours."""
        with torch.device("meta"):
            auto: Any = AutoModel
            model = auto.from_config(config, attn_implementation="eager").eval()
        a_pair, a_token, _ = np.polyfit(_LENGTHS, [_count(model, tokens) for tokens in _LENGTHS], 2)
        return cls(float(a_token), float(a_pair))

    def of(self, lengths: np.ndarray) -> float:
        """Operations for all inputs; lengths [inputs] in tokens."""
        sizes = lengths.astype(np.float64)
        return float((self.a_token * sizes + self.a_pair * sizes**2).sum())


@torch.inference_mode()
def _count(model: torch.nn.Module, tokens: int) -> int:
    ids = torch.ones(1, tokens, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids)
    return int(counter.get_total_flops())
