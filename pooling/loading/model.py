"""load_model(): transformers' own module, filled from safetensors, every tensor accounted for."""

import inspect
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModel, AutoModelForTextEncoding, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from pooling.loading.checkpoint import Checkpoint
from pooling.loading.matching import match


def load_model(
    checkpoint: Checkpoint, config: PreTrainedConfig, attention: str, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """The model without any head, in evaluation mode, its weights in `dtype` on `device`.

    Of an encoder-decoder it is the encoder. `attention` names a function
    registered with transformers. Raises CheckpointError that names each tensor
    which is missing, misshapen or unknown to the model's architecture.
    """
    model = _skeleton(config, attention)
    found = match(model, checkpoint, config)
    state = {
        name: checkpoint.read(source, _dtype_of(name, model, dtype), device) for name, source in found.source_of.items()
    }
    for pieces in found.pieces:
        state |= pieces.read(model, checkpoint, dtype, device)
    state |= {twin: state[name] for twin, name in found.twins.items()}
    model.load_state_dict(state, strict=False, assign=True)
    module: nn.Module = model
    return cast(PreTrainedModel, module.to(device).eval().requires_grad_(False))


class _WeightsWithoutMemory(TorchFunctionMode):
    """Puts what torch.empty makes, i.e. weights, on the meta device; computed buffers stay real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _skeleton(config: PreTrainedConfig, attention: str) -> PreTrainedModel:
    config._attn_implementation = attention
    encoders, models = AutoModelForTextEncoding._model_mapping, AutoModel._model_mapping
    kinds: Any = (encoders if type(config) in encoders else models)[type(config)]
    kind: Any = kinds[0] if isinstance(kinds, (list, tuple)) else kinds
    # A BERT's own tanh pooler is no part of any pooling we do.
    extra = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind).parameters else {}
    with _WeightsWithoutMemory(), no_init_weights():
        return cast(PreTrainedModel, kind(config, **extra))


def _dtype_of(name: str, model: PreTrainedModel, dtype: torch.dtype) -> torch.dtype:
    """float32 for the layers that overflow in float16, as T5's last ones, and for what is computed, as frequencies."""
    if name in dict(model.named_buffers()):
        return torch.float32
    kept = set(model._keep_in_fp32_modules_strict or []) if dtype != torch.float32 else set()
    if dtype == torch.float16:
        kept |= set(model._keep_in_fp32_modules or [])
    return torch.float32 if kept & set(name.split(".")) else dtype
