"""TransformersHead: the head of a transformers model, in its own code, over rows that are pooled already."""

import copy
import threading
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions as BackboneOutput


class TransformersHead:
    """rows [n, dim] float32 -> [n, width]: what a `...ForSequenceClassification` and its like make of each.

    The model is called as ever, with its backbone replaced by one that answers
    the rows it was given, each as a sequence of one token: whatever the class
    does next is then its own code, for every family. Takes the backbone out of
    `model`, and the backbone's pooler with it.
    """

    def __init__(self, model: PreTrainedModel, width: int) -> None:
        self._width = width
        backbone: Any = model.base_model
        self._given = _Given(getattr(backbone, "pooler", None), getattr(backbone, "pooler_activation", None))
        if self._given.pooler is not None:
            backbone.pooler = None
        setattr(model, model.base_model_prefix, self._given)
        # Classes that look for the last token before padding need an id to look for; here there is none.
        model.config = copy.copy(model.config)
        model.config.pad_token_id = 0
        self._model = model
        self.backbone: PreTrainedModel = backbone

    def __call__(self, rows: Tensor) -> Tensor:
        if not len(rows):
            return rows.new_empty(0, self._width)
        return self._read(rows[:, None]).flatten(0, -2)

    def of_sequence(self, hidden: Tensor) -> Tensor:
        """What the class makes of one whole input, hidden [tokens, dim] float32, pooling as it pleases: [width] or
        [tokens, width]."""
        return self._read(hidden[None])[0]

    def _read(self, hidden: Tensor) -> Tensor:
        self._given.now.hidden = hidden
        ids = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        logits: Tensor = self._model(input_ids=ids).logits
        self._given.now.hidden = None
        return logits.float()


class _Given(nn.Module):
    """Stands where the backbone stood; each thread gives it the rows of its own part of a step."""

    def __init__(self, pooler: nn.Module | None, activation: nn.Module | None) -> None:
        super().__init__()
        self.pooler, self._activation = pooler, activation
        self.now = _Now()

    def forward(self, *_: Any, **__: Any) -> BackboneOutput:
        hidden, pooled = self.now.hidden, None
        assert hidden is not None
        if isinstance(self.pooler, nn.Linear):  # ALBERT's is the layer alone
            assert self._activation is not None
            pooled = self._activation(self.pooler(hidden[:, 0]))
        elif self.pooler is not None:
            pooled = self.pooler(hidden)
        answer: Any = BackboneOutput(last_hidden_state=hidden, pooler_output=pooled)
        answer.rope_deltas = None  # handed on by Qwen-VL's classes in transformers 5.17
        return cast(BackboneOutput, answer)


class _Now(threading.local):
    hidden: Tensor | None = None
