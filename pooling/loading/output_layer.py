"""The output layer of a causal language model, of which a scorer needs a few rows."""

from typing import Any

import torch
from torch import Tensor, nn

from pooling.errors import CheckpointError
from pooling.loading.checkpoint import Checkpoint


def remove_output_layer(model: Any) -> str:
    """Takes the layer out of the model, so that nothing waits for its weights; answers its name."""
    layer = model.get_output_embeddings()
    name = next((str(name) for name, module in model.named_modules() if module is layer), None)
    if name is None:
        raise CheckpointError(f"{type(model).__name__} has no output layer, whose rows a score is made of")
    model.set_output_embeddings(nn.Identity())
    return name


def read_output_rows(
    checkpoint: Checkpoint,
    model: Any,
    layer: str,
    source_of: dict[str, str],
    rows: list[int],
    device: torch.device,
) -> tuple[Tensor, Tensor | None]:
    """The rows of the layer's weight [rows, dim] and bias [rows] in float32.

    Of tied weights they are those of the embedding, unless the checkpoint has the
    layer all the same, which transformers then takes. source_of maps tensors of
    the model to those of the checkpoint. Raises CheckpointError if there is no layer.
    """
    named = f"{layer}.weight"
    if named not in checkpoint.names and getattr(model.config, "tie_word_embeddings", False):
        table = model.get_input_embeddings()
        own = next(name for name, module in model.named_modules() if module is table)
        named = source_of[f"{own}.weight"]
    if named not in checkpoint.names:
        raise CheckpointError(f"the checkpoint lacks tensor {named!r}, the output layer whose rows a score is made of")
    bias = f"{layer}.bias"
    return (
        checkpoint.read_rows(named, rows, device),
        checkpoint.read_rows(bias, rows, device) if bias in checkpoint.names else None,
    )
