"""check(): a forward pass proves itself at the start, before it answers anyone."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig

from pooling.loading.describe import Description
from pooling.shared_prefixes import LEAST_TOKENS

if TYPE_CHECKING:
    from pooling.forward import Forward

# Tokens of the inputs by which a quantised model is compared to itself.
_ANSWERED = (6, 12, 24, 48, 96)


def check(forward: "Forward", description: Description, dtype: torch.dtype, quantized: bool = False) -> str | None:
    """Runs two inputs together and each alone; returns what is wrong, None if nothing is.

    Two questions. Does an input leak into another? Exact in any dtype: changing
    one must not change the other's rows by a bit. Are the rows those of
    transformers' own eager attention? Within rounding, where a wrong mask,
    window or position shows as 0.05 and more.
    Where a token chooses among experts, an expert's tokens are one product,
    whose rounding depends on how many they are, and rounding may choose another
    expert: there both questions are asked within rounding, and more of it. A
    quantised model's inputs may round to other whole numbers, in any dtype.
    """
    limit = description.card.max_model_len
    window = getattr(description.stack, "sliding_window", None) or 0
    long = min(max(24, min(window + 9, 1_024)), limit)
    short = max(1, min(11, limit))
    draw = np.random.default_rng(0)
    a, b, other = (draw_ids(draw, size, description) for size in (long, short, short))
    c = draw_ids(draw, long, description)
    experts = _has_experts(description.stack)
    allowed = _allowed(description, dtype, quantized)
    with torch.inference_mode():
        together = _run(forward, a, b)
        leak = max(
            difference(_run(forward, a, other)[:long], together[:long]),
            difference(_run(forward, c, b)[long:], together[long:]),
        )
        if leak > (allowed if experts else 0.0):
            return "an input changes when another one does"
        alone = torch.cat([forward.alone(ids) for ids in (a, b)])
    error = difference(together, alone)
    return None if error < allowed else f"its answers differ from the model's own by {error:.1e} of their length"


def check_shared(
    forward: "Forward", description: Description, dtype: torch.dtype, quantized: bool = False
) -> str | None:
    """Runs three inputs together that begin alike, and each alone; returns what is wrong, None if nothing is."""
    window = getattr(description.stack, "sliding_window", None) or 0
    size = min(max(3 * LEAST_TOKENS, min(window + LEAST_TOKENS, 1_024)), description.card.max_model_len)
    draw = np.random.default_rng(0)
    first, second = (draw_ids(draw, size, description) for _ in range(2))
    second[: size * 2 // 3] = first[: size * 2 // 3]
    inputs = (first, second, first[: size * 3 // 4])
    with torch.inference_mode():
        together = _run(forward, *inputs)
        error = difference(together, torch.cat([forward.alone(ids) for ids in inputs]))
    close = error < _allowed(description, dtype, quantized)
    return None if close else f"answers differ from the model's own by {error:.1e} of their length"


def answers(forward: "Forward", description: Description, seed: int) -> Tensor:
    """Of some inputs of random tokens, the mean of the rows and the last one: [2 * inputs, dim]."""
    draw = np.random.default_rng(seed)
    sizes = [min(size, description.card.max_model_len) for size in _ANSWERED]
    with torch.inference_mode():
        rows = [forward.alone(draw_ids(draw, size, description)).float() for size in sizes]
        return torch.stack([row for one in rows for row in (one.mean(0), one[-1])])


def likeness(rows: Tensor, truth: Tensor) -> float:
    """The least cosine of a row to the one that is right."""
    return float(torch.cosine_similarity(rows, truth).min())


def difference(rows: Tensor, truth: Tensor) -> float:
    """The length of what is wrong, as a share of the truth's."""
    return float((rows.float() - truth.float()).norm() / truth.float().norm())


def _allowed(description: Description, dtype: torch.dtype, quantized: bool) -> float:
    """How large a difference may be that is rounding's."""
    if quantized:
        return 0.2
    return 1e-3 if dtype == torch.float32 else 0.2 if _has_experts(description.stack) else 0.05


def _has_experts(config: PreTrainedConfig) -> bool:
    return any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))


def draw_ids(draw: np.random.Generator, size: int, description: Description) -> NDArray[np.int32]:
    """Random ids without the padding id, from which some models compute positions."""
    ids = draw.integers(0, description.card.vocab_size, size).astype(np.int32)
    pad = getattr(description.stack, "pad_token_id", None)
    return np.where(ids == pad, (ids + 1) % description.card.vocab_size, ids).astype(np.int32)


def _run(forward: "Forward", *inputs: NDArray[np.int32]) -> Tensor:
    lengths = np.array([len(ids) for ids in inputs], np.int32)
    # A copy: a step that is replayed overwrites the answer of the one before.
    return forward(forward.prepare(np.concatenate(inputs), lengths)).clone()
