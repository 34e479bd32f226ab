import numpy as np
import pytest

from deployments.slicing import cut
from pooling.request import Ids


def lengths(*values: int) -> Ids:
    return np.array(values, np.int32)


def test_less_than_two_steps_stays_in_one_piece() -> None:
    assert cut(lengths(*[10] * 199), step_tokens=1_000, most=8) == [(0, 199)]
    assert cut(lengths(5_000), step_tokens=1_000, most=8) == [(0, 1)]


def test_two_steps_are_shared_by_two() -> None:
    assert cut(lengths(*[10] * 200), step_tokens=1_000, most=8) == [(0, 100), (100, 200)]
    assert cut(lengths(1_000, 1_000), step_tokens=1_000, most=8) == [(0, 1), (1, 2)]


def test_one_long_input_among_short_ones_is_no_reason_for_a_slice_below_a_step() -> None:
    assert cut(lengths(900, 10, 10, 10, 2_000), step_tokens=1_000, most=2) == [(0, 5)]


@pytest.mark.parametrize("seed", range(200))
def test_slices_are_contiguous_complete_even_and_worth_a_step(seed: int) -> None:
    random = np.random.default_rng(seed)
    given = random.integers(1, random.integers(2, 600), random.integers(1, 400)).astype(np.int32)
    step, most = int(random.integers(50, 2_000)), int(random.integers(1, 12))
    bounds = cut(given, step, most)
    assert [index for start, stop in bounds for index in range(start, stop)] == list(range(len(given)))
    assert len(bounds) <= most
    tokens = [int(given[start:stop].sum()) for start, stop in bounds]
    assert len(bounds) == 1 or min(tokens) >= step
    assert max(tokens) - min(tokens) <= 2 * int(given.max())
