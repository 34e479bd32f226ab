"""shape_of(): the shape of a tensor by its name, read from a header, without torch."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from pooling.errors import CheckpointError


def shape_of(directory: Path, tensor: str) -> tuple[int, ...]:
    """Raises CheckpointError if no safetensors file of the directory holds the tensor."""
    for file in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as tensors:
                if tensor in tensors.keys():  # noqa: SIM118  (a safetensors file is no dict)
                    return tuple(tensors.get_slice(tensor).get_shape())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file.name} is damaged or cut short: {error}") from None
    raise CheckpointError(f"the checkpoint lacks tensor {tensor!r} in its safetensors files")
