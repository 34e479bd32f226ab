"""Family: a checkpoint and what its answer must be."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerFast

from tests.checkpoints.writing import read_json, sharpen, write_json, write_sentence_transformers
from tests.reference import Reference

Build = Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerFast]]


@dataclass(frozen=True)
class Family:
    """A checkpoint and what its answer must be.

    pooling is None where no Sentence Transformers files are written: then the
    defaults of the family apply, `expected_pooling`, and vectors are normalised.
    max_model_len is what the files, taken together, allow; path is how the
    engine must run it. The weights are stored in `dtype`. `edit` is written
    over config.json; `kind` and `config` are how transformers reads it as meant.
    """

    name: str
    build: Build
    expected_pooling: str
    max_model_len: int
    pooling: str | None = None
    normalize: bool = True
    max_seq_length: int | None = None
    shards: str = "1GB"
    path: str = "packed"
    dtype: torch.dtype = torch.float32
    edit: dict[str, Any] = field(default_factory=dict)
    kind: Any = AutoModel
    config: dict[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> Path:
        model, tokenizer = self.build()
        sharpen(model, seed=len(self.name))
        model.to(self.dtype).save_pretrained(directory, max_shard_size=self.shards)
        tokenizer.save_pretrained(directory)
        write_json(directory / "config.json", read_json(directory / "config.json") | self.edit)
        if self.pooling is not None:
            write_sentence_transformers(directory, self.pooling, self.normalize, self.max_seq_length)
        return directory

    def reference(self, directory: Path) -> Reference:
        return Reference(directory, self.expected_pooling, self.normalize, self.kind, self.config)
