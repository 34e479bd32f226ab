"""load_heads(): layers that are kept in files of their own, every tensor accounted for."""

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pooling.errors import CheckpointError
from pooling.heads import Head, activation_of
from pooling.heads.layers import Activated, Normalised
from pooling.loading.describe import Description
from pooling.loading.modules import Dense, Layer, LayerNorm

# Under which names Sentence Transformers, PyLate and FlagEmbedding save the one layer of a module.
_PREFIXES = ("linear.", "dense.", "norm.")


def load_heads(description: Description, device: torch.device) -> dict[str, Head]:
    """In float32, by name. Raises CheckpointError naming the file and what is missing, misshapen or unknown in it."""
    heads: dict[str, Head] = {}
    if description.files.layers:
        heads["projection"] = _module(nn.Sequential(*map(_layer, description.files.layers)), device)
    layers = description.token_layers
    if layers is not None:
        dim = int(description.config.hidden_size)
        for name, file, width in (("sparse", layers.sparse, 1), ("colbert", layers.colbert, dim)):
            heads[name] = _module(_filled(nn.Linear(dim, width, device="meta"), _pickled(file), file.name), device)
    return heads


def _module(module: nn.Module, device: torch.device) -> nn.Module:
    return module.to(device).eval().requires_grad_(False)


def _layer(layer: Layer) -> nn.Module:
    if isinstance(layer, LayerNorm):
        return _filled(nn.LayerNorm(layer.dimension, device="meta"), _read(layer.place), layer.place.name)
    if not isinstance(layer, Dense):
        return Normalised()
    linear = nn.Linear(layer.in_features, layer.out_features, layer.bias, device="meta")
    residual = None
    if layer.residual and layer.in_features != layer.out_features:
        residual = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    dense = Activated(linear, activation_of(layer.activation), residual, adds=layer.residual)
    return _filled(dense, _read(layer.place), layer.place.name)


def _filled(module: Any, tensors: dict[str, Tensor], where: str) -> nn.Module:
    """The module with its tensors in float32; its own names for them are those of the files without a prefix."""
    wanted = {_bare(name): (name, tuple(tensor.shape)) for name, tensor in module.state_dict().items()}
    given: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if _bare(name) in given:
            raise CheckpointError(f"{where} has two tensors for {_bare(name)!r}; one is allowed")
        given[_bare(name)] = tensor
    _refuse(where, "lacks", wanted.keys() - given.keys())
    _refuse(where, "has unknown", given.keys() - wanted.keys())
    for bare, (_, shape) in wanted.items():
        if tuple(given[bare].shape) != shape:
            raise CheckpointError(
                f"tensor {bare!r} of {where} has shape {list(given[bare].shape)}; its config asks for {list(shape)}"
            )
        if not given[bare].isfinite().all():
            raise CheckpointError(f"tensor {bare!r} of {where} holds NaN or infinity")
    module.load_state_dict({name: given[bare].float() for bare, (name, _) in wanted.items()}, assign=True)
    filled: nn.Module = module
    return filled


def _bare(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)


def _read(place: Path) -> dict[str, Tensor]:
    file = place / "model.safetensors"
    if not file.exists():
        return _pickled(place / "pytorch_model.bin")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{place.name}/{file.name} is damaged or cut short: {error}") from None


def _pickled(file: Path) -> dict[str, Tensor]:
    """weights_only: nothing in the file is run."""
    try:
        tensors: Any = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"the model has no {file.parent.name}/{file.name} nor a model.safetensors there"
        ) from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{file.name} is damaged or no file of weights: {str(error).splitlines()[0]}") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{file.name} holds no tensors by name")
    return tensors


def _refuse(where: str, verb: str, names: Iterable[str]) -> None:
    if named := sorted(names):
        raise CheckpointError(f"{where} {verb} tensor{'s' if len(named) > 1 else ''} {', '.join(map(repr, named))}")
