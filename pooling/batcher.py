"""Batcher: waiting inputs -> the next step under a token budget. Pure: no torch, no clock, no thread."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a step that belongs to one request: which of its inputs, in the request's order of taking them.

    tokens: what they cost, with what is computed for them once more.
    """

    key: int
    inputs: Indices
    tokens: int


class _Waiting:
    """The inputs of one request that no step has taken yet, in the order in which they will be."""

    def __init__(self, key: int, lengths: NDArray[np.int32], order: Indices, again: Indices | None) -> None:
        self.key = key
        self._order, self._again = order, again
        self._ends = np.cumsum(lengths[self._order], dtype=np.int64)
        self._next = 0
        self.whole = int(self._ends[-1])
        self.owed = 0  # tokens, while it waits longest

    @property
    def tokens(self) -> int:
        return self.whole - self._taken

    @property
    def inputs(self) -> int:
        return len(self._order) - self._next

    @property
    def next_tokens(self) -> int:
        """Of the input that is taken next, with what is computed again for it."""
        return self._again_of_next + int(self._ends[self._next]) - self._taken

    @property
    def _again_of_next(self) -> int:
        return 0 if self._again is None or not self._next else int(self._again[self._order[self._next]])

    @property
    def _taken(self) -> int:
        return int(self._ends[self._next - 1]) if self._next else 0

    def take(self, room: int, at_least_one: bool) -> Share | None:
        """The next inputs that fit the room; None if not even one does.

        at_least_one: one is taken even if it does not, and where most of it is computed again, as many others as
        make that half of the share.
        """
        if not self.inputs:
            return None
        again = self._again_of_next
        own = max(room - again, again) if at_least_one else room - again
        stop = int(np.searchsorted(self._ends, self._taken + own, side="right"))
        stop = max(stop, self._next + 1) if at_least_one else stop
        if stop <= self._next:
            return None
        before, start = self._taken, self._next
        self._next = stop
        return Share(self.key, self._order[start:stop], self._taken - before + again)


class Batcher:
    """Holds the inputs that wait and forms the next step when it is asked to.

    A step holds at most so many tokens, or one input if that alone is longer; if
    what makes it long is shared with others, twice as many tokens as are shared.
    The request that waits longest is owed half of every step, so nothing
    starves; what it cannot use yet, because its next input is longer, it saves
    up. The rest goes to the requests with the fewest tokens left, so a small
    request never waits behind a bulk one. What then is free goes to whoever
    waits longest.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, _Waiting] = {}  # in order of arrival
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def inputs(self) -> int:
        return sum(request.inputs for request in self._waiting.values())

    @property
    def longest(self) -> int:
        """Tokens of the longest input that any request is about to give; 0 if none waits."""
        return max((request.next_tokens for request in self._waiting.values()), default=0)

    def first(self, room: int, over: int = 0) -> int:
        """Tokens of the input that a step as take() would make it begins with; 0 if nothing waits for it."""
        chosen = [request for request in self._waiting.values() if request.whole > over]
        if not chosen:
            return 0
        oldest, *others = chosen
        if not others or oldest.owed + room // 2 >= oldest.next_tokens:
            return oldest.next_tokens
        return min(others, key=lambda request: request.tokens).next_tokens

    def tokens_of(self, upto: int, enough: int) -> int:
        """Tokens that wait of requests with at most `upto` in all; counted no further than over `enough`."""
        tokens = 0
        for request in self._waiting.values():
            if request.whole <= upto:
                tokens += request.tokens
                if tokens > enough:
                    break
        return tokens

    def add(
        self, key: int, lengths: NDArray[np.int32], order: Indices | None = None, again: Indices | None = None
    ) -> None:
        """Adds a request: lengths [inputs] in tokens, all positive, at least one.

        order: which inputs are taken first; None: the longest, so that neighbours are of one length. again [inputs]:
        what a step that begins with an input computes for it beside its own tokens, unless it is the first of all.
        """
        order = np.argsort(-lengths, kind="stable") if order is None else order
        request = _Waiting(key, lengths, order, again)
        self._waiting[key] = request
        self.tokens += request.tokens

    def drop(self, key: int) -> bool:
        """Forgets what is left of a request, which may be unknown or taken whole; returns whether anything was left."""
        request = self._waiting.pop(key, None)
        if request is not None:
            self.tokens -= request.tokens
        return request is not None

    def take(self, room: int, over: int = 0, upto: int | None = None) -> list[Share]:
        """The next step, of at most `room` tokens; empty if nothing waits. A request may have two shares in it.

        over, upto: only requests with more and at most so many tokens in all; among those of the latter nobody is
        owed anything, for whoever waits longest may be one of the others.
        """
        chosen = [
            request
            for request in self._waiting.values()
            if request.whole > over and (upto is None or request.whole <= upto)
        ]
        if not chosen:
            return []
        oldest, *others = chosen
        before = sum(request.tokens for request in chosen)
        step = _due(oldest, room) if others and upto is None else []
        left = room - sum(share.tokens for share in step)
        for request in [*sorted(others, key=lambda request: request.tokens), oldest]:
            if left <= 0:
                break
            share = request.take(left, at_least_one=not step)
            if share is not None:
                step.append(share)
                left -= share.tokens
        for key in {share.key for share in step}:
            if not self._waiting[key].inputs:
                del self._waiting[key]
        self.tokens -= before - sum(request.tokens for request in chosen)
        return step


def _due(oldest: _Waiting, room: int) -> list[Share]:
    """What the request that waits longest takes of a step before all others."""
    oldest.owed += room // 2
    # An input longer than a step is taken whole once that is owed.
    share = oldest.take(min(room, oldest.owed), at_least_one=oldest.owed >= oldest.next_tokens)
    if share is None:
        return []
    oldest.owed -= share.tokens
    return [share]
