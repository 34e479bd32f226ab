"""Checkpoints with a head: the small models of tests/checkpoints.py under transformers' own classes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests.checkpoints import EVERY
from tests.checkpoints.writing import sharpen

Rows = NDArray[np.float32]

AUTO_CLASSES: dict[str, Any] = {
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
}


@dataclass(frozen=True)
class Headed:
    """A family of tests/checkpoints.py with a head over inputs or over tokens.

    changes: of the configuration, e.g. how the class pools.
    """

    family: str
    head: str
    labels: int = 3
    changes: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return "-".join([self.family, self.head, str(self.labels), *(str(value) for _, value in self.changes)])

    def write(self, directory: Path) -> Path:
        body, tokenizer = EVERY[self.family].build()
        config = body.config
        config.update({"num_labels": self.labels, **dict(self.changes)})
        if config.pad_token_id is None:
            config.pad_token_id = tokenizer.pad_token_id
        model = AUTO_CLASSES[self.head].from_config(config)
        sharpen(model, seed=len(str(self)))
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return directory

    def exists(self) -> bool:
        """Whether transformers has such a class for the family, of the stack of layers that we run."""
        config = EVERY[self.family].build()[0].config
        both_stacks = self.head == "sequence" and hasattr(config, "num_decoder_layers")
        in_its_name = not EVERY[self.family].edit
        return type(config) in AUTO_CLASSES[self.head]._model_mapping and in_its_name and not both_stacks


class HeadReference:
    """The truth: the class itself, in float32 and eager attention, one input at a time, never padded."""

    def __init__(self, directory: Path, one: Headed) -> None:
        self.tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(directory)
        kind = AUTO_CLASSES[one.head]
        self.model: PreTrainedModel = kind.from_pretrained(
            directory, attn_implementation="eager", dtype=torch.float32
        ).eval()
        for name, value in EVERY[one.family].config.items():
            setattr(self.model.config, name, value)

    def logits(self, *texts: str) -> Rows:
        """[labels], or [tokens, labels]; of a text or of a pair."""
        encoded = self.tokenizer(*texts, return_tensors="pt")
        names = ("input_ids", "token_type_ids")
        with torch.inference_mode():
            answer = self.model(**{name: encoded[name] for name in names if name in encoded})
        rows: Rows = answer.logits[0].float().numpy().copy()
        return rows
