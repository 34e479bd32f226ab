"""A model with random weights, drawn on the device when the engine reads them: 16 GB need not be written or copied."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig

from pooling.loading.checkpoint import Checkpoint
from pooling.parallel.shard import Part

# As transformers draws weights before training: small enough that no layer's output grows beyond a number format.
_STD = 0.02


class RandomCheckpoint(Checkpoint):
    """In the place of Checkpoint: has the tensors that the config.json of a directory asks for, and no file."""

    def __init__(self, directory: Path) -> None:
        config = AutoConfig.from_pretrained(directory)
        with torch.device("meta"):
            model = getattr(transformers, config.architectures[0])(config)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    @property
    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def read(self, name: str, dtype: torch.dtype, device: torch.device, part: Part | None = None) -> Tensor:
        """Noise for a matrix, ones for the weight of a norm, zeros for a bias."""
        if part is not None:
            raise ValueError("a random model is not split over ranks")
        shape = self._shapes[name]
        if len(shape) > 1:
            return torch.empty(shape, dtype=dtype, device=device).normal_(std=_STD)
        return (torch.zeros if name.endswith("bias") else torch.ones)(shape, dtype=dtype, device=device)


@contextmanager
def random_model(config: Mapping[str, Any], directory: Path) -> Iterator[str]:
    """The source of a model of that config, as the engine takes it, for as long as it is being loaded."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(dict(config), indent=1), encoding="utf-8")
    own = {name: RandomCheckpoint.__dict__[name] for name in ("__init__", "names", "shape", "read")}
    with patch.multiple(Checkpoint, **own):  # the class, wherever the engine has it from
        yield str(directory)
