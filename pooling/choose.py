"""choose_forward(): a model in the fastest way to run it that proves itself at the start: packed, else padded."""

import logging
from functools import partial

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from pooling.attention import NAME
from pooling.config import Quantization
from pooling.errors import CheckpointError, ConfigError
from pooling.forward import Forward, PackedForward, PaddedForward, configs_of
from pooling.graphs import CudaRecorder
from pooling.heads import Head
from pooling.loading.checkpoint import Checkpoint
from pooling.loading.describe import Description
from pooling.loading.model import load_model
from pooling.parallel.shard import Shard
from pooling.quantized import check_quantization
from pooling.self_check import answers, check, check_shared, likeness
from pooling.tuned import tune, tune_quantized

log = logging.getLogger("raypool")

# Of what a quantised model answers to what it answers without. On texts they are closer than on random tokens.
_LEAST_COSINE = 0.9


def choose_forward(
    description: Description,
    dtype: torch.dtype,
    device: torch.device,
    max_batch_tokens: int,
    eager: bool = False,
    quantization: Quantization | None = None,
) -> tuple[Forward, dict[str, Head]]:
    """Packed if the family is known to pack and this model proves it on this device, else padded, loudly.

    Beside it the heads of the model, by name. eager: on a GPU, without CUDA graphs.

    Raises CheckpointError if neither gives the answers of each input alone,
    ConfigError for a quantisation that this device or this model cannot have.
    """
    name, kind, quantized = description.card.name, description.card.model_type, quantization is not None
    reason = obstacle(description, dtype, device)
    if quantization is not None:
        check_quantization(quantization, name, device, dtype)
        if reason is not None:
            raise ConfigError(f"{name}: quantization is for models that run packed: {reason}")
    if reason is None:
        packed, heads = load_packed(description, dtype, device, max_batch_tokens, quantization=quantization)
        model = packed.model
        if device.type == "cuda" and not eager:
            _record(packed, description, max_batch_tokens)
        reason = check(packed, description, dtype, quantized)
        if reason is not None and packed.graphs is not None:
            log.warning("%s: running without CUDA graphs, which is slower for small steps: %s", name, reason)
            packed.graphs = None
            reason = check(packed, description, dtype, quantized)
        if reason is None:
            prove_shared(packed, packed, description, dtype, quantized)
            return packed, heads
        if quantized:
            raise ConfigError(f"{name} cannot be served with quantization {quantization}: {reason}")
    else:
        loaded = load_model(Checkpoint(description.backbone), description, "eager", dtype, device)
        model, heads = loaded.backbone, loaded.heads
    log.warning("%s: running padded, which is slower: %s", name, reason)
    for config in configs_of(model):
        config._attn_implementation = _padded_attention(model)
    padded = PaddedForward(model, device, max_batch_tokens)
    reason = check(padded, description, dtype)
    if reason is not None:
        raise CheckpointError(f"a {kind} model cannot be served in batches: {reason}")
    return padded, heads


def prove_shared(
    forward: Forward,
    packed: PackedForward,
    description: Description,
    dtype: torch.dtype,
    quantized: bool = False,
) -> None:
    """Inputs share what they begin with if that gives the answers of each alone.

    forward: what runs the whole model, `packed` or a group of which that is the first rank's share.
    """
    if packed.shares_prefixes:
        graphs, packed.graphs = packed.graphs, None  # a step so small would be replayed
        reason = check_shared(forward, description, dtype, quantized)
        packed.graphs = graphs
        if reason is not None:
            log.warning("%s: what inputs begin with alike is computed for each: %s", description.card.name, reason)
            packed.shares_prefixes = False


def _record(packed: PackedForward, description: Description, max_batch_tokens: int) -> None:
    card = description.card
    try:
        packed.record(CudaRecorder(), max_batch_tokens, card)
    except Exception as error:  # of torch: something in the model waits for the device
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        log.warning("%s: running without CUDA graphs, which is slower for small steps: %s", card.name, reason)


def load_packed(
    description: Description,
    dtype: torch.dtype,
    device: torch.device,
    max_batch_tokens: int,
    shard: Shard | None = None,
    quantization: Quantization | None = None,
) -> tuple[PackedForward, dict[str, Head]]:
    """A model that packs, or this rank's share of it, not proven yet; beside it its heads, by name.

    Raises ConfigError if quantisation changes its answers beyond use.
    """
    loaded = load_model(Checkpoint(description.backbone), description, NAME, dtype, device, shard)
    model = loaded.backbone
    counted_from = description.config.pad_token_id if description.family.positions_after_pad else None
    how = (model, device, dtype, max_batch_tokens)
    if quantization is None:
        tune(*how, shard is not None)
        return PackedForward(model, device, counted_from), loaded.heads
    name, plain = description.card.name, PackedForward(model, device, counted_from)
    reason = check(plain, description, dtype)  # afterwards a wrong mask might pass for rounding
    if reason is not None:
        raise ConfigError(f"{name}: quantization is for models that run packed: {reason}")
    truth = answers(plain, description, seed=0)
    layers = tune_quantized(*how, quantization, partial(answers, plain, description, seed=1))
    if not layers:
        raise ConfigError(f"{name}: the model has no linear layers that quantization {quantization} is for")
    packed = PackedForward(model, device, counted_from)
    cosine = likeness(answers(packed, description, seed=0), truth)
    if not cosine >= _LEAST_COSINE:
        raise ConfigError(
            f"{name}: quantization {quantization} changes what the model answers too much: the vectors of random "
            f"tokens have a cosine of {cosine:.3f} to those without it; leave it out"
        )
    packed.quantized = f"{quantization} in {layers} layers (random tokens: cosine {cosine:.4f} at least)"
    log.warning("%s answers something else than without quantization %s", name, packed.quantized)  # seen by default
    return packed, loaded.heads


def _padded_attention(model: PreTrainedModel) -> str:
    """sdpa leaves a softcap out without a word."""
    capped = getattr(model.config, "attn_logit_softcapping", None) is not None
    return "sdpa" if model._supports_sdpa and not capped else "eager"


def obstacle(description: Description, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a model cannot even be tried packed; None if it can."""
    if not description.family.packed:
        return f"family {description.card.model_type} is not known to run packed"
    if device.type == "cuda" and dtype == torch.float32:
        return "packed attention on CUDA takes bfloat16 and float16 only"
    if device.type == "cuda" and getattr(description.stack, "attn_logit_softcapping", None) is not None:
        return "packed attention on CUDA has no softcap"
    if device.type == "cuda" and description.family.position_bias:
        return "packed attention on CUDA adds no position bias"
    if device.type == "cuda" and not _fits_flash_attention(description.stack):
        return "packed attention on CUDA takes heads of up to 256 dimensions, a multiple of 8"
    return None


def _fits_flash_attention(config: PreTrainedConfig) -> bool:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return bool(head_dim <= 256 and head_dim % 8 == 0)
