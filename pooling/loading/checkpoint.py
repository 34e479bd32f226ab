"""Checkpoint: the tensors of a model's safetensors files, by name, read one at a time."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pooling.errors import CheckpointError
from pooling.loading.files import read_json
from pooling.parallel.shard import Part

_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class Checkpoint:
    """The tensors of one model directory: `names` and `shape()` cost nothing, `read()` reads one tensor.

    Raises CheckpointError for a file that is missing, cut short or not safetensors.
    """

    def __init__(self, directory: Path) -> None:
        self._files: dict[str, Any] = {}
        self._file_of: dict[str, Any] = {}
        for name in _file_names(directory):
            file = _open(directory / name)
            self._files[name] = file
            for tensor in file.keys():  # noqa: SIM118  (a safetensors file is no dict)
                self._file_of[tensor] = file

    @property
    def names(self) -> list[str]:
        return list(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file_of[name].get_slice(name).get_shape())

    def read(self, name: str, dtype: torch.dtype, device: torch.device, part: Part | None = None) -> Tensor:
        """One tensor, or a part of it, in the wanted dtype, its memory our own: the file may go away afterwards.

        Of a part no more than that is read. Raises CheckpointError for NaN or
        infinity, which a weight also becomes if it is too large for float16.
        """
        if part is None:
            return self._ours(name, self._file_of[name].get_tensor(name), dtype, device)
        stored = self._file_of[name].get_slice(name)
        before = (slice(None),) * part.dim
        pieces = [stored[(*before, slice(start, stop))] for start, stop in part.ranges]
        return self._ours(name, pieces[0] if len(pieces) == 1 else torch.cat(pieces, part.dim), dtype, device)

    def read_rows(self, name: str, rows: list[int], device: torch.device) -> Tensor:
        """Some rows of one tensor in float32, in the order they are asked for: [rows, ...]; no other is read."""
        table = self._file_of[name].get_slice(name)
        picked = torch.cat([table[row : row + 1] for row in rows])
        return self._ours(name, picked, torch.float32, device)

    def _ours(self, name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
        if tensor.is_floating_point() and tensor.element_size() == 1:
            raise CheckpointError(
                f"tensor {name!r} holds {str(tensor.dtype).removeprefix('torch.')}; quantised checkpoints are not "
                "supported"
            )
        tensor = tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None, copy=True)
        if not tensor.isfinite().all():
            raise CheckpointError(f"tensor {name!r} holds NaN or infinity as {str(dtype).removeprefix('torch.')}")
        return tensor


def _file_names(directory: Path) -> list[str]:
    if (directory / _ONE).exists():  # beside an index it is the one that transformers reads
        return [_ONE]
    if (directory / _INDEX).exists():
        return _listed(read_json(directory / _INDEX))
    if any(directory.glob("*.bin")):
        raise CheckpointError(
            f"the model has weights as .bin only, which can run code when read; convert them to {_ONE} with "
            "AutoModel.from_pretrained(DIR).save_pretrained(DIR) in an environment you trust"
        )
    raise CheckpointError(f"the model has no weights; expected {_ONE} or {_INDEX}")


def _listed(index: Any) -> list[str]:
    files = index.get("weight_map") if isinstance(index, dict) else None
    names = list(files.values()) if isinstance(files, dict) else [None]
    # A name alone: a path could lead out of the model's directory.
    known = [name for name in names if isinstance(name, str) and name == Path(name).name]
    if len(known) < len(names):
        raise CheckpointError(f"{_INDEX} has no weight_map from the names of tensors to those of files beside it")
    return sorted(set(known))


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except FileNotFoundError:
        raise CheckpointError(f"{file.name} is named by {_INDEX} but is not there") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file.name} is damaged or cut short: {error}") from None
