"""Schedule: where the next step runs, when it is closed, and what it may hold. Pure: no torch, no clock, no thread."""

import math
from dataclasses import dataclass, field

from pooling.batcher import Batcher
from pooling.step_times import StepTimes

_AHEAD = 2  # steps under way in one place: one runs, the next is ready behind it
# What an event loop may lose to other work between a timer's due time and its call.
_SLACK_S = 0.001
# How fast the running average of preparing a step follows a change: about the last 8 steps count.
_FOLLOW = 0.125
# What a step may take before it is made smaller, as far as that costs little speed: whoever comes next waits for it.
_STEP_S = 0.1
# All cores compute a step together where one input has more than so many times a lane's fair part of the work.
_UNEVEN = 1.5
# What takes one core no longer is not worth sharing among all, nor where that saves less than this part of the time:
# they wait for each other some hundred times a pass, and spin meanwhile.
_SHARED_S = 0.004
_SAVED = 0.15
# What it saves is known from steps that all cores took; after so many that one took alone it is tried again.
_PASSED_OVER = 64
# How far beyond the largest step that all cores took together what is known of those is believed.
_BELIEVED = 2
# What one lane computes nearly as fast as several is not divided: this part of what it should have to be efficient.
_SPLIT = 4
# Lanes are cleared for an input that would keep one core longer, if they are free within as much, once it is its turn.
_LONG_S = 1.0
# A request is small beside others that are at least so many times larger.
_SMALL = 8
# Of the device, what small requests that keep coming may take from bulk before they share its steps.
_EXPRESS_SHARE = 1 / 12


@dataclass(frozen=True, slots=True)
class _Given:
    """A step under way: its tokens, and those of the largest request that has inputs in it."""

    tokens: int
    largest: int


@dataclass(slots=True, eq=False)
class Place:
    """Where steps run one after another. free_at: when those that are under way should be done.

    lane: the core that computes them alone; None: the device does, or all cores together.
    """

    lane: int | None
    times: StepTimes
    most_tokens: int
    least_tokens: int
    steps: dict[int, _Given] = field(default_factory=dict)
    free_at: float = 0.0

    @property
    def room(self) -> int:
        """Tokens of a step that takes no longer than it should, as far as it is not made too small for that."""
        return self.times.tokens_within(_STEP_S, self.least_tokens, self.most_tokens)

    @property
    def largest(self) -> int:
        """Tokens of the largest request in the step that runs."""
        return next(iter(self.steps.values())).largest


@dataclass(frozen=True, slots=True)
class Turn:
    """A step to be made: at most `room` tokens, of requests that have more than `over` and at most `upto` in all."""

    place: Place
    room: int
    over: int = 0
    upto: int | None = None


class Schedule:
    """Knows the places of a device and chooses among them.

    A device without lanes has one place. One with lanes has a place for each,
    where a core computes inputs alone, and one where all cores compute a step
    together, for what cannot be divided, while no lane computes. `express` is a
    thread more, which the machine prefers to the lanes': where all of those are
    busy with bulk, it computes small requests at once. Then it rests, so that
    it has no more than its share and small requests gather for its next step.
    """

    def __init__(self, lanes: int, most_tokens: int, least_tokens: int, express: bool = False) -> None:
        """most_tokens, least_tokens: of a step of the whole device, or of all lanes together."""
        self.whole = Place(None, StepTimes(), most_tokens, least_tokens)
        self.lanes: list[Place] = []
        self.express: Place | None = None
        if lanes > 1:
            times, most, least = StepTimes(), max(1, most_tokens // lanes), max(1, least_tokens // lanes)
            self.lanes = [Place(lane, times, most, least) for lane in range(lanes)]
            self.express = Place(lanes, times, most, least) if express else None
        self._prepare_s = self._rested_at = 0.0
        self._passed_over = 0  # how often all cores might have computed a step together, and did not

    def turn(self, waiting: Batcher, now: float) -> Turn | float:
        """The step to start now, or after how many seconds to ask again; infinity: when a step has ended."""
        if not len(waiting):
            return math.inf
        if not self.lanes:
            return self._turn(self.whole, self.whole.room, now)
        small = self._small() if self.express is not None else 0
        if self.express is None or not small or (self.express.steps and self._full()):
            return self._turn_of_cores(waiting, now, 0)
        tokens, over, rest_s = waiting.tokens_of(small, self.express.least_tokens), 0, math.inf
        if tokens and not self.express.steps:
            rest_s = self._rested_at - now
            if rest_s <= 0:
                return Turn(self.express, self.express.room, upto=small)
        late = bool(self.express.steps) and self.express.free_at < now
        soon = not late and max(self._rested_at, self.express.free_at) - now <= _STEP_S
        if soon and tokens <= self.express.least_tokens and tokens < waiting.tokens:
            over = small  # they need not share a step with bulk
        turn = self._turn_of_cores(waiting, now, over)
        return turn if isinstance(turn, Turn) else min(turn, rest_s)

    def _turn_of_cores(self, waiting: Batcher, now: float, over: int) -> Turn | float:
        busy = [lane for lane in self.lanes if lane.steps]
        if not busy and self._together(waiting):
            return self._turn(self.whole, self.whole.room, now)
        # One that should be done by now holds something longer than was thought.
        lane = min(
            self.lanes, key=lambda lane: (len(lane.steps), bool(lane.steps) and lane.free_at < now, lane.free_at)
        )
        turn = self._turn(lane, self._part(waiting, lane), now, over)
        if not isinstance(turn, Turn):
            return turn
        first = waiting.first(turn.room, over)
        if lane.times.expect(first) > _LONG_S and self._pays(first):
            if not busy:
                return self._turn(self.whole, self.whole.room, now, over)
            if all(now <= each.free_at <= now + _LONG_S for each in busy):
                return math.inf  # until they are free; if one is not soon, nobody else should wait for it
        return turn

    def _full(self) -> bool:
        return all(len(place.steps) == _AHEAD for place in self.lanes)

    def started(self, number: int, place: Place, tokens: int, largest: int, prepare_s: float, now: float) -> None:
        """A step has gone to a place. largest: as in Place. prepare_s: what preparing it took."""
        place.steps[number] = _Given(tokens, largest)
        self._prepare_s += _FOLLOW * (prepare_s - self._prepare_s)
        place.free_at = self._free_at(place, now) + place.times.expect(tokens)

    def ended(self, number: int, place: Place, seconds: float, now: float) -> None:
        """A step has ended, and took so long."""
        given = place.steps.pop(number)
        if place is self.express:  # its time is taken from the lanes', and is not theirs
            self._rested_at = now + seconds * max(0.0, 1 / (_EXPRESS_SHARE * len(self.lanes)) - 1)
        else:
            place.times.learn(given.tokens, seconds)
        place.free_at = now + sum(place.times.expect(other.tokens) for other in place.steps.values())

    def begins(self, place: Place) -> bool:
        """Whether the step that a place has just been given begins at once."""
        return len(place.steps) == 1 and not (place in self.lanes and self.whole.steps)

    def begun_by(self, place: Place) -> list[Place]:
        """Where the end of a step in a place lets another begin, or nothing is left."""
        return [place, *self.lanes] if place is self.whole and not self.whole.steps else [place]

    @property
    def places(self) -> list[Place]:
        return [self.whole, *self.lanes, *([] if self.express is None else [self.express])]

    def forget(self) -> None:
        """Of the steps under way nobody will hear."""
        for place in self.places:
            place.steps.clear()

    def share_of(self, place: Place) -> float:
        """How much of the device computes a step of a place; the express shares the lanes' part."""
        return 1.0 if place is self.whole else 0.0 if place is self.express else 1 / len(self.lanes)

    def _turn(self, place: Place, room: int, now: float, over: int = 0) -> Turn | float:
        """As late as it can be, so that a request which arrives meanwhile is still in it."""
        if len(place.steps) == _AHEAD:
            return math.inf
        # Twice what preparing it takes: the place must not wait for it.
        wait_s = self._free_at(place, now) - now - 2 * self._prepare_s - _SLACK_S
        return Turn(place, room, over) if wait_s <= 0 else wait_s

    def _free_at(self, place: Place, now: float) -> float:
        """When a step that a place is given now can begin."""
        before = [place] if place is self.whole else [place, self.whole]
        return max([now, *(each.free_at for each in before if each.steps)])

    def _together(self, waiting: Batcher) -> bool:
        """Whether all cores should compute the next step together, while no lane computes."""
        if waiting.longest * len(self.lanes) <= _UNEVEN * waiting.tokens:
            return False
        pays = self._pays(waiting.longest)
        if not pays and _SHARED_S < self.lanes[0].times.expect(waiting.longest) <= _LONG_S:
            self._passed_over += 1
            pays = self._passed_over > _PASSED_OVER
        if pays:
            self._passed_over = 0
        return pays

    def _pays(self, tokens: int) -> bool:
        """Whether all cores compute an input that much faster than one."""
        alone = self.lanes[0].times.expect(tokens)
        known = tokens <= _BELIEVED * self.whole.times.largest
        together = self.whole.times.expect(tokens) if known else alone / len(self.lanes)
        return alone > _SHARED_S and together < (1 - _SAVED) * alone

    def _part(self, waiting: Batcher, lane: Place) -> int:
        """Tokens for one lane, so that the others have as much to do."""
        free = sum(not each.steps for each in self.lanes)
        if free > 1:
            return min(lane.room, max(lane.least_tokens // _SPLIT, -(-waiting.tokens // free)))
        return min(lane.room, max(lane.least_tokens, -(-waiting.tokens // len(self.lanes))))

    def _small(self) -> int:
        """Tokens of a request that is small beside all that run, and for the express; 0 while a place is free."""
        running = [self.whole] if self.whole.steps else self.lanes
        if not all(place.steps for place in running):
            return 0
        return min(self.lanes[0].least_tokens, min(place.largest for place in running) // _SMALL)
