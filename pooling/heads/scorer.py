"""ScorerHead: the logits of a few tokens, by the output layer of a causal language model and its class's own code."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pooling.heads.transformers_head import TransformersHead


class ScorerHead:
    """rows [n, dim] float32 -> [n, tokens], or [n, 1], the second logit less the first, if the difference is asked for.

    The class scales and caps its logits as ever; softmax over two logits is the
    sigmoid of their difference. Takes the backbone out of `model`, whose output
    layer is that of `narrow`.
    """

    def __init__(self, model: PreTrainedModel, tokens: int, difference: bool) -> None:
        self._logits = TransformersHead(model, tokens)
        self.backbone = self._logits.backbone
        self._difference = difference

    def __call__(self, rows: Tensor) -> Tensor:
        logits = self._logits(rows)
        return logits[:, 1:] - logits[:, :1] if self._difference else logits


def narrow(model: PreTrainedModel, weight: Tensor, bias: Tensor | None) -> None:
    """Gives the model an output layer of the rows `weight` [tokens, dim] alone, with their `bias` [tokens]."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    cast(Any, model).set_output_embeddings(layer)
