"""The batcher: every input once, within the budget, no small request behind a bulk one, nobody starved."""

import numpy as np
import pytest

from pooling.batcher import Batcher


def lengths(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def drain(batcher: Batcher, room: int) -> list[list[tuple[int, list[int], int]]]:
    steps = []
    while len(batcher):
        steps.append([(share.key, share.inputs.tolist(), share.tokens) for share in batcher.take(room)])
    return steps


@pytest.mark.parametrize("seed", range(20))
def test_each_input_is_taken_once_and_no_step_exceeds_the_budget(seed: int) -> None:
    draw = np.random.default_rng(seed)
    batcher, sizes = Batcher(), {}
    for key in range(12):
        sizes[key] = draw.integers(1, 400, int(draw.integers(1, 60))).astype(np.int32)
        batcher.add(key, sizes[key])
    taken: dict[int, list[int]] = {key: [] for key in sizes}
    for step in drain(batcher, 256):
        inputs = [(key, i) for key, picks, _ in step for i in picks]
        tokens = sum(int(sizes[key][i]) for key, i in inputs)
        assert tokens == sum(share for _, _, share in step)
        assert tokens <= 256 or len(inputs) == 1
        for key, i in inputs:
            taken[key].append(i)
    assert {key: sorted(picks) for key, picks in taken.items()} == {
        key: list(range(len(n))) for key, n in sizes.items()
    }
    assert batcher.tokens == batcher.inputs == 0


def test_a_small_request_is_in_the_next_step_whatever_waits_before_it() -> None:
    batcher = Batcher()
    batcher.add(0, np.full(10_000, 50, np.int32))
    batcher.add(1, np.full(10_000, 50, np.int32))
    batcher.take(1_000)
    batcher.add(2, lengths(12))
    assert 2 in [share.key for share in batcher.take(1_000)]


def test_the_longest_waiting_gets_half_of_every_step_however_many_small_ones_arrive() -> None:
    batcher = Batcher()
    batcher.add(0, np.full(100, 50, np.int32))
    steps, key = 0, 1
    while got := sum(share.tokens for share in batcher.take(1_000) if share.key == 0):
        steps += 1
        assert got >= 500
        for _ in range(100):  # five times what a step holds
            batcher.add(key, lengths(50))
            key += 1
    assert steps == 1 + (100 - 20) // 10  # the first step had room for 20 inputs, later ones for 10


def test_an_input_longer_than_the_budget_goes_alone_and_does_not_loop() -> None:
    batcher = Batcher()
    batcher.add(0, lengths(5, 900, 7))
    batcher.add(1, lengths(6))
    assert [[(key, picks) for key, picks, _ in step] for step in drain(batcher, 100)] == [
        [(1, [0])],
        [(0, [1])],
        [(0, [2, 0])],
    ]


def test_an_input_longer_than_half_the_budget_is_not_starved_by_small_ones() -> None:
    batcher = Batcher()
    batcher.add(0, lengths(90))
    batcher.add(1, np.full(50, 10, np.int32))
    steps = [[(share.key, share.tokens) for share in batcher.take(100)] for _ in range(2)]
    assert steps == [[(1, 100)], [(0, 90), (1, 10)]]  # half of two steps


@pytest.mark.parametrize("length", [60, 150, 10_000])
def test_a_small_request_is_in_the_next_step_however_long_the_inputs_before_it(length: int) -> None:
    batcher = Batcher()
    batcher.add(0, np.full(200, length, np.int32))
    batcher.take(100)
    batcher.add(1, lengths(10))
    assert 1 in [share.key for share in batcher.take(100)]


def test_an_input_of_many_steps_has_its_turn_while_small_ones_keep_coming() -> None:
    batcher, key = Batcher(), 1
    batcher.add(0, lengths(1_000, 1_000))
    turns = []
    for step in range(45):
        batcher.add(key, lengths(100))
        key += 1
        turns += [step for share in batcher.take(100) if share.key == 0]
    assert turns == [19, 39]  # 1,000 tokens are half of 20 steps


def test_inputs_are_taken_longest_first_so_that_neighbours_are_alike() -> None:
    batcher = Batcher()
    batcher.add(0, lengths(2, 8, 2, 8, 5))
    assert [step[0][1] for step in drain(batcher, 10)] == [[1], [3], [4, 0, 2]]


def test_a_dropped_request_leaves_nothing_behind() -> None:
    batcher = Batcher()
    batcher.add(0, np.full(100, 5, np.int32))
    batcher.add(1, lengths(3))
    batcher.take(10)
    batcher.drop(0)
    batcher.drop(7)
    assert (len(batcher), batcher.tokens) == (0, 0)  # the first step held request 1 too
    assert batcher.take(10) == []


def test_a_step_of_small_requests_alone_and_one_of_the_rest() -> None:
    batcher = Batcher()
    for key, sizes in enumerate([(50,) * 20, (12,), (30, 30), (61,), (200,)]):
        batcher.add(key, lengths(*sizes))
    assert batcher.tokens_of(60, 100) == 72
    assert batcher.tokens_of(60, 10) == 12
    assert batcher.longest == 200
    assert sorted(share.key for share in batcher.take(1_000, upto=60)) == [1, 2]
    assert batcher.tokens_of(60, 100) == 0
    batcher.add(5, lengths(9))
    assert {share.key for share in batcher.take(10_000, over=60)} == {0, 3, 4}
    assert [share.key for share in batcher.take(1_000)] == [5]
    assert (len(batcher), batcher.tokens, batcher.longest) == (0, 0, 0)


def test_the_rest_of_a_large_request_is_no_small_one() -> None:
    batcher = Batcher()
    batcher.add(0, np.full(10, 50, np.int32))
    batcher.take(450)
    assert batcher.tokens == 50
    assert batcher.tokens_of(100, 1_000) == 0
    assert batcher.take(1_000, upto=100) == []


def test_what_nobody_may_take_stays() -> None:
    batcher = Batcher()
    batcher.add(0, lengths(5))
    assert batcher.take(100, over=5) == []
    assert batcher.tokens == 5


def test_steps_of_small_requests_do_not_take_from_a_long_input_what_it_has_saved_up() -> None:
    batcher = Batcher()
    batcher.add(0, lengths(3_000))
    batcher.add(1, np.full(1_000, 50, np.int32))
    for step in range(20):
        for key in (2 * step + 2, 2 * step + 3):
            batcher.add(key, lengths(20))
        batcher.take(500, upto=60)
        before = batcher.first(500, over=60)
        if any(share.key == 0 for share in batcher.take(500, over=60)):
            break
        assert before == 50
    assert step == 11  # 3,000 tokens are half of twelve steps
    assert before == 3_000


@pytest.mark.parametrize("seed", range(30))
def test_what_a_step_begins_with_is_known_before_it_is_taken(seed: int) -> None:
    draw = np.random.default_rng(seed)
    batcher, sizes = Batcher(), {}
    for key in range(8):
        sizes[key] = draw.integers(1, 900, int(draw.integers(1, 20))).astype(np.int32)
        batcher.add(key, sizes[key])
    while len(batcher):
        room, over = int(draw.integers(50, 600)), int(draw.choice([0, 0, 300]))
        expected = batcher.first(room, over)
        step = batcher.take(room, over)
        if step:
            assert int(sizes[step[0].key][step[0].inputs[0]]) == expected
        else:
            assert expected == 0
            batcher.take(10_000)


def test_a_step_counts_what_it_computes_again_and_may_have_as_much_more_than_its_room() -> None:
    batcher = Batcher()
    costs, order, again = (
        np.array([10, 4, 4, 4, 4, 30], np.int32),
        np.array([5, 0, 1, 2, 3, 4]),
        np.array([0, 6, 6, 6, 6, 0]),
    )
    batcher.add(1, costs, order, again)
    taken = []
    while len(batcher):
        (share,) = batcher.take(14)
        taken.append((share.inputs.tolist(), share.tokens))
        assert batcher.tokens == sum(costs) - sum(sum(costs[inputs]) for inputs, _ in taken)
    # The longest is taken alone; behind it room for the first of those that are alike and the next; then 6 once more.
    assert taken == [([5], 30), ([0, 1], 14), ([2, 3], 14), ([4], 10)]
    batcher.add(2, np.array([40, 9, 9, 9, 9], np.int32), np.arange(5), np.array([0, 30, 30, 30, 30]))
    assert [(share.inputs.tolist(), share.tokens) for _ in range(3) for share in batcher.take(14)] == [
        ([0], 40),
        ([1, 2, 3], 57),
        ([4], 39),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_requests_that_share_beginnings_are_all_taken_once_and_in_order(seed: int) -> None:
    draw = np.random.default_rng(seed)
    batcher, room = Batcher(), int(draw.integers(4, 64))
    left: dict[int, list[int]] = {}
    for key in range(int(draw.integers(2, 6))):
        count = int(draw.integers(1, 12))
        costs, again = draw.integers(1, 20, count).astype(np.int32), draw.integers(0, 80, count)
        order = draw.permutation(count)
        batcher.add(key, costs, order, again * int(draw.integers(0, 2)))
        left[key] = order.tolist()
    while len(batcher):
        first = batcher.first(room)
        shares = batcher.take(room)
        assert shares[0].tokens >= first
        assert len(shares[0].inputs) > 1 or shares[0].tokens == first
        # One input that is longer than a step, and of what it shares as much again.
        assert sum(share.tokens for share in shares) <= max(room, 2 * first)
        for share in shares:
            given = share.inputs.tolist()
            assert left[share.key][: len(given)] == given
            del left[share.key][: len(given)]
    assert batcher.tokens == 0
    assert not any(left.values())


@pytest.mark.parametrize(("shared", "room"), [(300, 256), (600, 512), (1_000, 1_024), (8_000, 2_048)])
def test_bulk_with_a_long_shared_beginning_starves_nobody(shared: int, room: int) -> None:
    batcher = Batcher()
    count = 400
    batcher.add(1, np.full(count, 20, np.int32), np.arange(count), np.full(count, shared))
    for small in range(20):
        batcher.add(100 + small, np.array([10], np.int32))
        waited = 0
        while not any(share.key == 100 + small for share in batcher.take(room)):
            waited += 1
            assert waited < 4
