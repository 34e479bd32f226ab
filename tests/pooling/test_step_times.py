"""What the next step is expected to take: a constant and so much a token, as the latest steps had it."""

import numpy as np
import pytest

from pooling.step_times import StepTimes


def taught(*steps: tuple[int, float]) -> StepTimes:
    times = StepTimes()
    for tokens, seconds in steps:
        times.learn(tokens, seconds)
    return times


def test_nothing_is_known_before_the_first_step() -> None:
    assert StepTimes().expect(100) == 0.0


def test_steps_of_one_size_tell_of_tokens_alone() -> None:
    times = taught(*[(1_000, 0.1)] * 20)
    assert times.expect(1_000) == pytest.approx(0.1)
    assert times.expect(500) == pytest.approx(0.05)


def test_small_steps_among_large_ones_show_what_a_step_costs_by_itself() -> None:
    sizes = [16, 1_024, 1_000, 30, 512, 16, 1_024]
    times = taught(*((size, 0.005 + size * 1e-4) for size in sizes))
    for tokens in (16, 256, 1_024):
        assert times.expect(tokens) == pytest.approx(0.005 + tokens * 1e-4, rel=1e-6)


def test_steps_that_take_as_long_whatever_their_size_say_so_of_larger_ones() -> None:
    draw = np.random.default_rng(0)
    times = StepTimes()
    for tokens in draw.integers(16, 200, 100).tolist():
        times.learn(tokens, 0.002 * float(draw.uniform(0.95, 1.05)))
        assert times.expect(200) < 0.01


def test_tokens_within_a_time_are_what_is_expected_to_take_it() -> None:
    times = taught(*((size, 0.02 + size * 1e-4) for size in (16, 1_024, 1_000, 30, 512)))
    assert times.tokens_within(0.1, 16, 5_000) == pytest.approx(800, abs=1)
    assert times.tokens_within(0.1, 900, 5_000) == 900
    assert times.tokens_within(0.1, 16, 500) == 500
    assert times.tokens_within(0.01, 16, 500) == 16  # less than a step costs by itself
    assert StepTimes().tokens_within(0.1, 16, 500) == 500
    assert taught((10, 0.4), (1_000, 0.2)).tokens_within(0.1, 16, 500) == 16  # larger ones take no longer


def test_a_change_is_followed_within_some_steps() -> None:
    times = taught(*[(1_000, 0.1)] * 50, *[(1_000, 0.3)] * 16)
    assert times.expect(1_000) == pytest.approx(0.3, rel=0.1)


def test_one_step_that_something_else_held_up_says_little() -> None:
    times = taught(*[(62, 0.0065)] * 20, (62, 0.042))
    assert times.expect(62) < 1.15 * 0.0065


def test_two_such_steps_say_that_things_have_changed() -> None:
    times = taught(*[(62, 0.0065)] * 20, (62, 0.65), (62, 0.65))
    assert times.expect(62) > 0.05


def test_a_step_larger_than_all_before_counts_as_it_is() -> None:
    times = taught(*[(64, 0.01)] * 20, (64 * 8, 0.8))  # ten times what 64 tokens let expect
    assert times.expect(64 * 8) > 0.4


def test_steps_that_took_no_time_at_all_leave_room_for_others() -> None:
    assert taught((8, 0.0), (8, 0.1), (8, 0.1)).expect(8) > 0.05


@pytest.mark.parametrize("seed", range(5))
def test_no_step_is_expected_to_end_before_it_begins(seed: int) -> None:
    draw = np.random.default_rng(seed)
    times = StepTimes()
    for _ in range(50):  # times that have nothing to do with sizes
        times.learn(int(draw.integers(1, 2_000)), float(draw.exponential(0.05)))
        assert all(times.expect(tokens) >= 0 for tokens in (1, 100, 5_000))


def test_many_large_steps_do_not_make_a_small_one_forgotten() -> None:
    times = taught(*[(8, 0.031)] * 5, *[(64, 0.092)] * 5, *[(size, size * 1e-3) for size in range(400, 512, 2)])
    assert times.expect(8) == pytest.approx(0.031)
    assert times.expect(14) == pytest.approx(0.031 + 6 * (0.092 - 0.031) / 56)
    assert times.expect(64) == pytest.approx(0.092)
