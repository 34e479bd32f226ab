"""Where steps run: lanes by themselves, all cores for what cannot be divided, small requests beside bulk."""

import itertools
import math

import numpy as np
import pytest

from pooling.batcher import Batcher
from pooling.schedule import Place, Schedule, Turn
from pooling.step_times import StepTimes

# Of a lane: a step of 512 tokens takes 50 ms.
PER_TOKEN_S = 1e-4


class Device:
    """A schedule with what waits and a clock: steps take what they are expected to."""

    def __init__(self, lanes: int = 2, express: bool = False) -> None:
        self.schedule = Schedule(lanes, 512 * lanes, 256 * lanes, express)
        for place in (self.schedule.whole, *self.schedule.lanes[:1]):
            for tokens in (16, 512, 100, 256):
                place.times.learn(tokens, tokens * PER_TOKEN_S / (lanes if place is self.schedule.whole else 1))
        self.waiting, self.now = Batcher(), 100.0
        self.sizes: dict[int, int] = {}
        self.numbers = itertools.count()
        self.running: dict[int, tuple[Place, int]] = {}

    def ask(self, *lengths: int) -> int:
        key = next(self.numbers)
        self.waiting.add(key, np.array(lengths, np.int32))
        self.sizes[key] = sum(lengths)
        return key

    def start(self) -> list[tuple[int | None, list[int]]]:
        """Starts what can be; of each step its lane and how many tokens of each request."""
        started = []
        while isinstance(turn := self.schedule.turn(self.waiting, self.now), Turn):
            shares = self.waiting.take(turn.room, turn.over, turn.upto)
            tokens, number = sum(share.tokens for share in shares), next(self.numbers)
            largest = max(self.sizes[share.key] for share in shares)
            self.schedule.started(number, turn.place, tokens, largest, 0.0, self.now)
            self.running[number] = (turn.place, tokens)
            started.append((turn.place.lane, [share.tokens for share in shares]))
        self.wait_s = turn
        return started

    def sleep(self) -> None:
        """Until it should be asked again."""
        self.now += self.wait_s + 1e-9

    def end(self, lane: int | None) -> None:
        number, (place, tokens) = next(item for item in self.running.items() if item[1][0].lane == lane)
        del self.running[number]
        self.schedule.ended(number, place, place.times.expect(tokens), self.now)


def test_a_device_without_lanes_has_one_step_running_and_closes_the_next_late() -> None:
    device = Device(lanes=1)
    device.ask(*[100] * 20)
    assert device.start() == [(None, [500])]
    assert 0 < device.wait_s < 0.05
    device.sleep()
    assert device.start() == [(None, [500])]
    assert device.wait_s == math.inf  # two are under way
    device.end(None)
    assert device.start() == []


def test_idle_lanes_divide_what_waits_among_them() -> None:
    device = Device(lanes=3)
    device.ask(*[20] * 12)
    assert device.start() == [(0, [80]), (1, [80]), (2, [80])]


def test_a_few_short_inputs_are_not_divided() -> None:
    device = Device()
    device.ask(*[14] * 4)
    assert device.start() == [(0, [56])]
    device.end(0)
    device.ask(*[62] * 2)
    assert sorted(device.start()) == [(0, [62]), (1, [62])]


def test_a_lane_takes_the_next_step_when_it_is_free_whatever_the_others_do() -> None:
    device = Device()
    device.ask(*[50] * 200)
    assert device.start() == [(0, [500]), (1, [500])]
    device.now += 0.001
    device.end(1)
    assert device.start() == [(1, [500])]
    device.end(1)
    assert device.start() == [(1, [500])]


def test_the_end_of_what_waits_is_left_for_the_other_lane_too() -> None:
    device = Device()
    device.ask(*[50] * 40)
    assert device.start() == [(0, [500]), (1, [500])]
    device.end(0)
    assert device.start() == [(0, [500])]
    device.end(1)
    assert device.start() == [(1, [250])]  # of the last 500


def test_a_lane_is_not_given_so_little_that_it_computes_slowly_while_another_is_busy() -> None:
    device = Device()
    device.ask(*[60] * 2)
    device.start()
    device.ask(*[60] * 4)
    device.end(0)
    assert device.start() == [(0, [240])]


@pytest.mark.parametrize(
    ("lanes", "lengths", "together"),
    [
        (2, [300], True),
        (2, [300, 20], True),
        (2, [300, 300], False),
        (4, [300, 300], True),
        (4, [100] * 4, False),
        (2, [20], False),  # too soon done to be worth it
        (2, [400] + [40] * 20, False),
    ],
)
def test_all_cores_compute_what_cannot_be_divided(lanes: int, lengths: list[int], together: bool) -> None:
    device = Device(lanes)
    for length in lengths:
        device.ask(length)
    assert (device.start()[0][0] is None) == together


def test_nothing_is_computed_by_all_cores_while_a_lane_computes() -> None:
    device = Device()
    device.ask(20)
    assert device.start() == [(0, [20])]
    device.ask(400)
    assert device.start() == [(1, [400])]


def test_lanes_get_their_steps_when_that_of_all_cores_is_about_to_end() -> None:
    device = Device()
    device.ask(400)
    assert device.start() == [(None, [400])]
    device.ask(*[50] * 8)
    assert device.start() == []
    assert 0.015 < device.wait_s < 0.02
    device.sleep()
    assert device.start() == [(0, [200]), (1, [200])]


def test_small_requests_pass_bulk_at_once() -> None:
    device = Device(express=True)
    device.ask(*[50] * 200)
    assert [lane for lane, _ in device.start()] == [0, 1]
    device.ask(14)
    assert device.start() == [(2, [14])]
    device.ask(20)
    device.ask(30)
    device.schedule.express.free_at = device.now + 0.1
    device.now += 0.049
    started = device.start()
    assert [lane for lane, _ in started] == [0, 1]
    assert [20] not in [tokens for _, tokens in started]  # they wait for the express, and share no step with bulk
    assert device.waiting.tokens_of(100, 1_000) == 50
    device.end(2)
    device.now += 0.05
    assert (2, [30, 20]) in device.start()


def test_small_requests_that_keep_coming_have_no_more_than_their_share() -> None:
    """A twelfth of two cores: a sixth of the time of one."""
    device = Device(express=True)
    device.ask(*[50] * 2_000)
    device.start()
    device.ask(20)
    assert device.start() == [(2, [20])]
    device.now += 0.002
    device.end(2)  # it took 2 ms
    device.ask(20)
    device.ask(20)
    assert device.start() == []
    assert device.wait_s == pytest.approx(0.010)
    device.sleep()
    assert device.start() == [(2, [20, 20])]


def test_on_many_cores_small_requests_need_not_wait() -> None:
    device = Device(lanes=12, express=True)
    device.ask(*[50] * 2_000)
    device.start()
    device.ask(20)
    device.start()
    device.end(12)
    device.ask(20)
    assert device.start() == [(12, [20])]


def test_lanes_help_where_small_requests_are_more_than_the_express_computes_soon() -> None:
    device = Device(express=True)
    device.ask(*[50] * 400)
    device.start()
    device.ask(14)
    device.start()
    for _ in range(30):
        device.ask(14)
    device.schedule.express.free_at = device.now + 0.1
    device.now += 0.049
    lane, tokens = device.start()[0]
    assert lane == 0
    assert tokens[0] == 250  # the longest waiting has half of it
    assert tokens[1:] == [14] * 18


def test_a_lane_takes_small_requests_where_no_bulk_waits() -> None:
    device = Device(express=True)
    device.ask(512)
    device.ask(512)
    assert [lane for lane, _ in device.start()] == [0, 1]
    device.ask(14)
    assert device.start() == [(2, [14])]
    device.ask(20)
    device.schedule.express.free_at = device.now + 0.1
    device.now += 0.052
    assert device.start() == [(0, [20])]


def test_requests_of_one_kind_do_not_pass_each_other() -> None:
    device = Device(express=True)
    for _ in range(50):
        device.ask(60)
    assert [lane for lane, _ in device.start()] == [0, 1]
    device.ask(50)
    assert device.start() == []


def test_no_small_request_needs_the_express_while_a_lane_is_free() -> None:
    device = Device(express=True)
    device.ask(512)
    device.ask(512)
    assert [lane for lane, _ in device.start()] == [0, 1]
    device.end(1)
    device.ask(14)
    assert device.start() == [(1, [14])]


def test_all_cores_do_not_compute_together_what_one_computes_nearly_as_fast() -> None:
    device = Device()
    for _ in range(50):
        device.schedule.whole.times.learn(100, 0.009)
    device.ask(100)
    assert device.start() == [(0, [100])]  # 10 ms


def test_what_all_cores_took_once_is_tried_again_and_not_believed_for_good() -> None:
    device = Device()
    for _ in range(50):
        device.schedule.whole.times.learn(256, 0.1)  # while something else had the cores: they take 13 ms, one takes 26
    lanes = []
    for _ in range(2_000):
        device.ask(256)
        ((lane, _),) = device.start()
        lanes.append(lane)
        number, (place, _) = device.running.popitem()
        device.schedule.ended(number, place, 0.013 if lane is None else 0.026, device.now)
        device.now += 1
    assert None not in lanes[:64]
    assert lanes[-500:] == [None] * 500


def test_what_all_cores_took_for_small_steps_says_nothing_of_large_ones() -> None:
    device = Device()
    device.schedule.whole.times = StepTimes()
    for _ in range(50):
        device.schedule.whole.times.learn(64, 0.1)  # while something else had the cores
    device.ask(2_000)
    assert device.start() == [(None, [2_000])]


def test_lanes_are_cleared_for_what_would_keep_one_core_for_long_once_it_is_due() -> None:
    device = Device()
    device.ask(*[50] * 1_000)
    device.start()
    long = device.ask(20_000)  # two seconds of one core
    places = []
    for _ in range(300):
        for lane in (None, 0, 1):
            if any(place.lane == lane for place, _ in device.running.values()):
                device.now += 0.02
                device.end(lane)
                started = device.start()
                places += [lane for lane, tokens in started if 20_000 in tokens]
        if places:
            break
    assert places == [None]
    assert long not in device.waiting._waiting


def test_lanes_are_not_cleared_while_one_holds_something_long_itself() -> None:
    device = Device(lanes=16)
    device.ask(*[50] * 16 * 10)
    device.start()
    device.schedule.lanes[3].free_at = device.now + 8
    for lane in range(16):
        if lane != 3:
            device.end(lane)
    device.ask(20_000)
    device.ask(20)
    started = device.start()
    assert [20_000] in [tokens for lane, tokens in started if lane is not None]
    assert any(20 in tokens for _, tokens in started)


def test_small_requests_do_not_wait_for_an_express_that_is_late() -> None:
    device = Device(express=True)
    device.ask(*[50] * 2_000)
    device.start()
    device.ask(20)
    device.start()
    device.ask(20)
    device.now += 0.049
    assert device.start()[0] == (0, [250, 20, 200])


def test_nothing_is_put_behind_a_step_that_takes_longer_than_it_should_while_another_lane_goes_on() -> None:
    device = Device(lanes=3)
    device.ask(*[50] * 1_000)
    assert [lane for lane, _ in device.start()] == [0, 1, 2]
    for lane in (1, 2):
        device.now += 0.015
        device.end(lane)
        device.start()
    device.now += 0.03  # lane 0 is overdue
    assert device.start() == []
    device.sleep()
    assert [lane for lane, _ in device.start()] == [1]


def test_a_text_that_the_express_would_compute_for_long_is_no_small_one() -> None:
    device = Device(express=True)
    device.ask(*[50] * 4_000)
    device.start()
    device.ask(8_000)
    assert device.start() == []


def test_small_requests_share_steps_with_bulk_where_the_express_rests_for_long() -> None:
    device = Device(express=True)
    device.ask(*[50] * 2_000)
    device.start()
    device.ask(20)
    assert device.start() == [(2, [20])]
    device.schedule.ended(next(n for n, (place, _) in device.running.items() if place.lane == 2),
                          device.schedule.express, 1.0, device.now)  # fmt: skip
    small = device.ask(20)
    device.now += 0.049
    started = device.start()
    assert started[0] == (0, [250, 20, 200])
    assert small not in device.waiting._waiting
