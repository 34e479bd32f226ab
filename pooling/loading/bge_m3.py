"""bge-m3's two linear layers over the tokens of an XLM-R, each in a file of its own beside the weights."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig

from pooling.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class TokenLayers:
    """Files with weight and bias. sparse: a number for each token. colbert: a vector of the hidden size for each."""

    sparse: Path
    colbert: Path


def token_layers(backbone: Path) -> TokenLayers | None:
    """None for a model without them. Raises CheckpointError if one of the two files is missing."""
    layers = TokenLayers(backbone / "sparse_linear.pt", backbone / "colbert_linear.pt")
    there = [file.name for file in (layers.sparse, layers.colbert) if file.exists()]
    if len(there) == 1:
        raise CheckpointError(
            f"the model has {there[0]} only; bge-m3 has sparse_linear.pt and colbert_linear.pt, other models neither"
        )
    return layers if there else None


def edges(config: PreTrainedConfig) -> tuple[int | None, int | None]:
    """The tokens around every input, which stand for none of its words. Source: vLLM's BOSEOSFilter."""
    return config.bos_token_id, config.eos_token_id
