"""Each reduction against its definition, on packed inputs of unequal length."""

import pytest
import torch

from pooling.heads import cut, normalise
from pooling.poolers import POOLERS
from pooling.poolers.mean import MeanPooler

LENGTHS = [3, 1, 7, 2]


@pytest.mark.parametrize(
    ("pooling_type", "definition"),
    [
        ("CLS", lambda rows: rows[0]),
        ("LAST", lambda rows: rows[-1]),
        ("MEAN", lambda rows: rows.double().mean(0)),
        ("MAX", lambda rows: rows.max(0).values),
        (
            "WEIGHTEDMEAN",
            lambda rows: sum(n * row.double() for n, row in enumerate(rows, 1)) / sum(range(len(rows) + 1)),
        ),
        ("MEAN_SQRT_LEN", lambda rows: rows.double().sum(0) / len(rows) ** 0.5),
    ],
)
def test_a_pooler_reduces_each_input_by_its_definition(pooling_type, definition) -> None:  # type: ignore[no-untyped-def]
    hidden = torch.randn(sum(LENGTHS), 5, generator=torch.Generator().manual_seed(0))
    rows = POOLERS[pooling_type](hidden, torch.tensor(LENGTHS))
    expected = torch.stack([definition(part).float() for part in hidden.split(LENGTHS)])
    torch.testing.assert_close(rows, expected, atol=1e-6, rtol=0)


def test_mean_keeps_what_bfloat16_would_round_away() -> None:
    hidden = torch.tensor([[1.0], [1.0078125]], dtype=torch.bfloat16)  # neighbours in bfloat16
    assert MeanPooler()(hidden, torch.tensor([2])).item() == 1.00390625


@pytest.mark.parametrize("pooling_type", ["MEAN", "MAX", "WEIGHTEDMEAN", "MEAN_SQRT_LEN"])
def test_lengths_that_do_not_fill_the_batch_are_an_error(pooling_type) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RuntimeError):
        POOLERS[pooling_type](torch.zeros(4, 2), torch.tensor([1, 2]))


def test_a_vector_is_cut_before_it_is_normalised() -> None:
    rows = normalise(cut(torch.tensor([[3.0, 4.0, 12.0]]), 2))
    torch.testing.assert_close(rows, torch.tensor([[0.6, 0.8]]))


def test_normalising_a_zero_vector_gives_zeros_not_nan() -> None:
    assert normalise(torch.zeros(1, 3)).tolist() == [[0.0, 0.0, 0.0]]
