"""load_model(): transformers' own module, filled from safetensors, every tensor accounted for."""

import inspect
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from pooling.errors import CheckpointError
from pooling.heads import Head
from pooling.heads.scorer import ScorerHead, narrow
from pooling.heads.transformers_head import TransformersHead
from pooling.loading.anatomy import Kind
from pooling.loading.checkpoint import Checkpoint
from pooling.loading.describe import Description
from pooling.loading.output_layer import read_output_rows, remove_output_layer
from pooling.loading.scorer import Scorer
from pooling.loading.tokenizer import TextTokenizer

# Buffers that older releases of transformers saved and newer ones rebuild.
_REBUILT = re.compile(r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|attn\.bias|attention\.bias)$")
_HEADED = ("AutoModelForPreTraining", "AutoModelForMaskedLM", "AutoModelForCausalLM")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """backbone: the stack of layers, in the model's dtype. heads: by name, what reads pooled rows, in float32."""

    backbone: PreTrainedModel
    heads: dict[str, Head]


def load_model(
    checkpoint: Checkpoint, description: Description, attention: str, dtype: torch.dtype, device: torch.device
) -> LoadedModel:
    """The model in evaluation mode on `device`.

    `attention` names a function registered with transformers. Raises
    CheckpointError that names each tensor which is missing, misshapen or
    unknown to the model's architecture.
    """
    config = description.config
    config._attn_implementation = attention
    whole = _SKELETONS[description.anatomy.kind](description)
    scorer = description.anatomy.scorer
    output_layer = remove_output_layer(whole) if scorer is not None else ""
    source_of = _match(whole, checkpoint, config)
    state = {
        name: checkpoint.read(source, dtype if _in_backbone(whole, name) else torch.float32, device)
        for name, source in source_of.items()
    }
    whole.load_state_dict(state, strict=False, assign=True)
    if scorer is not None:
        rows = _token_ids(description, scorer)
        narrow(whole, *read_output_rows(checkpoint, whole, output_layer, source_of, rows, device))
    whole.to(device).eval().requires_grad_(False)
    if description.anatomy.kind == "embedder":
        return LoadedModel(whole, {})
    if isinstance(whole, RewardModel):
        return LoadedModel(whole.model, {"reward": whole.score})
    if scorer is not None:
        scores = ScorerHead(whole, len(scorer.tokens), scorer.difference)
        return LoadedModel(scores.backbone, {"scorer": scores})
    head = TransformersHead(whole, len(description.anatomy.labels))
    return LoadedModel(head.backbone, {"classifier": head})


def _backbone(description: Description) -> PreTrainedModel:
    kinds: Any = AutoModel._model_mapping[type(description.config)]
    kind: Any = kinds[0] if isinstance(kinds, (list, tuple)) else kinds
    # A BERT's own tanh pooler is no part of any pooling we do.
    extra = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind).parameters else {}
    return _without_memory(kind, description.config, **extra)


def _with_head(description: Description) -> PreTrainedModel:
    name = description.anatomy.architecture
    kind = getattr(transformers, name, None)
    if kind is None:
        raise CheckpointError(f"architecture {name} is not one that transformers {transformers.__version__} has")
    return _without_memory(kind, description.config)


def _token_ids(description: Description, scorer: Scorer) -> list[int]:
    """The rows of the output layer that a scorer reads."""
    vocabulary = int(description.config.vocab_size)
    ids = [token for token in scorer.tokens if isinstance(token, int)]
    if len(ids) < len(scorer.tokens):
        tokenizer = TextTokenizer.load(description.backbone)
        ids = [token if isinstance(token, int) else tokenizer.id_of(token) for token in scorer.tokens]
    if not all(0 <= token < vocabulary for token in ids):
        raise CheckpointError(f"the tokens of a score have the ids {ids}, but the vocabulary has 0 to {vocabulary - 1}")
    return ids


def _with_reward(description: Description) -> "RewardModel":
    model: Any = _without_memory(RewardModel, _backbone(description), len(description.anatomy.labels))
    return cast(RewardModel, model)


_SKELETONS: dict[Kind, Callable[[Description], Any]] = {
    "embedder": _backbone,
    "classifier": _with_head,
    "token_classifier": _with_head,
    "reward": _with_reward,
    "scorer": _with_head,
}


class RewardModel(nn.Module):
    """A causal backbone with two linear layers over every token, as Qwen2ForRewardModel is saved."""

    base_model_prefix = "model"

    def __init__(self, backbone: PreTrainedModel, labels: int) -> None:
        super().__init__()
        self.model = backbone
        dim = int(backbone.config.hidden_size)
        self.score = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, labels))


def _in_backbone(whole: Any, name: str) -> bool:
    """Whether a tensor is part of the stack of layers; a pooler that it carries belongs to the head."""
    if not _is_headed(whole):
        return True
    inside = name.removeprefix(f"{whole.base_model_prefix}.")
    return inside != name and not inside.startswith("pooler.")


def _is_headed(whole: Any) -> bool:
    return hasattr(whole, whole.base_model_prefix)


def _without_memory(kind: Any, *args: Any, **keywords: Any) -> PreTrainedModel:
    with _WeightsWithoutMemory(), no_init_weights():
        return cast(PreTrainedModel, kind(*args, **keywords))


class _WeightsWithoutMemory(TorchFunctionMode):
    """Puts what torch.empty makes, i.e. weights, on the meta device; computed buffers stay real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _match(model: Any, checkpoint: Checkpoint, config: PreTrainedConfig) -> dict[str, str]:
    """Which checkpoint tensor fills which tensor of the model; raises unless all of both are accounted for."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    source_of: dict[str, str] = {}
    unused: list[str] = []
    for name in checkpoint.names:
        own = next((alias for alias in _aliases(name, model.base_model_prefix) if alias in wanted), None)
        if own is None:
            unused.append(name)
        elif own in source_of:
            raise CheckpointError(f"tensors {source_of[own]!r} and {name!r} both fill {own!r}; one is allowed")
        else:
            source_of[own] = name
    _refuse("lacks", [name for name in wanted if name not in source_of and not _REBUILT.search(name)])
    _refuse("has unknown", _unknown(unused, model, config) if unused else [])
    for own, name in source_of.items():
        if checkpoint.shape(name) != wanted[own]:
            raise CheckpointError(
                f"tensor {name!r} has shape {list(checkpoint.shape(name))}; the configuration asks for "
                f"{list(wanted[own])}"
            )
    return source_of


def _aliases(name: str, prefix: str) -> Iterable[str]:
    """The names a checkpoint's tensor may have in the model: with the backbone's prefix or without."""
    bare = name.removeprefix(f"{prefix}.")
    for candidate in (name, bare, f"{prefix}.{bare}"):
        yield candidate
        # TensorFlow's names, kept by checkpoints of 2018 to 2020.
        yield re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", candidate))


def _unknown(unused: list[str], model: Any, config: PreTrainedConfig) -> list[str]:
    """Of the tensors the model without heads does not take, those that no head of its family takes either."""
    prefix = model.base_model_prefix
    unknown = [name for name in unused if not _REBUILT.search(name)]
    for kind in _architectures(config):
        if not unknown:
            break
        taken = _state_names(kind, config)
        unknown = [name for name in unknown if not any(alias in taken for alias in _aliases(name, prefix))]
    return unknown


def _architectures(config: PreTrainedConfig) -> Iterable[Any]:
    for name in config.architectures or []:
        if hasattr(transformers, name):
            yield getattr(transformers, name)
    for auto in ("AutoModel", *_HEADED):
        mapping = getattr(transformers, auto)._model_mapping
        if type(config) in mapping:
            kind = mapping[type(config)]
            yield from kind if isinstance(kind, (list, tuple)) else (kind,)


def _state_names(kind: Any, config: PreTrainedConfig) -> set[str]:
    # Some classes advise whoever would generate text with them; nobody does.
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        with torch.device("meta"), no_init_weights():
            module: nn.Module = kind(config)
    finally:
        transformers.logging.set_verbosity(before)
    return set(module.state_dict())


def _refuse(verb: str, names: list[str]) -> None:
    if names:
        shown = ", ".join(repr(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise CheckpointError(f"the checkpoint {verb} tensor{'s' if len(names) > 1 else ''} {shown}")
