"""refuse_bad_source(): what is wrong with a model's files that can be seen without reading them."""

import json
from pathlib import Path

from pooling.errors import CheckpointError
from pooling.loading.source import locate

# A safetensors file: the length of its header in 8 bytes, the header as JSON, then the tensors without a gap.
_LENGTH_BYTES = 8


def refuse_bad_source(source: str) -> None:
    """Raises SourceError for a source that is not there, CheckpointError for weights that are cut short.

    Takes milliseconds and neither torch nor transformers: replicas judge all
    the rest, but only after half a minute of starting, and in several voices.
    """
    for file in sorted(locate(source).rglob("*.safetensors")):
        _refuse_cut_short(file)


def _refuse_cut_short(file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if length > size - _LENGTH_BYTES:
            raise CheckpointError(f"{file.name} is cut short: it has {size} bytes, but its header alone has {length}")
        try:
            header = json.loads(stream.read(length))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            raise CheckpointError(f"{file.name} is damaged: its header is not that of a safetensors file") from None
    whole = _LENGTH_BYTES + length + end
    if size < whole:
        raise CheckpointError(f"{file.name} is cut short: it has {size} of {whole} bytes")
