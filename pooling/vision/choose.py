"""choose_vision_forward(): how a model that takes images is run, proven before it answers anyone."""

import logging

import torch

from pooling.attention import NAME
from pooling.choose import obstacle
from pooling.errors import CheckpointError
from pooling.forward import Forward
from pooling.heads import Head
from pooling.loading.checkpoint import Checkpoint
from pooling.loading.describe import Description
from pooling.loading.model import load_model
from pooling.tuned import tune
from pooling.vision.check import check_images
from pooling.vision.decoder import DecoderForward, load_decoder
from pooling.vision.towers import ImagesForward, TowersForward

log = logging.getLogger("raypool")


def choose_vision_forward(
    description: Description, dtype: torch.dtype, device: torch.device, max_batch_tokens: int
) -> tuple[Forward, dict[str, Head]]:
    """As choose_forward(). Raises CheckpointError for a model that does not give the answers of each input alone."""
    vision = description.card.vision
    assert vision is not None
    reason = None if vision.kind == "images" else obstacle(description, dtype, device)
    if reason is not None:
        how = "texts padded" if vision.kind == "towers" else "inputs one by one"
        log.warning("%s: running %s, which is slower: %s", description.card.name, how, reason)
    forward: ImagesForward | DecoderForward
    if vision.kind == "decoder":
        forward, heads = load_decoder(description, dtype, device, max_batch_tokens, packed=reason is None)
    else:
        forward, heads = _load_apart(description, dtype, device, max_batch_tokens, packed=reason is None)
    reason = check_images(forward, description, dtype)
    if reason is not None:
        raise CheckpointError(f"a {description.card.model_type} model cannot be served in batches: {reason}")
    return forward, heads


def _load_apart(
    description: Description, dtype: torch.dtype, device: torch.device, max_batch_tokens: int, packed: bool
) -> tuple[ImagesForward, dict[str, Head]]:
    """A model that reads a text or an image, or images alone."""
    towers = description.family.vision == "towers"
    attention = NAME if packed and towers else "sdpa"
    loaded = load_model(Checkpoint(description.backbone), description, attention, dtype, device)
    tune(loaded.backbone, device, dtype, max_batch_tokens)
    if towers:
        return TowersForward(loaded.backbone, device, packed), loaded.heads
    return ImagesForward(loaded.backbone, device), loaded.heads
