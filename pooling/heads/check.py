"""check_heads(): a head over pooled rows answers what transformers' own class answers for the whole input."""

import numpy as np
import torch

from pooling.errors import CheckpointError
from pooling.forward import Forward
from pooling.heads import Head
from pooling.heads.transformers_head import TransformersHead
from pooling.loading.card import ModelCard
from pooling.poolers import POOLERS
from pooling.tasks import TASKS

_TOKENS = 7
# The same float32 numbers through the same layers, in another order at most.
_ALLOWED = 1e-4


def check_heads(card: ModelCard, heads: dict[str, Head], forward: Forward) -> None:
    """Runs one random input at start-up. Raises CheckpointError if a class pools in a way that we do not.

    A pooler that the configuration asks for is its own business, and not checked.
    """
    for task in ("classify", "token_classify"):
        pooler = card.poolers.get(task)
        head = heads.get(pooler.head or "") if pooler is not None else None
        if pooler is None or not isinstance(head, TransformersHead):
            continue
        if pooler.sources.get("pooling_type") not in ("model", "default") or (
            task == "token_classify" and "classify" in card.poolers
        ):
            continue
        with torch.inference_mode():
            size = min(_TOKENS, card.max_model_len)
            ids = np.random.default_rng(0).integers(card.vocab_size // 2, card.vocab_size, size).astype(np.int32)
            lengths = np.array([size], np.int32)
            hidden = forward(forward.prepare(ids, lengths)).float()
            ours, theirs = hidden, head.of_sequence(hidden)
            ours = head(ours) if pooler.head_first else ours
            if TASKS[task].rows == "input":
                ours = POOLERS[pooler.pooling_type](ours, torch.tensor(lengths, device=hidden.device).long())
            ours = ours if pooler.head_first else head(ours)
        error = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-6))
        if not error < _ALLOWED:
            raise CheckpointError(
                f"{card.architecture} pools in another way than {pooler.pooling_type}: its answers differ by "
                f"{error:.1e} of their length; if you know how it pools, say so in override_pooler_config"
            )
