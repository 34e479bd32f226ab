"""The small checkpoints see the mistakes they are there for: each, made on purpose, moves the answer far.

Without this, test_families.py could pass with a wrong engine.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoints import FAMILIES
from tests.reference import Reference, relative_error
from tests.texts import stretching_texts

FAR = 0.01  # 500 times what test_families.py lets pass


def _shift(rows: int) -> Callable[[Reference], None]:
    """A token at position p reads the row of position p + rows."""

    def apply(reference: Reference) -> None:
        weight = reference.model.embeddings.position_embeddings.weight
        weight.data = weight.data.roll(-rows, 0)

    return apply


def _config(**changes: object) -> Callable[[Reference], None]:
    def apply(reference: Reference) -> None:
        for name, value in changes.items():
            setattr(reference.model.config, name, value)

    return apply


def _theta(buffer: str, theta: float) -> Callable[[Reference], None]:
    def apply(reference: Reference) -> None:
        frequencies = getattr(reference.model.rotary_emb, buffer)
        steps = torch.arange(len(frequencies)) / len(frequencies)
        frequencies.copy_(theta**-steps)

    return apply


def _no_token_types(reference: Reference) -> None:
    reference.model.embeddings.token_type_embeddings.weight.data.zero_()


def _no_relative_bias(reference: Reference) -> None:
    reference.model.encoder.relative_attention_bias.weight.data.zero_()


def _key_value_heads_swapped(reference: Reference) -> None:
    for layer in reference.model.layers:
        for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.weight.data = projection.weight.data.roll(projection.weight.shape[0] // 2, 0)


def _scale_of_hidden_size(reference: Reference) -> None:
    """1 / sqrt(hidden / heads), where head_dim is set apart from both."""
    for layer in reference.model.layers:
        layer.self_attn.scaling = (64 / 4) ** -0.5


def _cls_for_the_rest(reference: Reference) -> None:
    reference.pooling = "CLS"


def _last_for_the_rest(reference: Reference) -> None:
    reference.pooling = "LAST"


def _sees_a_neighbour(reference: Reference) -> None:
    """Another text lies before this one in the row and attention does not stop between them."""
    neighbour, alone = reference.ids("a neighbour in the same batch"), reference.hidden
    room = reference.model.config.max_position_embeddings - 2
    reference.hidden = lambda ids: alone([*neighbour, *ids][-room:])[-len(ids) :]  # type: ignore[method-assign]


def _sees_padding(reference: Reference) -> None:
    """Up to nine padding tokens follow, and attention does not leave them out."""
    padding, alone = [reference.tokenizer.pad_token_id] * 9, reference.hidden
    room = reference.model.config.max_position_embeddings - 2
    reference.hidden = lambda ids: alone([*ids, *padding][:room])[: len(ids)]  # type: ignore[method-assign]


MISTAKES: dict[str, dict[str, Callable[[Reference], None]]] = {
    "bert": {
        "positions one too far": _shift(1),
        "token types ignored": _no_token_types,
        "causal": _config(is_decoder=True),
        "neighbours seen": _sees_a_neighbour,
        "CLS for MEAN": _cls_for_the_rest,
    },
    "xlmr": {
        "positions from zero": _shift(-2),
        "positions from pad": _shift(-1),
        "token types ignored": _no_token_types,
        "neighbours seen": _sees_a_neighbour,
        "LAST for CLS": _last_for_the_rest,
    },
    "modernbert": {
        "window ignored": _config(local_attention=4096),
        "window one too wide": _config(local_attention=34),
        "window one too narrow": _config(local_attention=30),
        "global theta in local layers": _theta("sliding_attention_inv_freq", 160_000.0),
        "local theta in global layers": _theta("full_attention_inv_freq", 10_000.0),
        "neighbours seen": _sees_a_neighbour,
    },
    "qwen3": {
        "bidirectional": _config(is_causal=False),
        "theta": _theta("inv_freq", 10_000.0),
        "key-value heads swapped": _key_value_heads_swapped,
        "scale of hidden size": _scale_of_hidden_size,
        "neighbours seen": _sees_a_neighbour,
    },
    "mistral": {
        "window ignored": _config(sliding_window=None),
        "window one too wide": _config(sliding_window=49),
        "window one too narrow": _config(sliding_window=47),
        "theta": _theta("inv_freq", 1_000_000.0),
        "key-value heads swapped": _key_value_heads_swapped,
        "neighbours seen": _sees_a_neighbour,
    },
    "mpnet": {
        "positions one too far": _shift(1),
        "relative bias ignored": _no_relative_bias,
        "padding seen": _sees_padding,
    },
}


@pytest.mark.parametrize(("family", "mistake"), [(family, name) for family, made in MISTAKES.items() for name in made])
def test_a_mistake_moves_the_answer_far(checkpoint: Callable[[str], Path], family: str, mistake: str) -> None:
    expected = FAMILIES[family]
    reference = Reference(checkpoint(family), expected.expected_pooling, expected.normalize)
    texts = stretching_texts(reference.ids, expected.max_model_len)
    right = [reference.embed(text) for text in texts]
    MISTAKES[family][mistake](reference)
    wrong = [reference.embed(text) for text in texts]
    moved = relative_error(np.stack(wrong), np.stack(right))
    assert moved > FAR
