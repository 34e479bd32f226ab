"""The truth: transformers' own code in float32, eager attention, one text at a time, never padded."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

logging.set_verbosity_error()  # a backbone read from a checkpoint with a head is reported at length
logging.disable_progress_bar()

Rows = NDArray[np.float32]


class Reference:
    """model and pooling may be changed, to see what a mistake would do to the answer."""

    def __init__(
        self,
        directory: Path,
        pooling: str,
        normalize: bool,
        kind: Any = AutoModel,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.model: PreTrainedModel = kind.from_pretrained(
            directory, attn_implementation="eager", dtype=torch.float32
        ).eval()
        for name, value in (config or {}).items():
            setattr(self.model.config, name, value)
        self.pooling = pooling
        self.normalize = normalize

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def hidden(self, ids: list[int]) -> torch.Tensor:
        """The last hidden state of one text: [tokens, dim]."""
        with torch.inference_mode():
            return self.model(input_ids=torch.tensor([ids])).last_hidden_state[0]

    def embed(self, text: str) -> Rows:
        """[dim]"""
        hidden = self.hidden(self.ids(text))
        reduce = {
            "CLS": lambda: hidden[0],
            "LAST": lambda: hidden[-1],
            "MEAN": lambda: hidden.mean(0),
            "MAX": lambda: hidden.max(0).values,
        }
        return self._finish(reduce[self.pooling]())

    def token_embed(self, text: str) -> Rows:
        """[tokens, dim]"""
        return self._finish(self.hidden(self.ids(text)))

    def _finish(self, rows: torch.Tensor) -> Rows:
        if self.normalize:
            rows = torch.nn.functional.normalize(rows, dim=-1)
        return rows.numpy().copy()


def relative_error(actual: Rows, expected: Rows) -> float:
    """The largest difference, in units of the expected answer's largest component."""
    assert actual.shape == expected.shape, f"{actual.shape} is not {expected.shape}"
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def cosines(actual: Rows, expected: Rows) -> Rows:
    """Of the rows, each with its own: [rows]."""
    norms = np.linalg.norm(actual, axis=-1) * np.linalg.norm(expected, axis=-1)
    return np.asarray((actual * expected).sum(-1) / norms)
