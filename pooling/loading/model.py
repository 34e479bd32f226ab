"""load_model(): transformers' own module, filled from safetensors, every tensor accounted for."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModel, AutoModelForTextEncoding, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from pooling.attention import NAME
from pooling.errors import CheckpointError
from pooling.heads import Head
from pooling.heads.scorer import ScorerHead, narrow
from pooling.heads.transformers_head import TransformersHead
from pooling.loading.anatomy import Kind
from pooling.loading.checkpoint import Checkpoint
from pooling.loading.describe import Description
from pooling.loading.matching import match
from pooling.loading.output_layer import read_output_rows, remove_output_layer
from pooling.loading.projection import load_heads
from pooling.loading.scorer import Scorer
from pooling.loading.tokenizer import TextTokenizer
from pooling.parallel.shard import Part, Shard
from pooling.parallel.sharding import Sharding, take


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """backbone: the stack of layers, in the model's dtype. heads: by name, what reads pooled rows, in float32."""

    backbone: PreTrainedModel
    heads: dict[str, Head]


def load_model(
    checkpoint: Checkpoint,
    description: Description,
    attention: str,
    dtype: torch.dtype,
    device: torch.device,
    shard: Shard | None = None,
) -> LoadedModel:
    """The model in evaluation mode on `device`; of an encoder-decoder it is the encoder.

    `attention` names a function registered with transformers. shard: which share
    of the layers is read; heads are read whole, and by rank 0 alone. Raises
    CheckpointError that names each tensor which is missing, misshapen or
    unknown to the model's architecture.
    """
    config = description.config
    _set_attention(description, attention)
    whole = _SKELETONS[description.anatomy.kind](description)
    scorer = description.anatomy.scorer
    output_layer = remove_output_layer(whole) if scorer is not None else ""
    found = match(whole, checkpoint, config)
    sharding = None if shard is None else Sharding(_backbone_of(whole), shard)
    parts = {} if sharding is None else {_in_whole(whole, name): part for name, part in sharding.parts.items()}
    read = partial(_read, checkpoint, whole, dtype, device, parts)
    state = {name: read(name, source) for name, source in found.source_of.items() if _is_read(whole, name, shard)}
    for pieces in found.pieces:
        made = pieces.read(whole, checkpoint, dtype, device)
        state |= {name: take(tensor, parts.get(name)) for name, tensor in made.items()}
    for twin, name in found.twins.items():  # they share their memory, if they share their dtype and their part
        if _is_read(whole, twin, shard):
            same = parts.get(twin) == parts.get(name) and state[name].dtype == _dtype_of(twin, whole, dtype)
            shared = same or name not in found.source_of
            state[twin] = state[name] if shared else read(twin, found.source_of[name])
    _refuse_no_floats(state, whole)
    if sharding is not None:
        sharding.narrow()
    whole.load_state_dict(state, strict=False, assign=True)
    if sharding is not None:
        sharding.finish()
    if shard is not None and shard.rank > 0:
        return LoadedModel(_without_head(whole, device), {})
    if scorer is not None:
        rows = _token_ids(description, scorer)
        narrow(whole, *read_output_rows(checkpoint, whole, output_layer, found.source_of, rows, device))
    whole.to(device).eval().requires_grad_(False)
    heads = load_heads(description, device)
    if description.anatomy.kind == "embedder":
        return LoadedModel(whole, heads)
    if description.anatomy.kind == "retriever":
        return LoadedModel(_backbone_of(whole), {"projection": whole.embedding_proj_layer})
    if isinstance(whole, RewardModel):
        return LoadedModel(whole.model, {"reward": whole.score})
    if isinstance(whole, ColbertModel):
        return LoadedModel(whole.backbone, {"projection": whole.linear})
    if scorer is not None:
        scores = ScorerHead(whole, len(scorer.tokens), scorer.difference)
        return LoadedModel(scores.backbone, {"scorer": scores})
    if description.anatomy.kind == "masked_lm":
        vocabulary = TransformersHead(whole, int(config.vocab_size))
        return LoadedModel(vocabulary.backbone, {"masked_lm": vocabulary})
    if description.anatomy.kind == "image_classifier":
        return LoadedModel(_backbone_of(whole), {"classifier": whole.classifier})
    head = TransformersHead(whole, len(description.anatomy.labels))
    return LoadedModel(head.backbone, {"classifier": head})


def _set_attention(description: Description, attention: str) -> None:
    """Of a model with a vision part, that keeps torch's own: its images are not packed by us."""
    for config in _parts_of(description.config):
        config._attn_implementation = "sdpa" if attention == NAME else attention
    description.stack._attn_implementation = attention


def _parts_of(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """The config and those of its parts."""
    parts = [getattr(config, name, None) for name in config.sub_configs]
    return [config, *(inner for part in parts if part is not None for inner in _parts_of(part))]


def _read(
    checkpoint: Checkpoint,
    whole: Any,
    dtype: torch.dtype,
    device: torch.device,
    parts: dict[str, Part],
    name: str,
    source: str,
) -> Tensor:
    return checkpoint.read(source, _dtype_of(name, whole, dtype), device, parts.get(name))


def _is_read(whole: Any, name: str, shard: Shard | None) -> bool:
    """Heads are a small part of a model, and read what the ranks have added up already: rank 0 answers alone."""
    return shard is None or shard.rank == 0 or _in_backbone(whole, name)


def _backbone_of(whole: Any) -> PreTrainedModel:
    return cast(PreTrainedModel, getattr(whole, whole.base_model_prefix) if _is_headed(whole) else whole)


def _in_whole(whole: Any, name: str) -> str:
    """The name, in the whole model, of a tensor of its backbone."""
    return f"{whole.base_model_prefix}.{name}" if _is_headed(whole) else name


def _without_head(whole: Any, device: torch.device) -> PreTrainedModel:
    backbone: Any = _backbone_of(whole)
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    backbone.to(device).eval().requires_grad_(False)
    return cast(PreTrainedModel, backbone)


def _refuse_no_floats(state: dict[str, Tensor], whole: Any) -> None:
    """Integers where weights belong are those of a quantised checkpoint, and mean nothing without their scales."""
    floats = {name: tensor.is_floating_point() for name, tensor in whole.state_dict().items()}
    # A tied output layer that was taken out has no place left.
    odd = next((name for name in state if state[name].is_floating_point() != floats.get(name, True)), None)
    if odd is not None:
        kind = str(state[odd].dtype).removeprefix("torch.")
        raise CheckpointError(
            f"tensor {odd!r} holds {kind}, but the model reads floating-point numbers there; quantised checkpoints are "
            "not supported"
        )


def _backbone(description: Description) -> PreTrainedModel:
    config = description.config
    encoders, models = AutoModelForTextEncoding._model_mapping, AutoModel._model_mapping
    kinds: Any = (encoders if type(config) in encoders else models)[type(config)]
    kind: Any = kinds[0] if isinstance(kinds, (list, tuple)) else kinds
    # A BERT's own tanh pooler is no part of any pooling we do.
    extra = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind).parameters else {}
    return _without_memory(kind, config, **extra)


def _with_head(description: Description) -> PreTrainedModel:
    name = description.anatomy.architecture
    kind = getattr(transformers, name, None)
    if kind is None:
        raise CheckpointError(f"architecture {name} is not one that transformers {transformers.__version__} has")
    return _without_memory(kind, description.config)


def _token_ids(description: Description, scorer: Scorer) -> list[int]:
    """The rows of the output layer that a scorer reads."""
    vocabulary = int(description.card.vocab_size)
    ids = [token for token in scorer.tokens if isinstance(token, int)]
    if len(ids) < len(scorer.tokens):
        tokenizer = TextTokenizer.load(description.backbone)
        ids = [token if isinstance(token, int) else _id_of(token, tokenizer) for token in scorer.tokens]
    if not all(0 <= token < vocabulary for token in ids):
        raise CheckpointError(f"the tokens of a score have the ids {ids}, but the vocabulary has 0 to {vocabulary - 1}")
    return ids


def _id_of(token: str, tokenizer: TextTokenizer) -> int:
    found = tokenizer.id_of(token)
    if found is None:
        raise CheckpointError(f"a score is asked of the token {token!r}, which the model's tokenizer does not have")
    return found


def _with_reward(description: Description) -> "RewardModel":
    model: Any = _without_memory(RewardModel, _backbone(description), len(description.anatomy.labels))
    return cast(RewardModel, model)


def _with_colbert(description: Description) -> "ColbertModel":
    model: Any = _without_memory(ColbertModel, _backbone(description), description.card.dim)
    return cast(ColbertModel, model)


_SKELETONS: dict[Kind, Callable[[Description], Any]] = {
    "embedder": _backbone,
    "classifier": _with_head,
    "token_classifier": _with_head,
    "image_classifier": _with_head,
    "retriever": _with_head,
    "reward": _with_reward,
    "masked_lm": _with_head,
    "colbert": _with_colbert,
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


class ColbertModel(nn.Module):
    """A backbone, mostly a BERT, with one linear layer over every token, as Stanford's HF_ColBERT is saved."""

    def __init__(self, backbone: PreTrainedModel, dim: int) -> None:
        super().__init__()
        self.base_model_prefix = backbone.base_model_prefix
        setattr(self, self.base_model_prefix, backbone)
        self.linear = nn.Linear(int(backbone.config.hidden_size), dim, bias=False)

    @property
    def backbone(self) -> PreTrainedModel:
        return cast(PreTrainedModel, getattr(self, self.base_model_prefix))


def _dtype_of(name: str, whole: Any, dtype: torch.dtype) -> torch.dtype:
    """float32 for heads, for the layers that overflow in float16, as T5's last ones, and for what is computed, as
    frequencies."""
    if not _in_backbone(whole, name) or name in dict(whole.named_buffers()):
        return torch.float32
    backbone = _backbone_of(whole)
    kept = set(backbone._keep_in_fp32_modules_strict or []) if dtype != torch.float32 else set()
    if dtype == torch.float16:
        kept |= set(backbone._keep_in_fp32_modules or [])
    return torch.float32 if kept & set(name.split(".")) else dtype


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
